"""When waiting requests leave: examples that a person can check, and what holds for every queue there can be."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.batcher import NOBODY, WAIT_SHARE_MAX, Callers, Limits, Run, Wait, decide
from farthing.batching.row_times import RowTimes

MS = 1_000_000
MEASURED = Limits(rows_max=64)
TRITON = Limits(rows_max=8, preferred_rows=(4, 8), delay_ns_max=10 * MS)


def learned(**times_ms: float) -> RowTimes:
    """Row times as after many runs; `r4=2.5` means that four rows take 2.5 ms."""
    times = RowTimes()
    for name, milliseconds in times_ms.items():
        for _ in range(4):
            times.observe(int(name[1:]), int(milliseconds * MS))
    return times


FIXED_COST = learned(r1=10, r2=10, r4=10, r8=10, r16=10, r32=10, r64=10)
LINEAR = learned(r1=10, r2=20, r4=40)


def measured(
    rows: Sequence[int], times: RowTimes, *, callers: Callers = NOBODY, arrivals: Sequence[int] = (), now: int = 0
) -> Run | Wait | None:
    return decide(rows, arrivals or [0] * len(rows), MEASURED, times, callers, now)


def test_an_empty_queue_asks_for_nothing() -> None:
    assert measured([], FIXED_COST) is None


def test_a_model_that_never_batches_runs_one_request_at_a_time() -> None:
    assert decide([1, 1, 1], [0, 0, 0], Limits(rows_max=0), FIXED_COST, Callers(9, 1, 0), 0) == Run(1)


def test_a_request_without_rows_runs_alone_and_at_once() -> None:
    assert measured([0], FIXED_COST, callers=Callers(9, 1, 0)) == Run(1)


def test_a_model_of_unknown_speed_runs_the_first_request_at_once() -> None:
    assert measured([1, 1, 1], RowTimes(), callers=Callers(9, 1, 0)) == Run(1)


def test_a_busy_model_for_which_batching_pays_takes_all_who_wait() -> None:
    assert measured([1] * 20, FIXED_COST) == Run(20)


def test_a_model_for_which_batching_does_not_pay_takes_one() -> None:
    assert measured([1] * 20, LINEAR) == Run(1)


def test_no_more_than_the_best_size_leaves_together() -> None:
    times = learned(r1=10, r2=11, r4=12, r8=14, r16=28, r32=56)
    assert measured([1] * 20, times) == Run(8)
    assert measured([3, 3, 3], times) == Run(2)


def test_a_request_larger_than_the_best_size_runs_by_itself() -> None:
    assert measured([40, 1], LINEAR) == Run(1)


def test_a_lone_request_never_waits_while_nobody_is_expected_back() -> None:
    assert measured([1], FIXED_COST, callers=Callers(away=0, lag_ns=1000, free_ns=0)) == Run(1)


def test_callers_who_were_just_answered_and_come_back_soon_are_waited_for() -> None:
    callers = Callers(away=3, lag_ns=1 * MS, free_ns=0)
    assert measured([1], FIXED_COST, callers=callers) == Wait(4 * MS)
    assert measured([1], FIXED_COST, callers=callers, now=4 * MS) == Run(1)


def test_callers_whose_lag_is_most_of_a_run_are_not_waited_for() -> None:
    assert measured([1], FIXED_COST, callers=Callers(away=3, lag_ns=4 * MS, free_ns=0)) == Run(1)


def test_callers_are_not_waited_for_where_company_saves_nothing() -> None:
    times = learned(r1=10, r2=19, r4=38, r8=76)
    assert measured([1], times, callers=Callers(away=3, lag_ns=1 * MS, free_ns=0)) == Run(1)


def test_a_wait_ends_half_a_run_after_the_instance_came_free_whoever_arrives_meanwhile() -> None:
    callers = Callers(away=3, lag_ns=3 * MS, free_ns=100 * MS)
    assert measured([1], FIXED_COST, callers=callers, now=101 * MS) == Wait(105 * MS)
    assert measured([1, 1], FIXED_COST, callers=callers, arrivals=[0, 104 * MS], now=104 * MS) == Wait(105 * MS)
    assert measured([1, 1], FIXED_COST, callers=callers, arrivals=[0, 104 * MS], now=105 * MS) == Run(2)


def test_a_run_shorter_than_the_clock_can_tell_is_never_waited_for() -> None:
    times = learned(r1=1, r2=1, r4=1, r8=1)
    assert measured([1], times, callers=Callers(away=7, lag_ns=1, free_ns=0)) == Run(1)


def test_a_size_never_tried_is_hoped_to_cost_no_more_so_that_it_is_tried() -> None:
    times = learned(r1=10, r2=10)
    assert measured([1, 1], times, callers=Callers(away=2, lag_ns=1 * MS, free_ns=0)) == Wait(4 * MS)


def test_a_preferred_size_leaves_at_once() -> None:
    assert decide([1, 1, 1, 1], [0] * 4, TRITON, RowTimes(), NOBODY, 0) == Run(4)
    assert decide([2, 2, 4], [0] * 3, TRITON, RowTimes(), NOBODY, 0) == Run(3)


def test_the_largest_preferred_size_wins() -> None:
    assert decide([1] * 9, [0] * 9, TRITON, RowTimes(), NOBODY, 0) == Run(8)
    assert decide([1] * 7, [0] * 7, TRITON, RowTimes(), NOBODY, 0) == Run(4)


def test_another_size_waits_until_the_oldest_has_waited_the_configured_delay() -> None:
    assert decide([1, 1], [5 * MS, 2 * MS], TRITON, RowTimes(), NOBODY, 6 * MS) == Wait(12 * MS)
    assert decide([1, 1], [5 * MS, 2 * MS], TRITON, RowTimes(), NOBODY, 12 * MS) == Run(2)


def test_a_batch_to_which_the_next_request_cannot_be_added_leaves_at_once() -> None:
    assert decide([3, 3, 3], [0, 0, 0], TRITON, RowTimes(), NOBODY, 0) == Run(2)


def test_without_preferred_sizes_the_maximum_is_the_preferred_one() -> None:
    limits = Limits(rows_max=3, delay_ns_max=10 * MS)
    assert decide([1, 1, 1], [0] * 3, limits, RowTimes(), NOBODY, 0) == Run(3)
    assert decide([1, 1], [0] * 2, limits, RowTimes(), NOBODY, 0) == Wait(10 * MS)


def test_preferred_sizes_without_a_delay_never_keep_anybody() -> None:
    limits = Limits(rows_max=8, preferred_rows=(4,), delay_ns_max=0)
    assert decide([1, 1], [0] * 2, limits, RowTimes(), NOBODY, 0) == Run(2)


def test_a_configured_delay_does_not_depend_on_what_was_measured() -> None:
    for times in (RowTimes(), FIXED_COST, LINEAR):
        for callers in (NOBODY, Callers(9, 1, 0)):
            assert decide([1, 1], [0, 0], TRITON, times, callers, 0) == Wait(10 * MS)


queued = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10**9)), min_size=1, max_size=50)
observed = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 10**10)), max_size=80)
anyone = st.builds(Callers, away=st.integers(0, 99), lag_ns=st.integers(0, 10**8), free_ns=st.integers(0, 10**9))
any_limits = st.integers(0, 64).flatmap(
    lambda rows_max: st.builds(
        Limits,
        rows_max=st.just(rows_max),
        preferred_rows=st.sets(st.integers(1, max(rows_max, 1)), max_size=4).map(lambda sizes: tuple(sorted(sizes))),
        delay_ns_max=st.none() | st.integers(0, 10**9),
    )
)


def times_after(runs: Sequence[tuple[int, int]]) -> RowTimes:
    times = RowTimes()
    for rows, elapsed in runs:
        times.observe(rows, elapsed)
    return times


@given(queued, any_limits, observed, anyone, st.integers(0, 2 * 10**9))
def test_a_batch_never_exceeds_the_limit_unless_one_request_does_by_itself(
    waiting: list[tuple[int, int]], limits: Limits, runs: list[tuple[int, int]], callers: Callers, now: int
) -> None:
    rows = [one for one, _ in waiting]
    decision = decide(rows, [arrival for _, arrival in waiting], limits, times_after(runs), callers, now)
    if isinstance(decision, Run):
        assert 1 <= decision.requests <= len(rows)
        assert decision.requests == 1 or sum(rows[: decision.requests]) <= limits.rows_max


@given(queued, any_limits, observed, anyone, st.integers(0, 2 * 10**9))
def test_a_wait_lies_in_the_future_and_ends(
    waiting: list[tuple[int, int]], limits: Limits, runs: list[tuple[int, int]], callers: Callers, now: int
) -> None:
    rows, arrivals = [one for one, _ in waiting], [arrival for _, arrival in waiting]
    times = times_after(runs)
    decision = decide(rows, arrivals, limits, times, callers, now)
    if isinstance(decision, Wait):
        assert decision.until_ns > now
        if limits.delay_ns_max is not None:
            assert decision.until_ns == min(arrivals) + limits.delay_ns_max
        else:
            assert decision.until_ns <= callers.free_ns + WAIT_SHARE_MAX * times.estimate_ns(sum(rows))
        later = decide(rows, arrivals, limits, times, callers, decision.until_ns)
        assert isinstance(later, Run), "whoever waited until then leaves, even if nobody came"


@given(queued, any_limits, observed, anyone, st.integers(0, 2 * 10**9))
def test_the_same_question_has_the_same_answer(
    waiting: list[tuple[int, int]], limits: Limits, runs: list[tuple[int, int]], callers: Callers, now: int
) -> None:
    rows, arrivals = [one for one, _ in waiting], [arrival for _, arrival in waiting]
    times = times_after(runs)
    first = decide(rows, arrivals, limits, times, callers, now)
    assert decide(rows, arrivals, limits, times, callers, now) == first
    assert decide(rows, arrivals, limits, times_after(runs), callers, now) == first


@given(queued, observed, st.integers(0, 10**9), st.integers(0, 2 * 10**9))
def test_nobody_waits_by_choice_once_all_callers_are_back(
    waiting: list[tuple[int, int]], runs: list[tuple[int, int]], lag: int, now: int
) -> None:
    rows, arrivals = [one for one, _ in waiting], [arrival for _, arrival in waiting]
    callers = Callers(away=0, lag_ns=lag, free_ns=now)
    assert isinstance(decide(rows, arrivals, MEASURED, times_after(runs), callers, now), Run)


@pytest.mark.parametrize("requests", [1, 7, 64, 300])
def test_everyone_leaves_in_the_end(requests: int) -> None:
    left = [1] * requests
    while left:
        decision = measured(left, FIXED_COST)
        assert isinstance(decision, Run)
        del left[: decision.requests]
