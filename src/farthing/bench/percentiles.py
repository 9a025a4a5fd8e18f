"""What can be said of a latency's percentile from a sample: its value, its interval, or that the sample is too small.

A percentile is an order statistic, and so are the ends of its interval: how many of n draws lie below the true
percentile is binomial, whatever the distribution (David & Nagaraja, Order Statistics, 2003, section 7.1). Requests
that follow each other resemble each other, which makes a sample worth less than its size; the interval is widened by
how much less, measured from means of batches (Schmeiser, Operations Research 30, 1982).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
"""Of the intervals."""
SUPPORT_CONFIDENCE: Final = 0.99
"""That enough of the sample lies beyond a percentile for it to be stated; MLPerf's (see `requests_needed`)."""
BATCHES: Final = 32
"""Means of batches that the widening is measured from: enough for a variance, few enough to be long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile:
    """Of a sample. `value` is None where `needed` is more than the sample has; `high` is None beyond its maximum."""

    percent: float
    value: float | None
    low: float | None
    high: float | None
    needed: int


def requests_needed(percent: float) -> int:
    """The smallest sample that supports a percentile: 64 for p90, 662 for p99, 6,636 for p99.9.

    Smallest n with P(Binomial(n, 1 - p) <= 1) <= 1 %: with 99 % confidence at least two requests lie beyond the
    percentile, so that the second-largest one bounds it. This is the early-stopping rule of MLPerf Inference, with one
    request discarded (MLCommons inference rules, "Early Stopping Criterion"; loadgen/early_stopping.cc).
    """
    if not 0 < percent < 100:
        raise ValueError(f"a percentile of {percent}")
    inside = max(percent, 100 - percent) / 100
    outside = 1 - inside

    def is_too_few(n: int) -> bool:
        return inside**n + n * outside * inside ** (n - 1) > 1 - SUPPORT_CONFIDENCE

    high = 2
    while is_too_few(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_too_few(middle) else (low, middle)
    return high


def percentiles(values: NDArray[np.float64], percents: tuple[float, ...]) -> list[Percentile]:
    """Percentiles of `values` [n], which stand in the order they were measured in."""
    ordered = np.sort(values)
    return [_percentile(values, ordered, percent) for percent in percents]


def _percentile(values: NDArray[np.float64], ordered: NDArray[np.float64], percent: float) -> Percentile:
    needed, n, share = requests_needed(percent), len(ordered), percent / 100
    if n < needed:
        return Percentile(percent=percent, value=None, low=None, high=None, needed=needed)
    value = float(ordered[math.ceil(n * share - 1e-9) - 1])
    low, high = _ranks(n, share)
    wider = math.sqrt(inflation(values <= value))
    low = math.floor(n * share - wider * (n * share - low))
    high = math.ceil(n * share + wider * (high - n * share))
    return Percentile(
        percent=percent,
        value=value,
        low=float(ordered[max(low, 1) - 1]),
        high=float(ordered[high - 1]) if high <= n else None,
        needed=needed,
    )


@lru_cache(1024)
def _ranks(n: int, share: float) -> tuple[int, int]:
    """Ranks (from 1) between which the true percentile lies: largest l with P(B < l) and smallest u with P(B >= u) at
    most half of what confidence leaves, B ~ Binomial(n, share). Ranks 0 and n + 1 stand for no bound.
    """
    mean, deviation = n * share, math.sqrt(n * share * (1 - share))
    first, last = max(0, int(mean - 9 * deviation) - 9), min(n, int(mean + 9 * deviation) + 9)
    counts = np.arange(first, last)
    start = math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
    start += first * math.log(share) + (n - first) * math.log1p(-share)
    steps = np.log((n - counts) / (counts + 1)) + math.log(share) - math.log1p(-share)
    below = np.cumsum(np.exp(start + np.concatenate([[0.0], np.cumsum(steps)])))  # P(B <= first), ...
    tail = (1 - CONFIDENCE) / 2
    low = first + int(np.searchsorted(below, tail, side="right"))
    high = first + 1 + int(np.searchsorted(below, 1 - tail, side="left"))
    return low, high


def inflation(flags: NDArray[np.bool_]) -> float:
    """The variance of a mean of `flags` over that of independent ones, from means of batches; never below 1.

    Too few values for batches, or all alike, tell nothing: 1.
    """
    size = len(flags) // BATCHES
    if size < 2:
        return 1.0
    means = flags[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    mean = float(means.mean())
    independent = mean * (1 - mean) / size
    # Below the upper end of what chance alone gives (chi-square over BATCHES - 1, 97.5 %: 1.55), nothing is widened:
    # else half of all independent samples would be.
    measured = float(means.var(ddof=1)) / independent if independent else 1.0
    return measured if measured > _CHANCE else 1.0


_CHANCE: Final = 1.55
