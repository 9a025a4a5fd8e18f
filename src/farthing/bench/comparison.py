"""Is A faster than B, and by how much? Rounds that alternate, ratios with an interval, and "no difference seen".

Machines drift by a fifth within minutes, so only neighbours compare: each round gives one ratio, and the interval is
Student's over their logarithms (paired, so that what both rounds share drops out).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from farthing.bench.means import estimate

ROUNDS_MIN: Final = 3
"""With two ratios, Student's t is 12.7 and nothing would ever be seen."""


class Side(Enum):
    A = "A"
    B = "B"


class Verdict(Enum):
    """What the interval of the ratio A / B says."""

    HIGHER = "A is higher"
    LOWER = "A is lower"
    NONE = "no difference seen"
    TOO_FEW = "too few rounds to tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A over B: the geometric mean of the rounds' ratios and its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    verdict: Verdict


def order(rounds: int) -> list[Side]:
    """A B, B A, A B, ...: a drift that goes one way falls on both alike."""
    return [side for round_ in range(rounds) for side in ((Side.A, Side.B) if round_ % 2 == 0 else (Side.B, Side.A))]


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """`a[i]` and `b[i]` were measured in round i; all above 0."""
    logs = estimate([math.log(one / other) for one, other in zip(a, b, strict=True)])
    value = math.exp(logs.value)
    if len(a) < ROUNDS_MIN or logs.low is None or logs.high is None:
        return Ratio(value=value, low=None, high=None, verdict=Verdict.TOO_FEW)
    verdict = Verdict.HIGHER if logs.low > 0 else Verdict.LOWER if logs.high < 0 else Verdict.NONE
    return Ratio(value=value, low=math.exp(logs.low), high=math.exp(logs.high), verdict=verdict)
