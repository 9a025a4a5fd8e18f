import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.arrivals import OpenLoad, Process, arrivals
from farthing.types.errors import InvalidInput


@given(
    rate=st.floats(0.5, 300),
    end=st.floats(0.5, 300) | st.none(),
    process=st.sampled_from(Process),
    burstiness=st.floats(0.05, 20),
    seed=st.integers(0, 9),
)
def test_times_ascend_within_the_run_and_are_drawn_from_the_seed(rate, end, process, burstiness, seed):
    load = OpenLoad(rate=rate, rate_end=end, process=process, burstiness=burstiness)
    times = arrivals(load, 3.0, seed)
    assert np.all(np.diff(times) >= 0)
    assert times.size == 0 or (times[0] >= 0 and times[-1] < 3.0 + 1e-6)
    np.testing.assert_array_equal(times, arrivals(load, 3.0, seed))


@pytest.mark.parametrize(
    ("process", "burstiness", "cv"), [("constant", 1, 0), ("poisson", 1, 1), ("gamma", 0.25, 2), ("gamma", 4, 0.5)]
)
def test_gaps_have_the_mean_and_the_variation_they_should(process, burstiness, cv):
    times = arrivals(OpenLoad(rate=1000, process=Process(process), burstiness=burstiness), 100, 1)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.03)


def test_a_ramp_rises_straight():
    times = arrivals(OpenLoad(rate=100, rate_end=300, process=Process.CONSTANT), 10, 0)
    counts, _ = np.histogram(times, bins=10, range=(0, 10))
    np.testing.assert_allclose(counts, np.arange(110, 300, 20), atol=1.01)


def test_a_load_without_end_is_refused():
    with pytest.raises(InvalidInput, match="at most 20,000,000"):
        arrivals(OpenLoad(rate=1e6), 1e3, 0)
