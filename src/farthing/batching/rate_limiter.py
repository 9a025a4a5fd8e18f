"""Instances of all models taking turns at shared resources: counts what is held and tells who may run.

One for the server, on the event loop. A model's loop asks for its idle instances when it has a batch to run, and makes
up the batch when it is told to go: who leaves or runs out of time meanwhile is gone before. Who is chosen is up to
`batching.turns`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from farthing.batching.turns import Claim, Demand, grants, next_turn
from farthing.types.errors import LoadFailed

NO_DEMAND: Final = Demand()


class RateLimiter:
    """What there is of each resource, who holds it and who waits."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        """`totals` are those the operator named; of any other resource there is as much as the largest demand."""
        self._named = dict(totals)
        self._held: dict[str, int] = {}
        self._members: set[Turns] = set()
        self._now = 0
        self._asked = 0
        self._waiting: dict[int, tuple[Claim, Turns, int]] = {}
        self.totals: Mapping[str, int] = self._named
        """How many there are of each resource that anybody wants or the operator named."""

    def check(self, model: str, demands: Sequence[Demand]) -> None:
        """Raises `LoadFailed` if an instance wants more than there is."""
        for demand in demands:
            for name, count in demand.resources.items():
                total = self._named.get(name)
                if total is not None and count > total:
                    raise LoadFailed(
                        f"model `{model}`: an instance wants {count} of resource `{name}`; there are {total}",
                        hint=f"lower its count in rate_limiter.resources, or give --rate-limit-resource {name}:{count}",
                    )

    def join(self, demands: Sequence[Demand]) -> "Turns":
        """A model's place among the others; one demand an instance."""
        turns = Turns(self, demands)
        self._members.add(turns)
        self.count()
        return turns

    def count(self) -> None:
        """Settles the totals anew: demands have come, gone or changed."""
        largest: dict[str, int] = {}
        for member in self._members:
            for demand in member.demands:
                for name, count in demand.resources.items():
                    largest[name] = max(count, largest.get(name, 0))
        self.totals = largest | self._named

    # -- for `Turns` ---------------------------------------------------------------------------------------------

    def ask(self, member: "Turns", instance: int) -> int:
        """Puts an instance in line; answers its number there."""
        self._asked += 1
        turn = next_turn(member.last_turn(instance), self._now)
        self._waiting[self._asked] = (Claim(turn, self._asked, member.demand(instance).resources), member, instance)
        return self._asked

    def withdraw(self, order: int) -> None:
        """Takes an instance out of the line."""
        del self._waiting[order]

    def hold(self, resources: Mapping[str, int]) -> None:
        for name, count in resources.items():
            self._held[name] = self._held.get(name, 0) + count

    def free(self, resources: Mapping[str, int]) -> None:
        for name, count in resources.items():
            self._held[name] -= count

    def used(self, turn: int) -> None:
        """An instance with that turn runs: who asks from now on comes after it."""
        self._now = max(self._now, turn)

    def choose(self) -> None:
        """Lets those run whose turn it is; their loops hear of it."""
        if not self._waiting:
            return
        free = {name: total - self._held.get(name, 0) for name, total in self.totals.items()}
        for claim in grants([claim for claim, _, _ in self._waiting.values()], free):
            _, member, instance = self._waiting.pop(claim.order)
            self.hold(claim.resources)
            member.granted(instance, claim)

    def leave(self, member: "Turns") -> None:
        """A model is gone."""
        self._members.discard(member)
        self.count()
        self.choose()

    def check_integrity(self) -> None:
        """Asserts that what is held is what its holders have, and that who waits asks (for tests and simulations)."""
        held: dict[str, int] = {}
        for member in self._members:
            for resources in member.holdings():
                for name, count in resources.items():
                    held[name] = held.get(name, 0) + count
        assert held == {name: count for name, count in self._held.items() if count}
        asking = [order for member in self._members for order in member.places()]
        assert sorted(asking) == sorted(self._waiting)


class Turns:
    """One model's instances among all that want resources. Its loop calls `pick`, `ran` and `settle`."""

    def __init__(self, limiter: RateLimiter, demands: Sequence[Demand]) -> None:
        self._limiter = limiter
        self.demands = list(demands)
        self.wake: Callable[[], Any] = lambda: None
        """Called when an instance may run; the loop puts itself here."""
        self._last: dict[int, int] = {}
        self._asking: dict[int, int] = {}
        self._granted: dict[int, Claim] = {}
        self._running: dict[int, list[Mapping[str, int]]] = {}
        """Of each instance what its runs hold: of a decoupled model several may be under way."""
        self._is_picking = False

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to run and others have what it takes."""
        return bool(self._asking)

    def demand(self, instance: int) -> Demand:
        return self.demands[instance] if instance < len(self.demands) else NO_DEMAND

    def last_turn(self, instance: int) -> int:
        return self._last.get(instance, 0)

    def holdings(self) -> list[Mapping[str, int]]:
        """What its instances hold."""
        return [
            *(held for runs in self._running.values() for held in runs),
            *(claim.resources for claim in self._granted.values()),
        ]

    def places(self) -> list[int]:
        """Its places in line."""
        return list(self._asking.values())

    def pick(self, idle: Collection[int]) -> int | None:
        """One of the idle instances that may run now, which it is then taken to do; None: `wake` will be called."""
        picked = self._take(idle)
        if picked is None:
            for instance in idle:
                if instance not in self._asking:
                    self._asking[instance] = self._limiter.ask(self, instance)
            self._is_picking = True
            self._limiter.choose()
            self._is_picking = False
            picked = self._take(idle)
        return picked

    def ran(self, instance: int) -> None:
        """A run that was picked has ended."""
        runs = self._running[instance]
        self._limiter.free(runs.pop())
        if not runs:
            del self._running[instance]
        self._limiter.choose()

    def settle(self, *, is_asking: bool) -> None:
        """The loop has looked at its queue: gives back what it did not use, and the places in line if it wants none."""
        unused, self._granted = self._granted, {}
        for claim in unused.values():
            self._limiter.free(claim.resources)
        if not is_asking:
            for order in self._asking.values():
                self._limiter.withdraw(order)
            self._asking.clear()
        if unused:
            self._limiter.choose()

    def change(self, demands: Sequence[Demand]) -> None:
        """Other demands, from each instance's next run on."""
        self.settle(is_asking=False)
        self.demands = list(demands)
        self._limiter.count()
        self.wake()

    def leave(self) -> None:
        """The model is gone, and nothing of it runs."""
        self.settle(is_asking=False)
        self._limiter.leave(self)

    def granted(self, instance: int, claim: Claim) -> None:
        """The limiter's word: this instance may run."""
        del self._asking[instance]
        self._granted[instance] = claim
        if not self._is_picking:
            self.wake()

    def _take(self, idle: Collection[int]) -> int | None:
        for instance in idle:
            claim = self._granted.pop(instance, None)
            if claim is not None:
                self._running.setdefault(instance, []).append(claim.resources)
                self._last[instance] = claim.turn + self.demand(instance).priority
                self._limiter.used(claim.turn)
                return instance
        return None
