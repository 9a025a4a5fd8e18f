"""Loops of several models that share resources, in virtual time: shares, bounds, and nobody left waiting."""

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
from tests.fakes import Answered, FakeExecutable, VirtualLoop, make_loop, make_waiter

from farthing.batching.batcher import Limits
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import Queue, Waiter
from farthing.batching.rate_limiter import RateLimiter
from farthing.batching.turns import Demand
from farthing.engines.contract import Answer, Batch
from farthing.types.errors import DeadlineExceeded, LoadFailed
from farthing.types.requests import InferResponse

MS = 1_000_000


class House:
    """Models on one virtual event loop that share what there is."""

    def __init__(self, **totals: int) -> None:
        self.virtual = VirtualLoop()
        self.limiter = RateLimiter(totals)
        self.loops: dict[str, BatchLoop] = {}
        self.queues: dict[str, Queue] = {}
        self.order: list[str] = []
        """Models in the order of their runs' ends."""
        self.answers: dict[int, Answered] = {}
        self.sent = 0

    def model(self, name: str, *demands: Demand, cost_ns: int = MS, rows_max: int = 1) -> None:
        def answer(batch: Batch) -> Answer:
            self.order.append(name)
            return {"y": batch.inputs["x"] * 2}

        fake = FakeExecutable(lambda rows: cost_ns, answer=answer)
        self.loops[name], _, self.queues[name] = make_loop(
            fake,
            rows_max=rows_max,
            limits=Limits(rows_max=rows_max, delay_ns_max=0),
            instances=len(demands),
            virtual=self.virtual,
            turns=self.limiter.join(demands),
        )

    def send(self, name: str, count: int = 1, **settings: Any) -> list[Waiter]:
        waiters = []
        for _ in range(count):
            self.sent += 1
            done = partial(self._done, self.sent)
            waiters.append(make_waiter(arrival_ns=self.virtual.clock.now_ns(), done=done, **settings))
            try:
                self.loops[name].submit(waiters[-1])
            except DeadlineExceeded as refused:
                self._done(self.sent, refused)
                waiters.pop()
        return waiters

    def _done(self, number: int, answer: Answered) -> None:
        assert number not in self.answers
        self.answers[number] = answer

    def run(self, **until: int) -> None:
        self.virtual.run(**until)
        self.limiter.check_integrity()


def wants(priority: int = 1, **resources: int) -> Demand:
    return Demand(resources=resources, priority=priority)


def test_models_that_want_one_thing_never_run_together() -> None:
    house = House()
    house.model("a", wants(r=1))
    house.model("b", wants(r=1))
    house.send("a", 3)
    house.send("b", 3)
    start = house.virtual.clock.now_ns()
    house.run()
    assert (house.virtual.clock.now_ns() - start) // MS == 6
    assert house.order == ["a", "b"] * 3


def test_what_an_operator_has_more_of_lets_more_run() -> None:
    house = House(r=2)
    house.model("a", wants(r=1))
    house.model("b", wants(r=1))
    house.send("a", 3)
    house.send("b", 3)
    start = house.virtual.clock.now_ns()
    house.run()
    assert (house.virtual.clock.now_ns() - start) // MS == 3


def test_priority_n_gets_one_nth_of_the_turns() -> None:
    house = House()
    house.model("one", wants(r=1, priority=1))
    house.model("two", wants(r=1, priority=2))
    house.model("four", wants(r=1, priority=4))
    for name in house.loops:
        house.send(name, 200)
    house.run(until_ns=house.virtual.clock.now_ns() + 140 * MS)
    turns = Counter(house.order[:140])
    assert {name: round(turns[name] / 20) for name in turns} == {"one": 4, "two": 2, "four": 1}


def test_a_model_that_was_idle_has_saved_up_no_turns() -> None:
    house = House()
    house.model("busy", wants(r=1))
    house.model("late", wants(r=1))
    house.send("busy", 100)
    house.run(until_ns=house.virtual.clock.now_ns() + 50 * MS)
    house.send("late", 50)
    seen = len(house.order)
    house.run(until_ns=house.virtual.clock.now_ns() + 20 * MS)
    assert abs(Counter(house.order[seen:])["late"] - 10) <= 1


def test_a_large_demand_is_not_starved_by_small_ones() -> None:
    house = House(r=3)
    for name in "abc":
        house.model(name, wants(r=1))
    house.model("large", wants(r=3))
    for name in "abc":
        house.send(name, 1000)
    house.run(until_ns=house.virtual.clock.now_ns() + 10 * MS)
    house.send("large")
    seen = len(house.order)
    house.run(until_ns=house.virtual.clock.now_ns() + 5 * MS)
    assert "large" in house.order[seen:]


