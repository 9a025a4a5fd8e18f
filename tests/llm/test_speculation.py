"""Drafts: what is guessed, and when it pays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.llm.speculation import (
    CHANCE_FIRST,
    DRAFT_TOKENS_MAX,
    NGRAM,
    Drafter,
    StepTimes,
    chance_needed,
    look_up,
    worth_drafting,
)

MS = 1_000_000


def times_of(cost: dict[int, float]) -> StepTimes:
    times = StepTimes()
    for rows, ms in cost.items():
        times.observe(rows, int(ms * MS))
    return times


DENSE = times_of({1: 3.0, 9: 4.3, 32: 7.0, 40: 8.2})
"""About SmolLM2-135M on two cores."""


def test_what_followed_last_time_is_guessed() -> None:
    history = np.array([1, 2, 3, 4, 5, 9, 1, 2, 3, 7, 8, 9, 1, 2, 3], np.int32)
    assert look_up(history, 4) == [7, 8, 9, 1]
    assert look_up(history[:9], 4) == [4, 5, 9, 1]
    assert look_up(history[:6], 4) == []
    assert look_up(np.array([1, 2, 3], np.int32), 4) == []


def test_a_circle_is_followed_beyond_its_end() -> None:
    assert look_up(np.array([7, 7, 7, 7, 7], np.int32), 6) == [7] * 6
    assert look_up(np.array([1, 2, 1, 2, 1, 2], np.int32), 5) == [1, 2, 1, 2, 1]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 8))
def test_a_draft_is_what_a_plain_search_finds(ids: list[int], tokens: int) -> None:
    expected: list[int] = []
    for start in range(len(ids) - NGRAM - 1, -1, -1):
        if ids[start : start + NGRAM] == ids[-NGRAM:]:
            whole = list(ids)
            for at in range(tokens):
                whole.append(whole[start + NGRAM + at])
            expected = whole[len(ids) :]
            break
    assert look_up(np.array(ids, np.int32), tokens) == expected


def test_alone_a_draft_pays_even_if_it_rarely_stands() -> None:
    assert worth_drafting(0.9, 1, 1, DENSE, 8) == 8
    assert 1 <= worth_drafting(0.3, 1, 1, DENSE, 8) <= 3
    assert worth_drafting(0.02, 1, 1, DENSE, 8) == 0


def test_among_many_a_draft_must_nearly_always_stand() -> None:
    assert worth_drafting(0.5, 32, 32, DENSE, 8) == 0
    assert worth_drafting(0.95, 32, 32, DENSE, 8) >= 1


def test_where_a_row_costs_what_a_token_costs_nobody_drafts() -> None:
    times = times_of({1: 1.0, 64: 64.0})
    assert all(worth_drafting(0.99, rows, rows, times, 8) == 0 for rows in (1, 7, 32))


@given(
    st.floats(0.0, 1.0),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 64), st.floats(0.1, 50.0)), min_size=1, max_size=8),
)
def test_who_is_below_the_chance_needed_would_draft_nothing(
    chance: float, rows: int, cost: list[tuple[int, float]]
) -> None:
    times = times_of(dict(cost))
    if chance < chance_needed(rows, rows, times):
        assert worth_drafting(chance, rows, rows, times, DRAFT_TOKENS_MAX) == 0


def test_who_guesses_wrong_stops_guessing_and_tries_again_later() -> None:
    drafter = Drafter()
    ids = [1, 2, 3] * 20
    assert drafter.draft(ids, 8, 32, 32, times_of({32: 7.0, 40: 7.5})) != []
    for _ in range(20):
        drafter.fared(8, 0)
    assert drafter.chance < 0.05
    drafter.rest(60)
    assert drafter.chance == CHANCE_FIRST
    assert drafter.draft(ids, 8, 1, 1, DENSE) == []
    assert drafter.draft([*ids, *[1, 2, 3] * 6], 8, 1, 1, DENSE) != []


def test_times_follow_the_fast_steps_and_are_interpolated() -> None:
    times = times_of({1: 3.0, 9: 4.6})
    assert times.estimate_ns(5) == 3.8 * MS
    assert times.estimate_ns(100) == 4.6 * MS
    for _ in range(10):
        times.observe(1, 100 * MS)
        times.observe(1, 3 * MS)
    assert times.estimate_ns(1) < 4 * MS
