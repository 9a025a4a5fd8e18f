"""Callers who come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.returning import LAG_NS_MAX, Returning


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 2 * LAG_NS_MAX), st.integers(0, LAG_NS_MAX))
def test_many_who_come_at_once_are_as_many_who_come_one_by_one(away: int, come: int, now: int, lag: int) -> None:
    one, other = Returning(), Returning()
    for returning in (one, other):
        returning.away, returning.lag_ns = away, float(lag)
    one.all_came(come, now)
    for _ in range(come):
        if other.away:
            other.came(now)
    assert one.away == other.away == max(0, away - come)
    assert one.lag_ns == pytest.approx(other.lag_ns, rel=1e-9, abs=1e-3)
    assert other.callers(3).away == max(0, other.away - 3)
