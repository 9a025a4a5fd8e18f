"""What is good enough? A target is read from text (`p99<20ms`, `ttft p95<300ms`) and held against figures.

Several, separated by commas, must all be met. The same limits, asked of a single request, make goodput.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.bench.percentiles import Percentile
from farthing.types.errors import InvalidInput


class Metric(Enum):
    """What a target may speak of; seconds, of one request."""

    LATENCY = "latency"
    TTFT = "ttft"
    TPOT = "tpot"
    ITL = "itl"


class Verdict(Enum):
    """Whether a target is met: for sure, or is it within the noise?"""

    MET = "met"
    MISSED = "missed"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """At most `limit_s` in the given percentile."""

    metric: Metric
    percent: float
    limit_s: float

    def __str__(self) -> str:
        name = "" if self.metric is Metric.LATENCY else f"{self.metric.value} "
        return f"{name}p{self.percent:g}<{self.limit_s * 1e3:g}ms"


_TARGET: Final = re.compile(
    r"\s*(?:(latency|ttft|tpot|itl)\s+)?p(\d+(?:\.\d+)?)\s*<=?\s*(\d+(?:\.\d+)?)\s*(us|ms|s)\s*", re.IGNORECASE
)
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_targets(text: str) -> tuple[Target, ...]:
    """Raises `InvalidInput` with the part that cannot be read."""
    return tuple(_parse(part) for part in text.split(","))


def _parse(part: str) -> Target:
    found = _TARGET.fullmatch(part)
    if found is None or not 0 < float(found[2]) < 100 or float(found[3]) == 0:
        raise InvalidInput(
            f"`{part.strip()}` is no target",
            hint="write one as p99<20ms, ttft p95<300ms or tpot p95<40ms; several with commas between",
        )
    metric = Metric((found[1] or "latency").lower())
    return Target(metric=metric, percent=float(found[2]), limit_s=float(found[3]) * _UNITS[found[4].lower()])


def judge(target: Target, found: Percentile) -> Verdict:
    """By the whole interval of the percentile. What the sample cannot support is not met and not missed."""
    if found.value is None or found.low is None:
        return Verdict.UNSURE
    if found.high is not None and found.high <= target.limit_s:
        return Verdict.MET
    return Verdict.MISSED if found.low > target.limit_s else Verdict.UNSURE


def good(targets: tuple[Target, ...], values: Mapping[Metric, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Which requests [n] stay within every limit; a value that a request does not have (NaN) is within none."""
    size = len(next(iter(values.values())))
    flags = np.ones(size, np.bool_)
    for target in targets:
        if target.metric in values:
            flags &= values[target.metric] <= target.limit_s
    return flags
