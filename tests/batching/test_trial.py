"""Two batch sizes take turns, and the one that pays wins whatever the machine does meanwhile."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.trial import GAIN_MIN, RUNS_MAX, RUNS_MIN, TURN_RUNS, Trial

MS = 1_000_000
FEWEST, MOST = 2 * TURN_RUNS * RUNS_MIN, 2 * TURN_RUNS * RUNS_MAX
"""Runs of a trial, those included that do not count."""


def hold(trial: Trial, cost_ms: dict[int, float], hand_over_ms: float = 0.0) -> tuple[int, int]:
    """The winner, and the runs it took."""
    for run in range(1, MOST + 1):
        rows = trial.next_rows
        trial.observe(rows, int(cost_ms[rows] * MS))
        if winner := trial.winner(hand_over_ms * MS):
            return winner, run
    raise AssertionError("a trial ends")


def test_the_sizes_take_turns_and_only_the_last_run_of_a_turn_counts() -> None:
    trial = Trial(2, 4)
    turns: list[int] = []
    while not trial.winner(0):
        is_first = turns[-1:] != [trial.next_rows]
        turns.append(trial.next_rows)
        trial.observe(trial.next_rows, 1000 * MS if is_first and turns[-1] == 4 else 10 * MS)
    assert turns == [4, 4, 2, 2] * RUNS_MIN
    assert trial.winner(0) == 4
    assert trial.gain(0) == pytest.approx(1.0)


def test_what_is_clear_is_decided_after_few_runs_and_what_is_not_after_more() -> None:
    assert hold(Trial(1, 2), {1: 10, 2: 10}) == (2, FEWEST)
    assert hold(Trial(1, 2), {1: 10, 2: 40}) == (1, FEWEST)
    assert hold(Trial(1, 2), {1: 10, 2: 19}) == (2, MOST)


def test_the_larger_size_must_pay_and_the_hand_over_counts_for_it() -> None:
    cost = {1: 10, 2: 20 / (1 + GAIN_MIN / 2)}
    assert hold(Trial(1, 2), cost)[0] == 1
    assert hold(Trial(1, 2), cost, hand_over_ms=1)[0] == 2


def test_a_machine_that_drifts_does_not_decide() -> None:
    chance = random.Random(1)
    for _ in range(50):
        trial, drift, winner = Trial(1, 2), chance.uniform(0.97, 1.03), 0
        slower = 1.0
        while not winner:
            slower *= drift
            rows = trial.next_rows
            trial.observe(rows, int(MS * slower * (10 if rows == 1 else 18)))
            winner = trial.winner(0)
        assert winner == 2


@pytest.mark.parametrize("rows", [3, 8])
def test_runs_of_other_sizes_are_of_no_interest(rows: int) -> None:
    trial = Trial(2, 4)
    for _ in range(100):
        trial.observe(rows, MS)
    assert trial.winner(0) == 0


@given(st.lists(st.integers(1, 10**12), min_size=MOST, max_size=MOST), st.floats(0, 1e9))
def test_every_trial_has_a_winner(elapsed: list[int], hand_over_ns: float) -> None:
    trial = Trial(4, 5)
    for one in elapsed:
        trial.observe(trial.next_rows, one)
    assert trial.winner(hand_over_ns) in (4, 5)
