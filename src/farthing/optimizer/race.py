"""Which settings are measured again, and which has won?

Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
2016) with two changes for noisy machines: turns are taken in rounds, so that a bad minute meets all alike, and nobody
is dropped whose rate cannot yet be told from the best one's. Pure: `optimizer.timing` takes the turns.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

import msgspec

ROUND_SECONDS: Final = (0.15, 0.4, 0.8, 1.5, 1.5, 1.5)
"""How long a turn lasts in each round: seconds are spent on losers, minutes on nobody."""

KEEP: Final = 0.4
"""Share that goes on after a round, ties aside."""

TIE: Final = 0.02
"""Rates nearer than this are a tie whatever their intervals say: machines drift by more between two runs."""


NOISE: Final = 0.06
NOISE_WEIGHT: Final = 4
"""What turns differ by, as a standard deviation of their rates' logarithms, before any was seen; it counts as so many
turns. Two turns that happen to agree prove little, and two that happen not to are no proof of chaos."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of one setting, the whole machine its own."""

    rows_per_s: float
    run_ms_p99: float
    """99th percentile of the time of a run, or its largest where there were fewer than a hundred."""
    runs: int


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What all turns of one setting say together."""

    rows_per_s: float
    low: float
    high: float
    """95 % interval of the rate, from the spread between turns; wide open after a single one."""
    answer_ms: float
    """Until the answer to a request that came at the worst moment: the run under way, then its own."""


def standing(turns: Sequence[Turn]) -> Standing:
    """The geometric mean of the rates and its interval (Student's, on their logarithms)."""
    logs = [math.log(max(turn.rows_per_s, 1e-9)) for turn in turns]
    mean = fmean(logs)
    half = _half_width(logs)
    slowest = max(turn.run_ms_p99 for turn in turns[-3:])
    return Standing(
        rows_per_s=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), answer_ms=2 * slowest
    )


def go_on(standings: Mapping[str, Standing], answer_ms_max: float | None, favourite: str = "") -> list[str]:
    """Who is measured again: the better ones, who ties with the best, and `favourite`, which is to be compared with."""
    able = {name: s for name, s in standings.items() if answer_ms_max is None or s.answer_ms <= answer_ms_max}
    ranked = sorted(able, key=lambda name: able[name].rows_per_s, reverse=True)
    if not ranked:
        return [favourite] if favourite in standings else []
    best = able[ranked[0]]
    keep = max(1, math.ceil(len(ranked) * KEEP))
    kept = [
        name
        for place, name in enumerate(ranked)
        if (place < keep and able[name].high >= best.rows_per_s * (1 - 10 * TIE))
        or able[name].high >= best.low
        or able[name].rows_per_s >= best.rows_per_s * (1 - TIE)
    ]
    if favourite in standings:  # first, so that it has its turn in every round that is begun
        kept = [favourite, *(name for name in kept if name != favourite)]
    return kept


def is_decided(standings: Mapping[str, Standing], alive: Sequence[str]) -> bool:
    """Whether another round could change who wins."""
    contenders = [standings[name] for name in alive]
    if len(contenders) < 2:
        return True
    contenders.sort(key=lambda s: s.rows_per_s, reverse=True)
    return contenders[1].high < contenders[0].low


def beats(ours: Sequence[Turn], theirs: Sequence[Turn]) -> bool:
    """Whether one setting is faster than another beyond the noise.

    Turn by turn, since both had their n-th turn in the same round: what slows the machine slows both (95 % interval of
    the mean ratio's logarithm, Student's).
    """
    ratios = [math.log(max(a.rows_per_s, 1e-9) / max(b.rows_per_s, 1e-9)) for a, b in zip(ours, theirs, strict=False)]
    return bool(ratios) and fmean(ratios) > _half_width(ratios)


def winner(
    turns: Mapping[str, Sequence[Turn]], answer_ms_max: float | None, incumbent: str, drops: Mapping[str, float]
) -> str | None:
    """The fastest within the target; among ties the truest, then the one whose answers come soonest.

    None if nobody meets the target. `incumbent` stays unless the other wins beyond the noise: whoever changes a system
    needs a reason. `drops` says what each may lose, 0 where it is not mentioned.
    """
    standings = {name: standing(seen) for name, seen in turns.items()}
    able = {name: s for name, s in standings.items() if answer_ms_max is None or s.answer_ms <= answer_ms_max}
    if not able:
        return None
    best = max(able.values(), key=lambda s: s.rows_per_s)
    tied = [name for name, s in able.items() if s.rows_per_s >= best.rows_per_s * (1 - TIE)]
    chosen = min(tied, key=lambda name: (drops.get(name, 0.0), able[name].answer_ms))
    if incumbent in able and not beats(turns[chosen], turns[incumbent]):
        return incumbent
    return chosen


def front(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """The Pareto front: those that no other matches in every figure and beats in one. Smaller is better."""
    return [
        name
        for name, mine in points.items()
        if not any(
            all(a <= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine
            for other, theirs in points.items()
            if other != name
        )
    ]


def _half_width(logs: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, its spread learned from these values and from `NOISE`."""
    mean, freedom = fmean(logs), NOISE_WEIGHT + len(logs) - 1
    spread = math.sqrt((NOISE_WEIGHT * NOISE**2 + sum((value - mean) ** 2 for value in logs)) / freedom)
    return _student(freedom) * spread / math.sqrt(len(logs))


def _student(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's distribution."""
    table = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
    return table[freedom - 1] if freedom <= len(table) else 2.1
