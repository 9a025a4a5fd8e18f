"""Whose turn it is: nothing is given out twice, nobody is passed over for what they wait for."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.turns import Claim, grants, next_turn

names = st.sampled_from("abc")
counts = st.dictionaries(names, st.integers(1, 3), max_size=3)
claims = st.lists(st.tuples(st.integers(0, 3), counts), max_size=6).map(
    lambda told: [Claim(turn, order, wants) for order, (turn, wants) in enumerate(told)]
)
free = st.dictionaries(names, st.integers(0, 3))


def test_the_lowest_turn_is_served_first_and_of_equals_who_asked_first() -> None:
    one = {"a": 1}
    third, first, second = Claim(2, 1, one), Claim(1, 2, one), Claim(1, 3, one)
    assert grants([third, first, second], {"a": 2}) == [first, second]


def test_who_needs_nothing_shared_is_never_held_up() -> None:
    assert grants([Claim(0, 1, {"a": 1}), Claim(9, 2, {})], {"a": 0}) == [Claim(9, 2, {})]


def test_what_the_next_in_turn_waits_for_is_not_taken_by_those_behind() -> None:
    large, small, other = Claim(0, 1, {"a": 2, "b": 1}), Claim(1, 2, {"a": 1}), Claim(1, 3, {"c": 1})
    assert grants([large, small, other], {"a": 1, "b": 1, "c": 1}) == [other]


@given(claims, free)
def test_no_more_is_given_out_than_there_is(asking: list[Claim], there_is: dict[str, int]) -> None:
    chosen = grants(asking, there_is)
    for name in "abc":
        assert sum(claim.resources.get(name, 0) for claim in chosen) <= there_is.get(name, 0) or not any(
            name in claim.resources for claim in chosen
        )


@given(claims, free)
def test_who_waits_is_held_up_by_nobody_who_comes_later(asking: list[Claim], there_is: dict[str, int]) -> None:
    chosen = grants(asking, there_is)
    for waiting in (claim for claim in asking if claim not in chosen):
        behind = [c for c in chosen if (c.turn, c.order) > (waiting.turn, waiting.order)]
        assert not any(claim.resources.keys() & waiting.resources.keys() for claim in behind)


@given(claims)
def test_the_first_in_turn_goes_whenever_all_is_free(asking: list[Claim]) -> None:
    if asking:
        first = min(asking, key=lambda claim: (claim.turn, claim.order))
        assert first in grants(asking, dict.fromkeys("abc", 3)), "so somebody always runs: no deadlock"


def test_coming_late_earns_nothing() -> None:
    assert next_turn(3, 10) == 10
    assert next_turn(12, 10) == 12
