"""Ways to share a machine: as planned first, none twice, not too many; what is good is fair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.race import Turn
from farthing.optimizer.sharing import WAYS_MAX, Shape, as_turn, goodness, name_of, shares, ways_to_share

shape = st.builds(Shape, threads=st.sampled_from([1, 2, 4]), instances=st.sampled_from([1, 2]), rows=st.integers(1, 64))


def turn(rate: float, ms: float = 1) -> Turn:
    return Turn(rows_per_s=rate, run_ms_p99=ms, runs=10)


@given(st.lists(shape, min_size=2, max_size=6), st.sampled_from([1, 2, 4, 8]))
def test_ways_begin_with_the_plans_and_are_few_and_different(planned: list[Shape], cores: int) -> None:
    ways = ways_to_share(tuple(planned), cores)
    assert ways[0] == tuple(planned)
    assert len(ways) <= WAYS_MAX
    assert len(set(ways)) == len(ways)
    assert all(len(way) == len(planned) for way in ways)


def test_two_models_on_two_cores_are_tried_fenced_in_and_side_by_side() -> None:
    wide = Shape(threads=2, instances=1, rows=8)
    names = {name_of(way) for way in ways_to_share((wide, wide), 2)}
    assert "1 x 1 thread, 8 rows | 1 x 1 thread, 8 rows" in names
    assert "1 x 2 threads, 8 rows | 1 x 2 threads, 8 rows" in names
    assert "1 x 1 thread, 2 rows | 2 x 1 thread, 8 rows" in names


def test_nobody_is_starved_for_the_others_sake() -> None:
    assert goodness([50, 50], [100, 100]) == pytest.approx(0.5)
    assert goodness([95, 10], [100, 100]) < goodness([45, 45], [100, 100])


def test_the_model_that_is_nearest_to_its_limit_decides() -> None:
    seen = as_turn([turn(50, 4), turn(50, 9)], [100, 100], [10, 20])
    assert seen.run_ms_p99 * 2 == pytest.approx(0.9)
    assert as_turn([turn(1), turn(1)], [1, 1], [None, None]).run_ms_p99 == 0


def test_what_models_cost_adds_up_to_the_machine() -> None:
    assert shares([0.6, 0.2]) == pytest.approx([0.75, 0.25])
