"""How long does this model take for so many rows, and which number of rows pays best?

Learned from the runs themselves, so nothing is configured and the figures follow the machine as it drifts. Keeping
time belongs to `batching.loop`; what to do with the answer to `batching.batcher`.
"""

from bisect import bisect_left
from typing import Final

GAIN_MIN: Final = 0.03
"""A larger batch must raise rows per second by this share to be preferred: less is noise, and larger batches cost
latency. Less than the machines we measured on drift, so the gain must also last (`RETRY_RUNS`)."""

FALL: Final = 0.5
RISE: Final = 0.02
"""Weight of a run that was faster, or slower, than the size's time so far. What disturbs a run (another process, the
interpreter's lock) only ever adds time, so the figure follows the fast runs: about the twentieth percentile."""

RUNS_KNOWN: Final = 3
"""Runs after which a size's time is trusted; until then the fastest run stands, since first runs pay for warm-up."""

RETRY_RUNS: Final = 128
"""After so many runs the sizes above the best one are forgotten and tried afresh: what was slow at night may be fast by
day, and a size that was first met while the machine was busy must not be condemned for good."""

OUTLIER: Final = 2.0
"""A run so many times slower tells of the machine, not of the model: it counts as this much slower."""

SIZES_MAX: Final = 64
"""Sizes remembered. When the table is full only powers of two are added, of which there are few."""


class RowTimes:
    """Undisturbed run time in nanoseconds by batch rows. One owner, one thread."""

    __slots__ = ("_best", "_best_limit", "_first_aim", "_rows", "_runs", "_since_retry", "_times_ns")

    def __init__(self, first_aim: int = 1) -> None:
        """`first_aim` is the size to begin with, for a row shape of which a similar one is known."""
        self._first_aim = first_aim
        self._rows: list[int] = []  # ascending; the two lists below run beside it
        self._times_ns: list[float] = []
        self._runs: list[int] = []
        self._best = 0
        self._best_limit = 0
        self._since_retry = 0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Takes in one run of `rows` > 0 rows."""
        self._since_retry += 1
        if self._since_retry >= RETRY_RUNS:
            self._since_retry = 0
            self._forget_above(self._measured_best(self._best_limit))
        elapsed = max(elapsed_ns, 1)
        at = bisect_left(self._rows, rows)
        if at == len(self._rows) or self._rows[at] != rows:
            if len(self._rows) < SIZES_MAX or rows & (rows - 1) == 0:
                self._rows.insert(at, rows)
                self._times_ns.insert(at, float(elapsed))
                self._runs.insert(at, 1)
                self._best = 0
            return
        known_ns = self._times_ns[at]
        if self._runs[at] < RUNS_KNOWN:
            self._runs[at] += 1
            self._times_ns[at] = min(known_ns, elapsed)
            self._best = 0
        else:
            weight = FALL if elapsed < known_ns else RISE
            self._times_ns[at] = known_ns + weight * (min(elapsed, OUTLIER * known_ns) - known_ns)

    def estimate_ns(self, rows: int) -> int:
        """Expected time of a run of `rows` rows: interpolated, or scaled from the largest known; 0 if nothing is."""
        known = self._rows
        if not known:
            return 0
        at = bisect_left(known, rows)
        if at == len(known):
            return int(self._times_ns[-1] * rows / known[-1])
        if known[at] == rows or at == 0:
            return int(self._times_ns[at])
        low, high = known[at - 1], known[at]
        share = (rows - low) / (high - low)
        return int(self._times_ns[at - 1] + share * (self._times_ns[at] - self._times_ns[at - 1]))

    def hoped_ns(self, rows: int) -> int:
        """The same, but more rows than were ever run are hoped to cost no more: who never tries them never learns."""
        return self.estimate_ns(min(rows, self._rows[-1])) if self._rows else 0

    def best_rows(self, limit: int) -> int:
        """The batch size to aim for, from 1 to `limit`.

        That is the size with the best measured rows per second, or the next power of two above it while that is
        untried: sizes double for as long as each doubling gains `GAIN_MIN`. A model for which batching does not
        pay stays at one row after a few tries.
        """
        if not self._best or limit != self._best_limit:
            self._best, self._best_limit = self._choose(limit), limit
        return self._best

    def table(self) -> dict[int, float]:
        """Rows -> nanoseconds, as learned so far."""
        return dict(zip(self._rows, self._times_ns, strict=True))

    def _forget_above(self, rows: int) -> None:
        if not rows:
            return
        at = bisect_left(self._rows, rows + 1)
        del self._rows[at:], self._times_ns[at:], self._runs[at:]
        self._best = 0

    def _choose(self, limit: int) -> int:
        if not self._rows:
            return min(self._first_aim, limit)
        best = self._measured_best(limit)
        larger = min(_power_of_two_above(best), limit)
        at = bisect_left(self._rows, larger)
        is_known = at < len(self._rows) and self._rows[at] == larger and self._runs[at] >= RUNS_KNOWN
        return best if is_known and best else larger

    def _measured_best(self, limit: int) -> int:
        best, best_rate = 0, 0.0
        for rows, time_ns in zip(self._rows, self._times_ns, strict=True):
            if rows > limit:
                break
            if rows / time_ns > best_rate * (1 + GAIN_MIN):
                best, best_rate = rows, rows / time_ns
        return best


def _power_of_two_above(rows: int) -> int:
    """The smallest power of two larger than `rows`."""
    return 1 << rows.bit_length()
