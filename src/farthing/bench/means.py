"""Intervals of means: of rates over windows of time, of repeated measurements.

Student's t over few, long windows (batch means; Law, Simulation Modeling and Analysis, 5th ed., section 9.5.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOWS: Final = 20
"""A rate's interval comes from so many windows of the run; Law advises 10 to 30."""

_T_TABLE: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval; None where there is too little to have one."""

    value: float
    low: float | None = None
    high: float | None = None


def t_of(freedom: int) -> float:
    """Student's t at 97.5 %."""
    return _T_TABLE[freedom - 1] if freedom <= len(_T_TABLE) else 1.96 + 2.4 / freedom


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values and its interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(value=mean)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_of(n - 1) * deviation / math.sqrt(n)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def rate(
    times_s: NDArray[np.float64], start_s: float, end_s: float, weights: NDArray[np.float64] | None = None
) -> Estimate:
    """Events a second between two times, or the sum of their weights a second."""
    if not end_s > start_s:
        return Estimate(value=0.0)
    inside = (times_s >= start_s) & (times_s < end_s)
    counts, _ = np.histogram(
        times_s[inside], bins=WINDOWS, range=(start_s, end_s), weights=None if weights is None else weights[inside]
    )
    return estimate((counts / ((end_s - start_s) / WINDOWS)).tolist())