def test_an_instance_without_demands_waits_for_nobody() -> None:
    house = House()
    house.model("holder", wants(r=1), cost_ns=1000 * MS)
    house.model("free", Demand())
    house.send("holder")
    house.run(until_ns=house.virtual.clock.now_ns())
    house.send("free", 3)
    house.run(until_ns=house.virtual.clock.now_ns() + 10 * MS)
    assert house.order == ["free"] * 3


def test_the_batch_is_made_up_when_its_turn_comes() -> None:
    house = House()
    house.model("holder", wants(r=1), cost_ns=10 * MS)
    house.model("batches", wants(r=1), rows_max=8)
    house.send("holder")
    house.run(until_ns=house.virtual.clock.now_ns())
    house.send("batches", 2)
    house.run(until_ns=house.virtual.clock.now_ns() + 5 * MS)
    house.send("batches", 2)
    house.run()
    assert house.order == ["holder", "batches"]
    assert all(isinstance(answer, InferResponse) for answer in house.answers.values())


def test_who_leaves_or_runs_out_of_time_while_waiting_is_noticed() -> None:
    house = House()
    house.model("holder", wants(r=1), cost_ns=50 * MS)
    house.model("waits", wants(r=1))
    house.send("holder")
    house.run(until_ns=house.virtual.clock.now_ns())
    [gone] = house.send("waits")
    house.send("waits", timeout_us=10_000)
    house.run(until_ns=house.virtual.clock.now_ns() + MS)
    house.loops["waits"].cancel(gone)
    house.run(until_ns=house.virtual.clock.now_ns() + 20 * MS)
    assert isinstance(house.answers[3], DeadlineExceeded), "while the resource is still held"
    house.run()
    assert house.order == ["holder"]
    assert house.loops["waits"].is_empty


def test_a_model_that_waits_for_others_is_not_taken_for_hung() -> None:
    house = House()
    house.model("holder", wants(r=1), cost_ns=50 * MS)
    house.model("waits", wants(r=1))
    house.send("holder")
    house.run(until_ns=house.virtual.clock.now_ns())
    house.send("waits")
    house.run(until_ns=house.virtual.clock.now_ns() + MS)
    assert not list(house.loops["waits"].running())
    assert list(house.loops["holder"].running())


def test_a_model_that_leaves_lets_the_next_go() -> None:
    house = House()
    house.model("a", wants(r=1))
    house.model("b", wants(r=1))
    house.send("a", 2)
    left: list[bool] = []
    house.loops["a"].when_empty(lambda: left.append(True))
    house.send("b")
    house.run()
    assert left == [True]
    assert sorted(house.order) == ["a", "a", "b"]
    assert house.limiter.totals == {"r": 1}


def test_an_instance_that_wants_more_than_there_is_is_refused() -> None:
    limiter = RateLimiter({"r": 2})
    limiter.check("m", [wants(r=2, other=9)])
    with pytest.raises(LoadFailed, match="model `m`: an instance wants 3 of resource `r`; there are 2"):
        limiter.check("m", [wants(r=1), wants(r=3)])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_wanted_everybody_is_answered_and_nothing_is_held_in_the_end(seed: int) -> None:
    chance = random.Random(seed)
    house = House(**({"a": 3} if chance.random() < 0.5 else {}))
    names = [f"m{number}" for number in range(chance.randint(2, 5))]
    for name in names:
        demands = [
            Demand(
                resources={r: chance.randint(1, 3) for r in "abc" if chance.random() < 0.5},
                priority=chance.randint(1, 5),
            )
            for _ in range(chance.randint(1, 3))
        ]
        house.model(name, *demands, cost_ns=chance.randint(1, 5) * MS, rows_max=chance.choice([1, 4]))
    withdrawn = 0
    waiting: list[tuple[str, Waiter]] = []
    for _ in range(60):
        name = chance.choice(names)
        waiting += [(name, w) for w in house.send(name, chance.randint(1, 4), timeout_us=chance.choice([0, 0, 5000]))]
        if waiting and chance.random() < 0.3:
            name, waiter = waiting.pop(chance.randrange(len(waiting)))
            before = house.loops[name].statistics.failures["CANCELED"]
            house.loops[name].cancel(waiter)
            withdrawn += house.loops[name].statistics.failures["CANCELED"] - before
        for _ in range(chance.randint(0, 20)):
            house.virtual.step()
            house.limiter.check_integrity()
    house.run()
    assert len(house.answers) + withdrawn == house.sent
    assert all(isinstance(answer, InferResponse | DeadlineExceeded) for answer in house.answers.values())
    assert all(loop.is_empty and not loop.turns.holdings() for loop in house.loops.values() if loop.turns)
