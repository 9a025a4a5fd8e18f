"""What is learned of a model's speed, and which batch size is aimed for."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.row_times import COMPANY_WAITING, RETRY_RUNS, RUNS_KNOWN, SIZES_MAX, RowTimes
from farthing.batching.trial import RUNS_MAX, RUNS_MIN, TURN_RUNS

MS = 1_000_000


def run_at_aim(times: RowTimes, cost_ns: Callable[[int], float], runs: int, limit: int = 1024) -> list[int]:
    """A busy model: each run is as large as aimed for. Answers the sizes."""
    sizes = []
    for _ in range(runs):
        sizes.append(times.best_rows(limit))
        times.observe(sizes[-1], int(cost_ns(sizes[-1])))
    return sizes


def test_nothing_is_known_at_first() -> None:
    times = RowTimes()
    assert not times
    assert times.estimate_ns(5) == times.hoped_ns(5) == 0
    assert times.best_rows(8) == 1


def test_sizes_double_while_that_pays() -> None:
    sizes = run_at_aim(RowTimes(), lambda rows: 10 * MS, 40, limit=64)
    assert sizes[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert sizes[-1] == 64


def test_growth_stops_for_a_model_for_which_batching_does_not_pay() -> None:
    times = RowTimes()
    sizes = run_at_aim(times, lambda rows: 10 * MS * rows, 90)
    assert max(sizes) == 2
    assert set(sizes[-20:]) == {1}


def test_growth_stops_where_rows_per_second_stop_growing() -> None:
    times = RowTimes()
    run_at_aim(times, lambda rows: MS * (5 + 0.1 * rows if rows <= 16 else 0.6 * rows), 60)
    assert times.best_rows(1024) == 16


def test_what_a_run_costs_on_its_way_speaks_for_larger_batches() -> None:
    def cost_ns(rows: int) -> float:
        return MS * 10 * rows * (0.99 if rows == 2 else 1.0)  # 1 % a row: not worth a larger batch by itself

    alone, on_its_way = RowTimes(), RowTimes()
    for _ in range(30):
        on_its_way.observe_hand_over(MS // 2)
    for times in (alone, on_its_way):
        run_at_aim(times, cost_ns, RETRY_RUNS // 2)
    assert alone.best_rows(64) == 1
    assert on_its_way.best_rows(64) == 2


def test_hand_overs_count_by_their_mean_whatever_one_of_them_was() -> None:
    times = RowTimes()
    for number in range(400):
        times.observe_hand_over(MS * (1 + number % 3))
    assert times.hand_over_ns == pytest.approx(2 * MS, rel=0.1)
    times.observe_hand_over(10**6 * MS)
    assert times.hand_over_ns <= 3.1 * MS


def test_the_limit_is_never_exceeded() -> None:
    assert max(run_at_aim(RowTimes(), lambda rows: 10 * MS, 60, limit=12)) == 12


def test_noise_does_not_move_the_best_size() -> None:
    chance = random.Random(3)
    times = RowTimes()
    # Half of all runs are disturbed, up to three times as long.
    run_at_aim(times, lambda rows: MS * (3 + rows) * (1 + 2 * max(0.0, chance.uniform(-1, 1))), 400, limit=32)
    assert times.best_rows(32) in (16, 32)
    assert times.estimate_ns(times.best_rows(32)) == pytest.approx(MS * (3 + times.best_rows(32)), rel=0.25)


def test_a_size_condemned_while_the_machine_was_busy_is_tried_again() -> None:
    times = RowTimes()
    sizes = run_at_aim(times, lambda rows: 10 * MS if rows == 1 else 50 * MS, RETRY_RUNS, limit=8)
    assert set(sizes[-20:]) == {1}
    sizes = run_at_aim(times, lambda rows: 10 * MS, 2 * RETRY_RUNS, limit=8)
    assert set(sizes[-20:]) == {8}


def test_trying_again_costs_few_runs() -> None:
    even = run_at_aim(RowTimes(), lambda rows: 10 * MS * rows, 10 * RETRY_RUNS)
    assert sum(size > 1 for size in even) <= RUNS_KNOWN + 11 * TURN_RUNS * RUNS_MAX
    harmful = run_at_aim(RowTimes(), lambda rows: 20 * MS * rows if rows > 1 else 10 * MS, 10 * RETRY_RUNS)
    assert sum(size > 1 for size in harmful) <= RUNS_KNOWN + 11 * TURN_RUNS * RUNS_MIN


@pytest.mark.parametrize(("hand_over_ms", "when_busy"), [(0.5, 2), (0.1, 1)])
def test_while_many_wait_two_batches_share_a_way_that_is_worth_saving(hand_over_ms: float, when_busy: int) -> None:
    times = RowTimes()
    for _ in range(30):
        times.observe_hand_over(int(hand_over_ms * MS))
    run_at_aim(times, lambda rows: 10 * MS * rows * (1 + 0.02 * (rows == 2)), RETRY_RUNS // 2)
    assert times.best_rows(64) == times.best_rows(64, COMPANY_WAITING - 1) == 1
    assert times.best_rows(64, COMPANY_WAITING) == when_busy
    assert times.best_rows(1, 99) == 1
    assert (times.part_rows(1), times.part_rows(2), times.part_rows(3)) == (1, 1, 3)


def test_what_is_as_fast_in_one_run_is_not_computed_in_two() -> None:
    times = RowTimes()
    run_at_aim(times, lambda rows: 10 * MS * rows * (1 - 0.01 * (rows == 2)), RETRY_RUNS // 2)
    assert times.best_rows(64) == 1
    assert times.part_rows(2) == 2


def test_times_follow_a_model_that_became_faster_at_once_and_slower_slowly() -> None:
    times = RowTimes()
    for _ in range(5):
        times.observe(1, 10 * MS)
    times.observe(1, 30 * MS)
    assert times.estimate_ns(1) < 10.5 * MS, "one disturbed run says little"
    for _ in range(4):
        times.observe(1, 5 * MS)
    assert times.estimate_ns(1) < 6 * MS
    for _ in range(RETRY_RUNS):
        times.observe(1, 20 * MS)
    assert times.estimate_ns(1) > 15 * MS, "but it is believed in the end"


def test_between_sizes_times_are_interpolated_and_beyond_them_scaled() -> None:
    times = RowTimes()
    times.observe(2, 20 * MS)
    times.observe(4, 30 * MS)
    assert times.estimate_ns(1) == 20 * MS
    assert times.estimate_ns(3) == 25 * MS
    assert times.estimate_ns(8) == 60 * MS
    assert times.hoped_ns(8) == 30 * MS
    assert times.hoped_ns(3) == 25 * MS


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(-5, 10**12)), min_size=1, max_size=300), st.integers(1, 5000)
)
def test_whatever_was_observed_the_table_is_small_and_the_aim_within_the_limit(
    runs: list[tuple[int, int]], limit: int
) -> None:
    times = RowTimes()
    for rows, elapsed in runs:
        times.observe(rows, elapsed)
        assert 1 <= times.best_rows(limit) <= limit
        assert times.best_rows(limit) == times.best_rows(limit)
    table = times.table()
    assert list(table) == sorted(table)
    assert len(table) <= SIZES_MAX + 14, "a full table takes only powers of two"
    assert all(time_ns > 0 for time_ns in table.values())
    assert times.estimate_ns(limit) >= 0
