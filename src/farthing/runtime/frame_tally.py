"""What became of one stream's frames, and how long the answered ones took.

received = on time + late + dropped + failed + those still under way. Of a whole model, `telemetry.frame_counts` counts.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.types.frames import DropReason

STEPS_PER_E: Final = 50
"""Latencies are counted by their logarithm, so a percentile is within 1 % and a day takes no more memory than a second:
from a microsecond to an hour there are 1,100 steps."""


class FrameSummary(msgspec.Struct, frozen=True, kw_only=True):
    """As it is told to clients."""

    received: int
    on_time: int
    """Answered by their deadline, or without one."""
    late: int
    """Answered after their deadline."""
    dropped: Mapping[str, int]
    """By reason."""
    failed: int
    """Answered with an error."""
    latency_ms: Mapping[str, float]
    """From arrival to answer of the frames that ran: `p50`, `p95`, `p99`."""


class FrameTally:
    """One stream's."""

    def __init__(self) -> None:
        self.received = 0
        self._on_time = self._late = self._failed = 0
        self._dropped: dict[str, int] = dict.fromkeys(DropReason, 0)
        self._latencies: dict[int, int] = {}

    def answered(self, latency_ns: int, *, is_on_time: bool) -> None:
        """Counts a frame that ran."""
        if is_on_time:
            self._on_time += 1
        else:
            self._late += 1
        step = round(math.log(max(latency_ns, 1)) * STEPS_PER_E)
        self._latencies[step] = self._latencies.get(step, 0) + 1

    def dropped(self, reason: DropReason) -> None:
        """Counts a frame that did not."""
        self._dropped[reason] += 1

    def failed(self) -> None:
        """Counts a frame answered with an error."""
        self._failed += 1

    def summary(self) -> FrameSummary:
        """So far."""
        return FrameSummary(
            received=self.received,
            on_time=self._on_time,
            late=self._late,
            dropped={reason: count for reason, count in self._dropped.items() if reason != DropReason.GONE},
            failed=self._failed,
            latency_ms={f"p{percent}": self._percentile_ms(percent) for percent in (50, 95, 99)},
        )

    def _percentile_ms(self, percent: int) -> float:
        wanted = math.ceil(percent / 100 * (self._on_time + self._late))
        seen = 0
        for step in sorted(self._latencies):
            seen += self._latencies[step]
            if seen >= wanted:
                return round(math.exp(step / STEPS_PER_E) / 1e6, 3)
        return 0.0
