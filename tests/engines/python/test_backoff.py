"""Restarts: soon after an accident, ever later for a process that cannot live."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.python.backoff import Policy, Restart, after_death

POLICY = Policy(first_delay_s=0.5, delay_max_s=4.0, steady_s=60.0)


def test_each_death_in_a_row_doubles_the_wait_up_to_the_limit() -> None:
    deaths, waits = 0, []
    for _ in range(5):
        restart = after_death(deaths, started_s=100.0, died_s=101.0, policy=POLICY)
        deaths = restart.deaths
        waits.append(restart.at_s - 101.0)
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_long_life_clears_the_record() -> None:
    assert after_death(7, started_s=0.0, died_s=60.0, policy=POLICY) == Restart(deaths=1, at_s=60.5)
    assert after_death(7, started_s=0.0, died_s=59.9, policy=POLICY).deaths == 8


@given(st.integers(0, 10**6), st.floats(0, 1e9), st.floats(0, 1e6))
def test_the_wait_is_always_between_the_first_and_the_longest(deaths: int, started_s: float, lived_s: float) -> None:
    died_s = started_s + lived_s
    restart = after_death(deaths, started_s=started_s, died_s=died_s, policy=POLICY)
    assert died_s + POLICY.first_delay_s <= restart.at_s <= died_s + POLICY.delay_max_s
    assert 1 <= restart.deaths <= deaths + 1
