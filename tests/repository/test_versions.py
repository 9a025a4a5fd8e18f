"""Which versions are served."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.config.model import parse_model_config
from farthing.repository import versions_to_serve

NUMBERS = st.lists(st.integers(1, 50), max_size=10)


def policy(said: object):  # type: ignore[no-untyped-def]
    return parse_model_config({"version_policy": said}).version_policy


def test_the_policy_picks() -> None:
    numbers = [3, 1, 10, 2]
    assert versions_to_serve(policy(None), numbers) == (10,)
    assert versions_to_serve(policy(2), numbers) == (3, 10)
    assert versions_to_serve(policy(0), numbers) == (10,)
    assert versions_to_serve(policy("all"), numbers) == (1, 2, 3, 10)
    assert versions_to_serve(policy([2, 7]), numbers) == (2,)
    assert versions_to_serve(policy("all"), []) == ()


@given(NUMBERS, st.integers(1, 20))
def test_latest_are_the_highest(numbers: list[int], count: int) -> None:
    picked = versions_to_serve(policy(count), numbers)
    left = set(numbers) - set(picked)
    assert len(picked) == min(count, len(set(numbers)))
    assert not left or not picked or max(left) < min(picked)
