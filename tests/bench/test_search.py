import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.knee import knee
from farthing.bench.search import TRIALS_MAX, Found, Limits, Trial, decide
from farthing.bench.targets import Verdict


def search(limits, measure):
    trials = []
    while True:
        step = decide(trials, limits)
        if isinstance(step, Found):
            return step, trials
        assert limits.load_min <= step.load <= limits.load_max
        trials.append(Trial(load=step.load, verdict=measure(step.load)))
        assert len(trials) <= TRIALS_MAX


@given(st.floats(1, 1e5), st.floats(0.02, 0.5))
def test_the_highest_load_is_found_to_the_resolution(truth, resolution):
    found, _ = search(
        Limits(load_min=1, load_max=1e5, resolution=resolution),
        lambda load: Verdict.MET if load <= truth else Verdict.MISSED,
    )
    assert found.load <= truth
    assert found.missed is None or truth < found.missed <= found.load * (1 + resolution) * 1.000001


@given(st.integers(1, 300))
def test_whole_loads_are_found_exactly(truth):
    limits = Limits(load_min=1, load_max=300, resolution=0.0, is_whole=True)
    found, trials = search(limits, lambda load: Verdict.MET if load <= truth else Verdict.MISSED)
    assert found.load == truth
    assert all(trial.load == int(trial.load) for trial in trials)


@given(st.integers(0, 999))
def test_noise_ends_the_search_near_the_truth(seed):
    chance = random.Random(seed)

    def measure(load):
        nearness = math.log(load / 1000)
        if abs(nearness) < 0.1 and chance.random() < 0.8:
            return Verdict.UNSURE
        return Verdict.MET if nearness < 0 else Verdict.MISSED

    found, _ = search(Limits(load_min=10, load_max=1e5), measure)
    assert 500 <= found.load <= 1000


def test_nothing_that_meets_the_target_is_said():
    found, _ = search(Limits(load_min=1, load_max=64), lambda load: Verdict.MISSED)
    assert found.load is None
    assert "not even" in found.reason


def test_the_highest_load_allowed_is_enough():
    found, _ = search(Limits(load_min=1, load_max=64), lambda load: Verdict.MET)
    assert (found.load, found.missed) == (64, None)


@pytest.mark.parametrize(
    ("rates", "latencies", "at"),
    [((100, 190, 300, 310), (1, 1.05, 1.3, 2.6), 2), ((1, 2, 3), (1, 1, 1), None), ((1, 2), (1, 9), None)],
)
def test_the_knee_is_where_power_is_highest(rates, latencies, at):
    assert knee(rates, latencies) == at
