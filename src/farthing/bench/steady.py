"""Which part of a run is warm, and is the rest at rest?

The rule is MSER-5 (White, Simulation 69, 1997; White, Cobb & Spratt, WSC 2000): drop the beginning that makes the
standard error of what stays smallest, and believe it only if that is in the first half. It is applied to the ranks of
medians of windows, not to means of five: a stall moves a mean, MSER would then call everything before it warm-up, and
the stall would be hidden, which is the opposite of what measuring is for. Ranks bound what one window can do.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.bench.means import t_of

WINDOWS_MAX: Final = 200
WINDOW_MIN: Final = 5
"""Requests of a window; the 5 of MSER-5."""
WINDOWS_MIN: Final = 10
"""With fewer, nothing can be told."""
DRIFT_MAX: Final = 0.10
"""A relative difference between the halves of what stays, if it is no chance either, is a drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steadiness:
    """`warm_up` requests at the beginning are not part of the figures; `problem` says why the rest is not at rest."""

    warm_up: int
    problem: str = ""


def steadiness(values: NDArray[np.float64]) -> Steadiness:
    """Of latencies [n] in the order in which requests were meant to be sent."""
    windows = min(WINDOWS_MAX, len(values) // WINDOW_MIN)
    if windows < WINDOWS_MIN:
        return Steadiness(
            warm_up=0,
            problem=f"{len(values)} requests are too few to tell warm-up from rest; {WINDOWS_MIN * WINDOW_MIN} can",
        )
    size = len(values) // windows
    medians = np.median(values[: size * windows].reshape(windows, size), axis=1)
    cut = _mser(np.argsort(np.argsort(medians, kind="stable"), kind="stable").astype(np.float64))
    if cut > windows // 2:
        return Steadiness(warm_up=0, problem="latency never came to rest: it still changed in the second half")
    if drift := _drift(medians[cut:]):
        direction = "grows" if drift > 0 else "falls"
        return Steadiness(
            warm_up=cut * size,
            problem=f"latency {direction} through the run (by {abs(drift):.0%} from its first half to its second)",
        )
    return Steadiness(warm_up=cut * size)


def _mser(values: NDArray[np.float64]) -> int:
    """How many windows at the beginning to drop: argmin over d of sum((v[d:] - mean)^2) / (n - d)^2."""
    left = np.arange(len(values), 0, -1)
    sums, squares = np.cumsum(values[::-1])[::-1], np.cumsum(values[::-1] ** 2)[::-1]
    errors = np.maximum(squares - sums**2 / left, 0) / left**2
    return int(np.argmin(errors[:-WINDOW_MIN]))  # of the last few the error is small by chance alone


def _drift(values: NDArray[np.float64]) -> float:
    """Relative difference of the second half to the first; 0 where it is small or may be chance."""
    half = len(values) // 2
    first, second = values[:half], values[-half:]
    change = float(second.mean() / first.mean() - 1) if first.mean() > 0 else 0.0
    error = math.sqrt(float(first.var(ddof=1) + second.var(ddof=1)) / half)
    is_chance = abs(float(second.mean() - first.mean())) <= t_of(2 * half - 2) * error
    return 0.0 if is_chance or abs(change) <= DRIFT_MAX else change
