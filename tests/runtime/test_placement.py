"""Who goes when a model must come: worked out by hand, then held to its promises on made-up fleets."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.runtime.placement import LOOK_AGAIN_NS, Load, Refuse, Resident, Wait, place


def held(name: str, size: int, used: int, **more: int | bool) -> Resident:
    return Resident(key=(name, 1), bytes=size, used_ms=used, **more)  # type: ignore[arg-type]


def test_nobody_goes_while_there_is_room() -> None:
    assert place([held("a", 60, 1)], needed_bytes=40, budget_bytes=100, now_ns=0) == Load(())


def test_the_one_used_longest_ago_goes() -> None:
    fleet = [held("new", 50, 9), held("old", 50, 1)]
    assert place(fleet, needed_bytes=10, budget_bytes=100, now_ns=0) == Load((("old", 1),))


def test_no_more_go_than_must() -> None:
    fleet = [held("small", 10, 1), held("large", 80, 2), held("new", 10, 3)]
    assert place(fleet, needed_bytes=80, budget_bytes=100, now_ns=0) == Load((("large", 1),))


def test_busy_and_fresh_models_are_waited_for() -> None:
    busy = [held("a", 100, 1, is_busy=True)]
    assert place(busy, needed_bytes=1, budget_bytes=100, now_ns=5) == Wait(5 + LOOK_AGAIN_NS)
    fresh = [held("a", 100, 1, stays_until_ns=77)]
    assert place(fresh, needed_bytes=1, budget_bytes=100, now_ns=5) == Wait(77)
    assert place(fresh, needed_bytes=1, budget_bytes=100, now_ns=77) == Load((("a", 1),))


def test_what_can_never_fit_is_refused_with_what_is_left() -> None:
    assert place([], needed_bytes=101, budget_bytes=100, now_ns=0) == Refuse(100)
    pinned = [held("a", 70, 1, is_pinned=True)]
    assert place(pinned, needed_bytes=40, budget_bytes=100, now_ns=0) == Refuse(30)


fleets = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 20)), max_size=12
)


@given(fleets, st.integers(0, 120), st.integers(0, 200), st.integers(0, 20))
def test_whoever_goes_is_idle_and_the_rest_fits_and_nobody_goes_for_nothing(
    fleet: list[tuple[int, int, bool, bool, int]], needed: int, budget: int, now: int
) -> None:
    residents = [
        held(f"m{place}", size, used, is_busy=busy, is_pinned=pinned, stays_until_ns=until)
        for place, (size, used, busy, pinned, until) in enumerate(fleet)
    ]
    by_key = {one.key: one for one in residents}
    decided = place(residents, needed_bytes=needed, budget_bytes=budget, now_ns=now)
    if isinstance(decided, Load):
        gone = [by_key[key] for key in decided.unload]
        assert not any(one.is_busy or one.is_pinned or one.stays_until_ns > now for one in gone)
        left = sum(one.bytes for one in residents) - sum(one.bytes for one in gone)
        assert left + needed <= budget
        assert all(left + one.bytes + needed > budget for one in gone), "each of them had to go"
    elif isinstance(decided, Wait):
        assert decided.until_ns > now
        idle = [one for one in residents if not one.is_busy and not one.is_pinned and one.stays_until_ns <= now]
        assert sum(one.bytes for one in residents) - sum(one.bytes for one in idle) + needed > budget
    else:
        assert needed + sum(one.bytes for one in residents if one.is_pinned) > budget
