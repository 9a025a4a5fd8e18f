"""The response cache at a model's door: equal requests are answered from it, or by the one that is under way.

A look-up comes before the queue, so a hit waits for nobody. Requests that equal one under way ride on its answer. Only
answers that are results are kept; failures are everybody's own. Keys are `cache_key`'s, room is `response_cache`'s.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final

from farthing.batching.instances import Scheduler
from farthing.runtime.cache_key import cache_key, request_size
from farthing.runtime.ensemble import Ensemble
from farthing.runtime.in_order import Submit
from farthing.runtime.response_cache import KeptAnswer, ResponseCache, kept
from farthing.runtime.served import Done, ServedVersion
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import FarthingError
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing

HASHED_BYTES_MAX: Final = 4 << 20
"""Requests with larger inputs are not looked up: hashing happens on the event loop, 4 MiB in 2.3 ms, and a model that
takes more in a request does so much work on it that few would be saved."""

FROM_CACHE: Final = Timing(0, 0, 0, 0, 0, 0)


class Asker:
    """A request that was not found in the cache, or found and not told yet."""

    __slots__ = ("arrival_ns", "done", "is_gone", "request", "rows", "signature", "withdraw")

    def __init__(self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done) -> None:
        self.request = request
        self.rows = rows
        self.signature = signature
        self.arrival_ns = arrival_ns
        self.done = done
        self.is_gone = False
        self.withdraw: Callable[[], None] | None = None
        """Takes it out of its model, once it is there by itself."""


class Flight:
    """One run of the model that several askers wait for; the first of them is who the model knows."""

    __slots__ = ("askers", "key", "load", "withdraw")

    def __init__(self, key: bytes, load: int, first: Asker) -> None:
        self.key = key
        self.load = load
        self.askers = [first]
        self.withdraw: Callable[[], None] | None = None


class CacheDoor:
    """Before one loaded version's own `submit`."""

    def __init__(
        self,
        *,
        submit: Submit,
        spec: ModelSpec,
        statistics: ModelStatistics,
        cache: ResponseCache,
        load: int,
        of_steps: Callable[[], tuple[Any, ...] | None] = tuple,
        scheduler: Scheduler,
        clock: Clock | None = None,
    ) -> None:
        """`load` is a number no other load of any model has; `of_steps` gives those of the models this one asks.

        None from `of_steps`: one of them has no cache, so nothing of this one is kept.
        """
        self._submit = submit
        self._spec = spec
        self._version = str(spec.version)
        self._statistics = statistics
        self._cache = cache
        self._load = load
        self._of_steps = of_steps
        self._scheduler = scheduler
        self._now_ns = (clock or MonotonicClock()).now_ns
        self._flights: dict[bytes, Flight] = {}
        self._is_closed = False

    def identity(self) -> tuple[Any, ...] | None:
        """Which loads answer now: its own, and of an ensemble those of its models; None: nothing may be kept."""
        steps = self._of_steps()
        return None if steps is None else (self._spec.name, self._version, self._load, steps)

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """As the model's own; from the cache if it has the answer."""
        began_ns = self._now_ns()
        identity = self.identity()
        if identity is None or request_size(request.inputs) > HASHED_BYTES_MAX:
            return self._submit(request, rows, signature, arrival_ns, done)
        key = cache_key(request, identity)
        asker = Asker(request, rows, signature, arrival_ns, done)
        found = self._cache.get(key)
        if found is not None:
            self._scheduler.call_soon(self._tell, asker, found)
            self._statistics.cache_hit(self._now_ns() - began_ns)
            return partial(self._leave, asker)
        flight = self._flights.get(key)
        if flight is not None and _may_share(request, flight.askers[0].request):
            flight.askers.append(asker)
            self._statistics.cache_hit(self._now_ns() - began_ns)
            self._statistics.cache_coalesced += 1
            return partial(self._leave_flight, flight, asker)
        self._statistics.cache_miss(self._now_ns() - began_ns)
        mine = Flight(key, self._load, asker)
        if flight is None:
            self._flights[key] = mine
        try:
            mine.withdraw = self._submit(request, rows, signature, arrival_ns, partial(self._landed, mine))
        except BaseException:
            self._over(mine)
            raise
        return partial(self._leave_flight, mine, asker)

    def _tell(self, asker: Asker, answer: KeptAnswer) -> None:
        if asker.is_gone:
            return
        asker.is_gone = True
        self._statistics.request_done(self._now_ns() - asker.arrival_ns, 0)
        asker.done(
            InferResponse(
                model_name=self._spec.name,
                model_version=self._version,
                id=asker.request.id,
                outputs=answer.outputs,
                parameters=answer.parameters,
                timing=FROM_CACHE,
            )
        )

    def _landed(self, flight: Flight, answer: InferResponse | FarthingError) -> None:
        """The model has answered the first asker."""
        self._over(flight)
        first, *others = flight.askers
        flight.askers = [first]
        first.is_gone = True
        if isinstance(answer, FarthingError):
            for asker in others:
                self._ask_alone(asker)
        else:
            answer.id = first.request.id  # the first may have taken the place of one who left
            began_ns = self._now_ns()
            keep = kept(answer.outputs, answer.parameters, first.request.outputs, self._load)
            if not self._is_closed and self._cache.put(flight.key, keep):
                self._statistics.cache_insertions += 1
                self._statistics.cache_miss_ns += self._now_ns() - began_ns
            for asker in others:
                self._scheduler.call_soon(self._tell, asker, keep)
        first.done(answer)

    def _ask_alone(self, asker: Asker) -> None:
        """Who rode on a request that failed asks by itself: it may have failed of its own deadline, or its place."""
        if asker.is_gone:
            return
        try:
            asker.withdraw = self._submit(
                asker.request, asker.rows, asker.signature, asker.arrival_ns, partial(self._ended, asker)
            )
        except FarthingError as error:
            self._ended(asker, error)

    @staticmethod
    def _ended(asker: Asker, answer: InferResponse | FarthingError) -> None:
        asker.is_gone = True
        asker.done(answer)

    def _leave(self, asker: Asker) -> None:
        """The client is gone before it was told."""
        if not asker.is_gone:
            asker.is_gone = True
            if asker.withdraw is not None:
                asker.withdraw()  # counts it
            else:
                self._statistics.failed(FailureReason.CANCELED)

    def _leave_flight(self, flight: Flight, asker: Asker) -> None:
        """The client is gone; the run goes on while anybody else waits for it."""
        if asker.is_gone or asker not in flight.askers:
            self._leave(asker)
            return
        flight.askers.remove(asker)
        if flight.askers or flight.withdraw is None:
            self._leave(asker)
            return
        asker.is_gone = True
        self._over(flight)
        flight.withdraw()  # counts it

    def _over(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def close(self) -> None:
        """Lets go of the answers of this load, and keeps no more: it is on its way out."""
        self._is_closed = True
        self._cache.forget(self._load)


def _may_share(request: InferRequest, first: InferRequest) -> bool:
    """Whether a request may wait for another's run: not where one's urgency or patience would bind the other."""
    return not request.timeout_us and not first.timeout_us and request.priority == first.priority


class CachedVersion(ServedVersion):
    """A loaded version whose configuration enables the response cache."""

    def __init__(self, *args: Any, cache: ResponseCache, load: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.door = CacheDoor(
            submit=super().submit,
            spec=self.spec,
            statistics=self.statistics,
            cache=cache,
            load=load,
            scheduler=kwargs["scheduler"],
        )
        self.submit = self.door.submit  # type: ignore[method-assign]
        self.when_empty = partial(_close_first, self.door, self.loop.when_empty)


class CachedEnsemble(Ensemble):
    """An ensemble whose configuration, and that of all its models, enables the response cache."""

    def __init__(self, *args: Any, cache: ResponseCache, load: int, scheduler: Scheduler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.door = CacheDoor(
            submit=super().submit,
            spec=self.spec,
            statistics=self.statistics,
            cache=cache,
            load=load,
            of_steps=self._of_steps,
            scheduler=scheduler,
        )
        self.submit = self.door.submit  # type: ignore[method-assign]

    def _of_steps(self) -> tuple[Any, ...] | None:
        """Which loads of its models would answer now: a model that is loaded again gives other answers."""
        identities = []
        for step in self.graph.steps:
            try:
                served = self.resolve(step.model, step.version, step.namespace)
            except FarthingError:
                return None  # the ensemble will say so
            identity = served.door.identity() if isinstance(served, CachedVersion | CachedEnsemble) else None
            if identity is None:
                return None
            identities.append(identity)
        return tuple(identities)

    def when_empty(self, call: Callable[[], None]) -> None:
        """As the ensemble's; its answers go."""
        _close_first(self.door, super().when_empty, call)


def _close_first(door: CacheDoor, when_empty: Callable[[Callable[[], None]], None], call: Callable[[], None]) -> None:
    door.close()
    when_empty(call)
