import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.comparison import Side, Verdict, order, ratio

RATES = st.lists(st.floats(0.1, 1e5), min_size=3, max_size=12)


@given(RATES)
def test_the_same_rates_show_no_difference(rates):
    found = ratio(rates, rates)
    assert found.verdict is Verdict.NONE
    assert found.value == pytest.approx(1)


@given(RATES, st.floats(1.01, 5))
def test_a_difference_in_every_round_is_seen_and_is_symmetric(rates, faster):
    found, mirrored = ratio([rate * faster for rate in rates], rates), ratio(rates, [rate * faster for rate in rates])
    assert (found.verdict, mirrored.verdict) == (Verdict.HIGHER, Verdict.LOWER)
    assert found.value == pytest.approx(1 / mirrored.value)


def test_drift_that_both_share_hides_nothing():
    drift = np.geomspace(1, 3, 6)
    assert (
        ratio((110 * drift).tolist(), (100 * drift * [1, 1.01, 0.99, 1, 1.01, 0.99]).tolist()).verdict is Verdict.HIGHER
    )


def test_false_alarms_are_as_rare_as_they_should_be():
    random = np.random.default_rng(5)
    alarms = sum(
        ratio(random.lognormal(0, 0.1, 6).tolist(), random.lognormal(0, 0.1, 6).tolist()).verdict is not Verdict.NONE
        for _ in range(400)
    )
    assert alarms <= 0.08 * 400


def test_two_rounds_tell_nothing():
    assert ratio([2, 2], [1, 1]).verdict is Verdict.TOO_FEW


def test_sides_take_turns_at_being_first():
    assert order(3) == [Side.A, Side.B, Side.B, Side.A, Side.A, Side.B]
