"""The way past the queue: the same as through it, for those who would not have waited there."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import FakeExecutable, VirtualLoop, make_loop, make_waiter

from farthing.batching.at_once import AtOnce
from farthing.batching.batcher import Limits
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES, Policy, Queue
from farthing.batching.rate_limiter import RateLimiter
from farthing.batching.turns import Demand
from farthing.engines.contract import Answer, Batch, Member, MemberAnswer
from farthing.types.errors import EngineFailed

Cost = Callable[[int], int]

SHORT: Cost = lambda rows: 5_000 + 100 * rows  # noqa: E731


def loop_of(cost_ns: Cost = SHORT, **settings: Any) -> tuple[BatchLoop, VirtualLoop, FakeExecutable]:
    """A loop that runs on the event loop what is short, and knows how long its runs take."""
    fake = FakeExecutable(cost_ns, answer=settings.pop("answer", None))
    loop, virtual, _ = make_loop(fake, is_inline=True, **settings)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(4):
            loop.times.observe(rows, cost_ns(rows))
    return loop, virtual, fake


def way_past(loop: BatchLoop) -> AtOnce:
    at_once = loop.at_once()
    assert at_once is not None
    return at_once


def batch_of(rows: list[int]) -> Batch:
    inputs = {"x": np.arange(sum(rows), dtype=np.float32)[:, None]}
    return Batch(inputs, ("y",), tuple(map(Member, rows)))


@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=70),
    st.integers(1_000, 90_000),
    st.integers(0, 4_000),
    st.sampled_from([None, 1_000_000]),
)
def test_as_many_are_taken_as_would_run_first_if_they_were_queued(
    rows: list[int], run_ns: int, row_ns: int, delay_ns_max: int | None
) -> None:
    settings = {"limits": Limits(rows_max=64, delay_ns_max=delay_ns_max)}
    one, virtual, _ = loop_of(lambda n: run_ns + row_ns * n, **settings)
    taken = way_past(one).takes(rows, FIXED_SHAPES, virtual.clock.now_ns(), is_last=True)
    twin, virtual, fake = loop_of(lambda n: run_ns + row_ns * n, **settings)
    for own in rows:
        twin.submit(make_waiter(rows=own, arrival_ns=virtual.clock.now_ns()))
    virtual.step()
    assert bool(taken) == bool(fake.batches)
    assert not taken or sum(rows[:taken]) == fake.batches[0]


def test_a_run_is_counted_as_one_from_the_queue() -> None:
    rows = [1, 3, 2]
    one, virtual, _ = loop_of()
    now = virtual.clock.now_ns()
    assert way_past(one).takes(rows, FIXED_SHAPES, now, is_last=True) == 3
    ran = way_past(one).run(batch_of(rows), 6, FIXED_SHAPES, now)
    assert ran is not None
    assert ran.whole is not None
    assert ran.whole["y"][:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    twin, virtual, _ = loop_of()
    for own in rows:
        twin.submit(make_waiter(rows=own, arrival_ns=virtual.clock.now_ns()))
    virtual.run()
    told = [msgspec.structs.replace(loop.statistics.snapshot("m", "1"), last_inference=0) for loop in (one, twin)]
    assert told[0] == told[1]
    assert one.statistics.request_buckets == twin.statistics.request_buckets
    assert one.statistics.queue_buckets == twin.statistics.queue_buckets
    assert one.times.table() == twin.times.table()
    assert one._returning.callers() == twin._returning.callers()


def test_those_who_wait_are_not_overtaken() -> None:
    loop, virtual, _ = loop_of()
    now = virtual.clock.now_ns()
    loop.submit(make_waiter(arrival_ns=now))
    assert way_past(loop).takes([1], FIXED_SHAPES, now, is_last=True) == 0
    virtual.run()
    assert way_past(loop).takes([1], FIXED_SHAPES, now, is_last=True) == 1


def test_who_may_have_company_soon_goes_at_once_only_if_a_run_is_worth_it_already() -> None:
    loop, virtual, _ = loop_of()
    now = virtual.clock.now_ns()
    assert way_past(loop).takes([1] * 60, FIXED_SHAPES, now, is_last=False) == 60
    assert way_past(loop).takes([1] * 20, FIXED_SHAPES, now, is_last=False) == 0
    assert way_past(loop).takes([1] * 20, FIXED_SHAPES, now, is_last=True) == 20


@pytest.mark.parametrize(
    "settings",
    [
        {"queue": Queue(model="m", requests_max=2)},
        {"queue": Queue(model="m", requests_max=9, levels=2, level_default=1)},
        {"queue": Queue(model="m", requests_max=9, policy=Policy(timeout_ns=1))},
        {"queue": Queue(model="m", requests_max=9, policy=Policy(requests_max=2))},
        {"cost_ns": lambda rows: 1_000_000},
    ],
    ids=["a full queue", "levels", "timeouts", "a full level", "a long run"],
)
def test_what_the_queue_would_tell_apart_goes_through_it(settings: dict[str, Any]) -> None:
    loop, virtual, _ = loop_of(**settings)
    assert way_past(loop).takes([1, 1, 1], FIXED_SHAPES, virtual.clock.now_ns(), is_last=True) == 0


def test_there_is_no_way_past_where_more_than_the_queue_is_to_be_asked() -> None:
    limited, _, _ = loop_of(turns=RateLimiter({}).join([Demand()]))
    assert limited.at_once() is None
    streaming, _, _ = loop_of()
    assert streaming.frames
    assert streaming.at_once() is None
    closing, _, _ = loop_of()
    closing.when_empty(lambda: None)
    assert closing.at_once() is None
    fake = FakeExecutable(SHORT, is_pure=False)
    assert make_loop(fake, is_inline=True)[0].at_once() is None, "what went wrong may not be run again"
    assert make_loop(FakeExecutable(SHORT))[0].at_once() is None, "it never runs on the event loop"


def _raises(error: BaseException) -> Callable[[Batch], Answer]:
    def answer(batch: Batch) -> Answer:
        raise error

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        _raises(EngineFailed("no")),
        _raises(SystemExit()),
        lambda batch: {},
        lambda batch: {"y": np.zeros((1, 1), np.float32)},
        lambda batch: {"y": np.float32(1)},
        lambda batch: [MemberAnswer({"y": np.zeros((1, 1), np.float32)})] * 2,
    ],
    ids=["fails", "exits", "no output", "a row too few", "no rows", "one by one"],
)
def test_what_goes_wrong_is_not_counted_and_told_to_each_from_the_queue(answer: Callable[[Batch], Answer]) -> None:
    loop, virtual, _ = loop_of(answer=answer)
    before = loop.statistics.snapshot("m", "1")
    assert way_past(loop).run(batch_of([1, 1]), 2, FIXED_SHAPES, virtual.clock.now_ns()) is None
    assert loop.statistics.snapshot("m", "1") == before
    assert loop.is_empty
    told: list[object] = []
    for _ in range(2):
        loop.submit(make_waiter(arrival_ns=virtual.clock.now_ns(), done=told.append))
    virtual.run()
    assert len(told) == 2
