import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.percentiles import inflation, percentiles, requests_needed


@pytest.mark.parametrize(("percent", "needed"), [(90, 64), (99, 662), (99.9, 6636)])
def test_samples_must_be_as_large_as_mlperf_wants(percent, needed):
    assert requests_needed(percent) == needed


def test_a_percentile_is_stated_from_the_first_sample_that_supports_it():
    values = np.random.default_rng(0).exponential(1, 662)
    assert percentiles(values[:661], (99,))[0].value is None
    assert percentiles(values, (99,))[0].value == pytest.approx(np.sort(values)[655])


@given(st.lists(st.floats(0, 1e6), min_size=64, max_size=400), st.sampled_from([10.0, 50.0, 75.0, 90.0]))
def test_a_percentile_is_one_of_the_values_within_its_interval(values, percent):
    (found,) = percentiles(np.array(values), (percent,))
    assert found.value in values
    assert found.low <= found.value
    assert found.high is None or found.value <= found.high


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_intervals_cover_the_truth_as_often_as_they_say(percent):
    random, truth, covered = np.random.default_rng(7), -math.log(1 - percent / 100), 0
    for _ in range(300):
        (found,) = percentiles(random.exponential(1, 1000), (percent,))
        covered += found.low <= truth <= (found.high or math.inf)
    assert covered >= 0.92 * 300


def test_requests_that_resemble_their_neighbours_widen_the_interval():
    random = np.random.default_rng(3)
    alone, alike = random.exponential(1, 8000), np.repeat(random.exponential(1, 400), 20)
    assert inflation(alone > 2) == 1
    assert inflation(alike > 2) > 5
    covered = 0
    for _ in range(100):
        (found,) = percentiles(np.repeat(random.exponential(1, 400), 20), (90,))
        covered += found.low <= -math.log(0.1) <= (found.high or math.inf)
    assert covered >= 85  # taken for independent, it would be about 35
