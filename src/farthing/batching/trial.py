"""Does the larger of two batch sizes pay? They take turns until that is clear.

Machines drift by more than neighbouring sizes differ, so only runs close in time compare. When to hold a trial and what
follows from it belongs to `batching.row_times`.
"""

from statistics import median
from typing import Final

GAIN_MIN: Final = 0.03
"""A larger batch must raise rows per second by this share to be preferred: less is noise, and larger batches cost
latency."""

RUNS_MIN: Final = 3
RUNS_MAX: Final = 8
"""Runs of each size: after the first number a clear difference decides, after the second any."""

CLEAR: Final = 0.1
"""Distance from `GAIN_MIN` that is clear after few runs; medians of three runs were seen to differ by half of it."""


class Trial:
    """Run times of two sizes, alternating. One owner, one thread."""

    __slots__ = ("_elapsed_ns", "larger", "smaller")

    def __init__(self, smaller: int, larger: int) -> None:
        self.smaller = smaller
        self.larger = larger
        self._elapsed_ns: dict[int, list[int]] = {smaller: [], larger: []}

    @property
    def next_rows(self) -> int:
        """The size whose turn it is."""
        runs = self._elapsed_ns
        return self.larger if len(runs[self.larger]) <= len(runs[self.smaller]) else self.smaller

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Takes in a run, if it is of one of the two sizes and still wanted."""
        runs = self._elapsed_ns.get(rows)
        if runs is not None and len(runs) < RUNS_MAX:
            runs.append(elapsed_ns)

    def winner(self, hand_over_ns: float) -> int:
        """The size to prefer if every run also costs so much beside its own time; 0 while that is open."""
        small, large = self._elapsed_ns[self.smaller], self._elapsed_ns[self.larger]
        runs = min(len(small), len(large))
        if runs < RUNS_MIN:
            return 0
        small_ns = (median(small) + hand_over_ns) / self.smaller
        large_ns = (median(large) + hand_over_ns) / self.larger
        gain = small_ns / large_ns - 1
        if runs < RUNS_MAX and abs(gain - GAIN_MIN) < CLEAR:
            return 0
        return self.larger if gain > GAIN_MIN else self.smaller
