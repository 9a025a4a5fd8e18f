"""The highest load that meets a target: which load is tried next, and when is it enough?

Bisection that knows of noise: a trial is met, missed, or unsure because the target lies within its interval. An unsure
load is tried again; one that stays unsure is as near to the answer as so much measuring can come, and ends the search.
Measuring belongs to `run`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from farthing.bench.targets import Verdict

REPEATS_MAX: Final = 3
"""Trials of one load before its noise is accepted."""
TRIALS_MAX: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A load that was measured."""

    load: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where to look: between `load_min` and `load_max`, until neighbours differ by less than `resolution`."""

    load_min: float
    load_max: float
    resolution: float = 0.05
    is_whole: bool = False
    """Loads are whole numbers (concurrency)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`load` meets the target (None: not even the least does), `missed` is the lowest that does not (None: none)."""

    load: float | None
    missed: float | None
    reason: str


def decide(trials: Sequence[Trial], limits: Limits) -> Try | Found:
    """The next load to try, or what was found."""
    settled = {load: _settled([t.verdict for t in trials if t.load == load]) for load in {t.load for t in trials}}
    for load, verdict in settled.items():
        if verdict is None and len(trials) < TRIALS_MAX:
            return Try(load=load)
    missed = min((load for load, verdict in settled.items() if verdict is Verdict.MISSED), default=None)
    met = max(
        (load for load, verdict in settled.items() if verdict is Verdict.MET and (missed is None or load < missed)),
        default=None,
    )
    noisy = [
        load for load, verdict in settled.items() if verdict is Verdict.UNSURE and (missed is None or load < missed)
    ]
    if len(trials) >= TRIALS_MAX:
        return Found(load=met, missed=missed, reason=f"{TRIALS_MAX} trials were not enough")
    if noisy and met is not None and max(noisy) > met:
        return Found(load=met, missed=missed, reason=f"at {max(noisy):g} the target lies within the noise")
    above = min([load for load in (missed, *noisy) if load is not None], default=None)
    if above is None:
        return _up(met, limits)
    if met is None:
        return _down(above, limits)
    if above / met <= 1 + limits.resolution or (limits.is_whole and above - met <= 1):
        return Found(load=met, missed=missed, reason=f"the next load tried, {above:g}, misses the target")
    middle = math.sqrt(met * above)
    return Try(load=min(max(round(middle), met + 1), above - 1) if limits.is_whole else middle)


def _settled(verdicts: Sequence[Verdict]) -> Verdict | None:
    """None: try again. One decisive trial decides; two that contradict each other are noise."""
    decisive = {verdict for verdict in verdicts if verdict is not Verdict.UNSURE}
    if len(decisive) == 1:
        return decisive.pop()
    return Verdict.UNSURE if decisive or len(verdicts) >= REPEATS_MAX else None


def _up(met: float | None, limits: Limits) -> Try | Found:
    if met is None:
        return Try(load=limits.load_min)
    if met >= limits.load_max:
        return Found(load=met, missed=None, reason="the highest load allowed meets the target")
    return Try(load=min(met * 2, limits.load_max))


def _down(above: float, limits: Limits) -> Try | Found:
    if above <= limits.load_min:
        return Found(load=None, missed=above, reason="not even the lowest load meets the target")
    return Try(load=max(above / 2 if not limits.is_whole else above // 2, limits.load_min))
