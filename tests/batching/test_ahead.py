"""Full batches are handed to instances that still run one, and nobody is worse off for it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import Answered, FakeExecutable, make_loop, make_waiter

from farthing.batching.ahead import RUN_NS_MAX
from farthing.batching.batcher import Limits, full_batch
from farthing.batching.queue import Policy, Queue, Waiter
from farthing.batching.row_times import RowTimes
from farthing.types.errors import Unavailable
from farthing.types.requests import InferResponse

MS = 1_000_000


def linear(row_ns: int) -> Callable[[int], int]:
    return lambda rows: MS + row_ns * rows


QUICK = linear(MS)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.batching.loop.cores_available", lambda: 2)


class House:
    """A loop that knows how long its runs take, and what everybody is told."""

    def __init__(self, cost_ns: Callable[[int], int] = QUICK, **options: Any) -> None:
        self.executable = FakeExecutable(cost_ns, answer=options.pop("answer", None))
        self.loop, self.virtual, self.queue = make_loop(self.executable, **{"rows_max": 4, "instances": 2, **options})
        self.answers: list[Answered] = []
        for rows in (1, 2, 4):
            for _ in range(8):
                self.loop.times.observe(rows, cost_ns(rows))

    def send(self, count: int, **more: Any) -> list[Waiter]:
        waiters = []
        for number in range(count):
            waiter = make_waiter(number, arrival_ns=self.virtual.clock.now_ns(), done=self.answers.append, **more)
            self.loop.submit(waiter)
            waiters.append(waiter)
        return waiters

    @property
    def ahead(self) -> dict[int, int]:
        """Instance -> rows it has been handed beside what it runs."""
        assert self.loop._ahead is not None
        return {instance: job.rows for instance, job in self.loop._ahead.jobs.items()}

    def settle(self) -> None:
        """Up to the moment before anything ends."""
        self.virtual.run(until_ns=self.virtual.clock.now_ns() + 1)


def test_each_instance_has_one_full_batch_ahead() -> None:
    house = House(instances=2)
    house.send(18)
    house.settle()
    assert house.ahead == {0: 4, 1: 4}
    assert house.queue.requests == 2, "two are no full batch"
    house.virtual.run()
    assert len(house.answers) == 18
    assert all(isinstance(answer, InferResponse) for answer in house.answers)
    assert house.executable.batches[:4] == [4, 4, 4, 4]
    assert not house.ahead
    assert sorted(house.loop._idle) == [0, 1]


def test_batches_follow_each_other_without_a_gap() -> None:
    house = House()
    began_ns = house.virtual.clock.now_ns()
    house.send(32)
    house.virtual.run()
    assert house.executable.batches == [4] * 8
    assert house.virtual.clock.now_ns() - began_ns == 4 * 5 * MS


def test_a_single_instance_has_nothing_ahead() -> None:
    house = House(instances=1)
    house.send(16)
    house.settle()
    assert not house.ahead


def test_on_a_single_core_nothing_goes_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.batching.loop.cores_available", lambda: 1)
    assert House().loop._ahead is None


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {"timeout_us": 900_000}),
        ({"queue": Queue(model="fake", requests_max=99, levels=2, level_default=1)}, {}),
        ({"queue": Queue(model="fake", requests_max=99, policy=Policy(timeout_ns=900 * MS))}, {}),
        ({"cost_ns": linear(RUN_NS_MAX)}, {}),
    ],
    ids=["deadlines", "priorities", "deadlines of the model", "long runs"],
)
def test_nothing_goes_ahead_where_somebody_could_have_a_right_to_go_first(options: Any, more: Any) -> None:
    house = House(**options)
    house.send(12, **more)
    house.settle()
    assert not house.ahead
    house.virtual.run()
    assert len(house.answers) == 12


def test_nothing_goes_ahead_of_which_no_time_is_known() -> None:
    executable = FakeExecutable(linear(MS))
    loop, virtual, _ = make_loop(executable, rows_max=4, instances=2)
    for number in range(12):
        loop.submit(make_waiter(number))
    virtual.run(until_ns=1)
    assert loop._ahead is not None
    assert not loop._ahead.jobs


def test_models_that_may_not_run_again_have_nothing_ahead() -> None:
    loop, _, _ = make_loop(FakeExecutable(linear(MS), is_pure=False), rows_max=4, instances=2)
    assert loop._ahead is None, "what runs elsewhere may go down with what it was handed"


def test_who_leaves_before_the_batch_begins_is_not_run() -> None:
    house = House()
    waiters = house.send(16)
    house.settle()
    house.loop.cancel(waiters[9])
    house.virtual.run()
    assert sorted(house.executable.batches) == [3, 4, 4, 4]
    assert len(house.answers) == 15


def test_a_batch_that_everybody_left_is_not_run_at_all() -> None:
    house = House()
    waiters = house.send(20)
    house.settle()
    for waiter in waiters[8:12]:
        house.loop.cancel(waiter)
    house.virtual.run()
    assert house.executable.batches == [4, 4, 4, 4]
    assert len(house.answers) == 16
    assert house.loop.is_empty


def test_a_drain_that_runs_out_of_time_answers_them_too() -> None:
    house = House()
    house.send(18)
    house.settle()
    assert house.ahead == {0: 4, 1: 4}
    house.loop.fail_all(Unavailable("going"))
    assert len(house.answers) == 18
    assert all(isinstance(answer, Unavailable) for answer in house.answers)
    house.virtual.run()
    assert len(house.answers) == 18, "once each"


def test_an_instance_that_goes_ends_what_it_was_handed() -> None:
    house = House(instances=2)
    house.send(16)
    house.settle()
    gone: list[bool] = []
    house.loop.shrink(1, lambda: gone.append(True))
    house.virtual.run(until_ns=house.virtual.clock.now_ns() + 6 * MS)
    assert not gone, "it still runs its second batch"
    house.virtual.run()
    assert gone
    assert len(house.answers) == 16
    assert house.loop._idle == [0]


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(0, 8))
def test_a_full_batch_is_one_that_the_next_request_would_not_fit_into(rows: list[int], rows_max: int) -> None:
    times = RowTimes()
    for size in (1, 2, 4, 8):
        times.observe(size, MS + size)
    requests = full_batch(rows, Limits(rows_max=rows_max), times)
    assert 0 <= requests <= len(rows)
    if requests and rows_max and rows[0]:
        total = sum(rows[:requests])
        assert total >= times.best_rows(rows_max) or total + rows[requests] > times.best_rows(rows_max)
