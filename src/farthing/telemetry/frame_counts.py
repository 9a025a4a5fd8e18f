"""What became of a model version's frames: counters that the desk adds to and a scrape reads.

received = on time + late + dropped + failed + those still under way. How they look to Prometheus belongs to `metrics`.
"""

from bisect import bisect_left

from farthing.telemetry.statistics import DURATION_BOUNDS_NS
from farthing.types.frames import DropReason


class FrameCounts:
    """Of one model version; made with its first stream."""

    __slots__ = ("buckets", "dropped", "failed", "late", "on_time", "received", "streams_open", "total_ns")

    def __init__(self) -> None:
        self.streams_open = 0
        """Gauge."""
        self.received = 0
        self.on_time = 0
        """Answered by their deadline, or without one."""
        self.late = 0
        """Answered after their deadline."""
        self.dropped: dict[str, int] = dict.fromkeys(DropReason, 0)
        self.failed = 0
        """Answered with an error."""
        self.buckets = [0] * (len(DURATION_BOUNDS_NS) + 1)
        """Answered frames by time from arrival to answer."""
        self.total_ns = 0

    def answered(self, latency_ns: int, *, is_on_time: bool) -> None:
        """Counts a frame that was run."""
        if is_on_time:
            self.on_time += 1
        else:
            self.late += 1
        self.buckets[bisect_left(DURATION_BOUNDS_NS, latency_ns)] += 1
        self.total_ns += latency_ns

    def copy(self) -> "FrameCounts":
        """An independent copy of this moment, which another thread may read."""
        twin = FrameCounts()
        for field in FrameCounts.__slots__:
            setattr(twin, field, getattr(self, field))
        twin.dropped = self.dropped.copy()
        twin.buckets = self.buckets.copy()
        return twin
