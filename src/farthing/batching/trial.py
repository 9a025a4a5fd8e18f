"""Does the larger of two batch sizes pay? They take turns until that is clear.

Machines drift by more than neighbouring sizes differ, so only runs close in time compare. When to hold a trial and what
follows from it belongs to `batching.row_times`.
"""

from statistics import median
from typing import Final

GAIN_MIN: Final = 0.03
"""A larger batch must raise rows per second by this share to be preferred: less is noise, and larger batches cost
latency."""

TURN_RUNS: Final = 2
"""Runs of one size in a row, of which the last counts. The one before finds the memory of its size cold, and while it
runs the event loop reads the requests that the other size's answers have brought, which on one core takes from its
time."""

RUNS_MIN: Final = 3
RUNS_MAX: Final = 8
"""Runs of each size that count: after the first number a clear difference decides, after the second any."""

CLEAR: Final = 0.1
"""Distance from `GAIN_MIN` that is clear after few runs; medians of three runs were seen to differ by half of it."""


class Trial:
    """Run times of two sizes, alternating. One owner, one thread."""

    __slots__ = ("_elapsed_ns", "_turn_runs", "larger", "next_rows", "smaller")

    def __init__(self, smaller: int, larger: int) -> None:
        self.smaller = smaller
        self.larger = larger
        self.next_rows = larger
        """The size whose turn it is."""
        self._turn_runs = 0
        self._elapsed_ns: dict[int, list[int]] = {smaller: [], larger: []}

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Takes in a run, if it is of the size whose turn it is."""
        if rows != self.next_rows:
            return
        self._turn_runs += 1
        if self._turn_runs == TURN_RUNS:
            self._elapsed_ns[rows].append(elapsed_ns)
            self._turn_runs = 0
            self.next_rows = self.smaller if rows == self.larger else self.larger

    def gain(self, hand_over_ns: float) -> float:
        """The share by which the larger size raises rows per second, if each run also costs so much beside its time."""
        small_ns = (median(self._elapsed_ns[self.smaller]) + hand_over_ns) / self.smaller
        large_ns = (median(self._elapsed_ns[self.larger]) + hand_over_ns) / self.larger
        return small_ns / large_ns - 1

    def winner(self, hand_over_ns: float) -> int:
        """The size to prefer; 0 while that is open."""
        runs = min(map(len, self._elapsed_ns.values()))
        if runs < RUNS_MIN:
            return 0
        gain = self.gain(hand_over_ns)
        if runs < RUNS_MAX and abs(gain - GAIN_MIN) < CLEAR:
            return 0
        return self.larger if gain > GAIN_MIN else self.smaller
