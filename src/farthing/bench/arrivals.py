"""When are requests meant to be sent, in an open loop?

Times are drawn before the load begins, from a seed: what is late later is late against them, however the server does.
Sending belongs to drivers; loads whose next request waits for an answer (closed loops) need no times.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.types.errors import InvalidInput

ARRIVALS_MAX: Final = 20_000_000
"""Of one load: 160 MB of times. Longer ones are measured in parts."""

Times = NDArray[np.float64]


class Process(Enum):
    """How gaps between requests are distributed."""

    CONSTANT = "constant"
    POISSON = "poisson"
    GAMMA = "gamma"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """Requests a second, and how they are spread. `rate_end` other than `rate` is a ramp, straight in time."""

    rate: float
    process: Process = Process.POISSON
    burstiness: float = 1.0
    """Shape of the gamma distribution: 1 is Poisson, below 1 is burstier; gaps have a CV of 1 / sqrt(burstiness).
    The meaning is that of vLLM's and GuideLLM's option of this name."""
    rate_end: float | None = None


def arrivals(load: OpenLoad, duration_s: float, seed: int) -> Times:
    """Seconds from the start, ascending, all below `duration_s`. Raises `InvalidInput` for loads out of bounds.

    Unit-rate gaps are drawn and their sums put through the inverse of the expected count (time change; Cinlar,
    Introduction to Stochastic Processes, 1975), so that ramps are exact for each process.
    """
    rate_end = load.rate if load.rate_end is None else load.rate_end
    if not (load.rate > 0 and rate_end > 0 and duration_s > 0 and load.burstiness > 0):
        raise InvalidInput("rate, duration and burstiness of a load must be above 0")
    expected = (load.rate + rate_end) / 2 * duration_s
    if expected > ARRIVALS_MAX:
        raise InvalidInput(
            f"{expected:,.0f} requests in one load; at most {ARRIVALS_MAX:,}", hint="shorten it or lower the rate"
        )
    units = _units(load, expected, np.random.default_rng(seed))
    slope = (rate_end - load.rate) / duration_s
    if slope == 0:
        return units / load.rate
    # rate t + slope t^2 / 2 = units, in the form that loses no digits when the slope is small
    times: Times = 2 * units / (load.rate + np.sqrt(np.maximum(load.rate**2 + 2 * slope * units, 0)))
    return np.maximum.accumulate(times)  # rounding may swap neighbours


def _units(load: OpenLoad, expected: float, random: np.random.Generator) -> Times:
    """Arrival times of a process with one arrival a second, below `expected` seconds."""
    if load.process is Process.CONSTANT:
        return np.arange(int(np.ceil(expected - 1e-9)), dtype=np.float64)
    shape = load.burstiness if load.process is Process.GAMMA else 1.0
    drawn = int(expected + 6 * np.sqrt(expected / min(shape, 1.0)) + 16)
    times = np.cumsum(random.gamma(shape, 1 / shape, drawn))
    while times[-1] < expected:  # six deviations too few: rare, and then drawn on
        times = np.concatenate([times, times[-1] + np.cumsum(random.gamma(shape, 1 / shape, drawn))])
    return times[times < expected]
