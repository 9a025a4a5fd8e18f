"""Who goes on, and who wins: on simulated machines whose noise is known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.race import ROUND_SECONDS, Standing, Turn, beats, front, go_on, is_decided, standing, winner


def at(rate: float, *, width: float = 0.01, answer_ms: float = 10) -> Standing:
    return Standing(rows_per_s=rate, low=rate * (1 - width), high=rate * (1 + width), answer_ms=answer_ms)


def turn(rate: float, run_ms: float = 5) -> Turn:
    return Turn(rows_per_s=rate, run_ms_p99=run_ms, runs=10)


def seen(rate: float, *, answer_ms: float = 10, spread: float = 0.01) -> list[Turn]:
    return [turn(rate * (1 + part * spread), answer_ms / 2) for part in (0, 1, -1, 0)]


def test_one_turn_says_little_and_several_say_more() -> None:
    one, many = standing([turn(100)]), standing([turn(100), turn(101), turn(99), turn(100)])
    assert one.high / one.low > 1.2
    assert many.high / many.low < one.high / one.low / 1.1
    assert many.low < 100 < many.high


def test_the_unluckiest_request_waits_for_a_run_and_then_for_its_own() -> None:
    assert standing([turn(100, run_ms=7)]).answer_ms == 14


def test_losers_are_dropped_and_ties_are_not() -> None:
    standings = {"a": at(100), "b": at(99.5), "c": at(60), "d": at(40), "e": at(30)}
    assert sorted(go_on(standings, None)) == ["a", "b"]


def test_who_cannot_be_told_from_the_best_goes_on_however_many_there_are() -> None:
    standings = {f"s{i}": at(100 - i, width=0.2) for i in range(9)}
    assert len(go_on(standings, None)) == 9


def test_whoever_answers_too_late_is_out_but_the_one_compared_with_stays() -> None:
    standings = {"fast": at(100, answer_ms=50), "soon": at(50, answer_ms=5), "default": at(20, answer_ms=90)}
    assert go_on(standings, 20, "default") == ["default", "soon"]
    turns = {"fast": seen(100, answer_ms=50), "soon": seen(50, answer_ms=5), "default": seen(20, answer_ms=90)}
    assert winner(turns, 20, "default", {}) == "soon"
    assert winner(turns, 1, "default", {}) is None


def test_among_ties_the_truest_wins_then_the_soonest() -> None:
    turns = {"int8": seen(100, answer_ms=5), "wide": seen(99, answer_ms=5), "batched": seen(99.5, answer_ms=40)}
    assert winner(turns, None, "none", {"int8": 0.01}) == "wide"


def test_what_was_there_before_stays_unless_beaten_beyond_the_noise() -> None:
    wild = [turn(rate) for rate in (90, 130, 95, 110)]
    assert winner({"new": wild, "default": seen(100)}, None, "default", {}) == "default"
    assert winner({"new": seen(120), "default": seen(100)}, None, "default", {}) == "new"


def test_a_bad_minute_that_slows_both_decides_nothing() -> None:
    drift = (1, 0.5, 1.2, 0.8)
    ours, theirs = [turn(110 * d) for d in drift], [turn(100 * d) for d in drift]
    assert beats(ours, theirs)
    assert not beats(theirs, ours)
    assert not beats(ours, ours)


def test_a_race_is_decided_when_the_second_cannot_catch_up() -> None:
    assert is_decided({"a": at(100), "b": at(90)}, ["a", "b"])
    assert not is_decided({"a": at(100, width=0.1), "b": at(95, width=0.1)}, ["a", "b"])
    assert is_decided({"a": at(100)}, ["a"])


@given(st.integers(0, 10_000), st.integers(2, 24))
def test_the_winner_is_hardly_slower_than_the_best_on_a_noisy_machine(seed: int, count: int) -> None:
    chance = np.random.default_rng(seed)
    rates = {f"s{i}": float(rate) for i, rate in enumerate(chance.uniform(50, 500, count))}
    turns: dict[str, list[Turn]] = {}
    alive = list(rates)
    for _ in ROUND_SECONDS:
        drift = chance.normal(1, 0.1)  # a minute that is bad for all
        for name in alive:
            turns.setdefault(name, []).append(turn(rates[name] * drift * float(chance.lognormal(0, 0.03))))
        standings = {name: standing(taken) for name, taken in turns.items()}
        alive = go_on({name: standings[name] for name in alive}, None, "s0")
    won = winner(turns, None, "s0", {})
    assert won is not None
    assert rates[won] >= 0.85 * max(rates.values())


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_holds_whoever_nobody_beats(points: dict[str, tuple[int, int]]) -> None:
    kept = set(front(points))
    for name, mine in points.items():
        beaten = any(all(a <= b for a, b in zip(p, mine, strict=True)) and p != mine for p in points.values())
        assert (name in kept) == (not beaten)
    assert bool(kept) == bool(points)
