"""What one turn of one engine showed, and the sums that turn times into shares of what the machine could do."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from answer import Answer

PROMPT_TOKENS: Final = 128
OUTPUT_TOKENS: Final = 128
PREFILL_TOKENS: Final = 512


@dataclass(slots=True, kw_only=True)
class Turn:
    """One engine on one model, once. Rates are tokens a second, `*_ms` milliseconds."""

    engine: str
    model: str
    round: int
    is_ours: bool
    decode: float
    """After the first token, one stream, prompt 128."""
    prefill: float
    """512 prompt tokens over the time to the first token."""
    c8: float
    """Generated, all streams together, reading of prompts included."""
    c32: float
    ttft_c1_ms: float
    ttft_c8_p95_ms: float
    memory_mb: float
    """Proportional set size of the process tree after all that."""
    start_s: float
    """From `exec` to the first token, files in memory."""
    streamed_bytes: int
    """Weights that one decoded token needs."""
    read_limit: float
    """Bytes a second, the better probe of before and after."""
    operations_limit: float
    """Int8 operations a second; 0 where they could not be probed."""
    body: int
    head: int
    generator_cores: float
    """CPU that the load generator took during c32."""
    strangers_cores: float
    """CPU that others took, over the whole turn."""

    @property
    def decode_share(self) -> float:
        """Of the rate at which memory could deliver the weights; keys and values are not counted."""
        return self.decode * self.streamed_bytes / self.read_limit

    @property
    def prefill_share(self) -> float:
        """Of the 8-bit peak: two operations a weight and token; attention and the head's one row are not counted."""
        return self._operations_share(self.prefill * 2 * self.body)

    def aggregate_share(self, rate: float) -> float:
        """Of the 8-bit peak, where every generated token also pays for one of the prompt."""
        return self._operations_share(rate * 2 * (2 * self.body + self.head))

    def _operations_share(self, operations: float) -> float:
        """0 where the limit is not known."""
        return operations / self.operations_limit if self.operations_limit else 0.0


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything that one call of `run.py` found out."""

    machine: dict[str, Any]
    engines: dict[str, dict[str, str]]
    settings: dict[str, Any]
    turns: list[Turn]
    failures: list[str]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def aggregate_rate(answers: Sequence[Answer]) -> float:
    """Generated tokens over the time from the first question to the last token."""
    took = max(answer.end_s for answer in answers) - min(answer.begin_s for answer in answers)
    return sum(answer.tokens for answer in answers) / took


def median_of(answers: Sequence[Answer], of: Callable[[Answer], float]) -> float:
    return statistics.median(map(of, answers))
