"""How long does this model take for so many rows, and which number of rows pays best?

Learned from the runs themselves, so nothing is configured and the figures follow the machine as it drifts. Keeping
time belongs to `batching.loop`; what to do with the answer to `batching.batcher`.
"""

from bisect import bisect_left
from typing import Final

from farthing.batching.trial import GAIN_MIN, Trial

FALL: Final = 0.5
RISE: Final = 0.02
"""Weight of a run that was faster, or slower, than the size's time so far. What disturbs a run (another process, the
interpreter's lock) only ever adds time, so the figure follows the fast runs: about the twentieth percentile."""

HAND_OVER_WEIGHT: Final = 0.05
HAND_OVER_OUTLIER: Final = 10.0
"""Weight of the newest hand-over in their mean, and how many times the mean one may count."""

RUNS_KNOWN: Final = 3
"""Runs after which a size's time is trusted; until then the fastest run stands, since first runs pay for warm-up."""

RETRY_RUNS: Final = 128
RETRY_RUNS_MAX: Final = 512
"""After so many runs the best size is held against the next larger or smaller one: what was slow at night may be fast
by day, and a size that was first met while the machine was busy must not be condemned for good. A trial costs: runs of
a size that is slower, and none in company. So each that confirms what was known doubles the time until the next."""

FIRST_TRIAL_RUNS: Final = 16
"""The first trial comes sooner: what was learned at load were few runs, none of them handed to a thread and back."""

OUTLIER: Final = 2.0
"""A run so many times slower tells of the machine, not of the model: it counts as this much slower."""

COMPANY_GAIN_MIN: Final = 0.01
"""Two batches are handed over together if that raises rows per second by so much: one way to the instance and back for
both. Those of the first then wait for the second, for less than fifty such ways."""

COMPANY_WAITING: Final = 4
"""And only while so many batches wait: then everybody waits for others, and how long is settled by the rate. Of a short
queue the first are better answered first."""

SIZES_MAX: Final = 64
"""Sizes remembered. When the table is full only powers of two are added, of which there are few."""


class RowTimes:
    """Undisturbed run time in nanoseconds by batch rows. One owner, one thread."""

    __slots__ = (
        "_best",
        "_first_aim",
        "_has_grown",
        "_is_whole_faster",
        "_limit",
        "_retry_runs",
        "_rows",
        "_runs",
        "_times_ns",
        "_trial",
        "_trial_in",
        "_tries_larger",
        "hand_over_ns",
    )

    def __init__(self, first_aim: int = 1) -> None:
        """`first_aim` is the size to begin with, for a row shape of which a similar one is known."""
        self._first_aim = first_aim
        self._rows: list[int] = []  # ascending; the two lists below run beside it
        self._times_ns: list[float] = []
        self._runs: list[int] = []
        self._best = 0
        self._is_whole_faster = False
        """Whether twice as many rows as the best size has are at least as fast in one run as in two."""
        self._limit = 0
        self._has_grown = False
        """Whether the first search for the best size has ended; from then on only trials move it."""
        self._trial: Trial | None = None
        self._trial_in = FIRST_TRIAL_RUNS
        self._retry_runs = RETRY_RUNS
        self._tries_larger = True
        self.hand_over_ns = 0.0
        """What a run costs beside its own time: on its way to the instance and back, and until the loop has a turn for
        it. The same for any number of rows, so it counts where sizes are compared."""

    def __bool__(self) -> bool:
        return bool(self._rows)

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Takes in one run of `rows` > 0 rows."""
        if self._has_grown:
            self._try(rows, elapsed_ns)
        elapsed = max(elapsed_ns, 1)
        at = bisect_left(self._rows, rows)
        if at == len(self._rows) or self._rows[at] != rows:
            if len(self._rows) < SIZES_MAX or rows & (rows - 1) == 0:
                self._rows.insert(at, rows)
                self._times_ns.insert(at, float(elapsed))
                self._runs.insert(at, 1)
                self._grow()
            return
        known_ns = self._times_ns[at]
        if self._runs[at] < RUNS_KNOWN:
            self._runs[at] += 1
            self._times_ns[at] = min(known_ns, elapsed)
            self._grow()
        else:
            weight = FALL if elapsed < known_ns else RISE
            self._times_ns[at] = known_ns + weight * (min(elapsed, OUTLIER * known_ns) - known_ns)

    def observe_hand_over(self, elapsed_ns: int) -> None:
        """Takes in how long a run was on its way. The mean: what disturbs it is a cost too."""
        known_ns = self.hand_over_ns or float(elapsed_ns)
        self.hand_over_ns = known_ns + HAND_OVER_WEIGHT * (min(elapsed_ns, HAND_OVER_OUTLIER * known_ns) - known_ns)

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

    def best_rows(self, limit: int, waiting: int = 0) -> int:
        """The batch size to aim for, from 1 to `limit`, while so many rows are known to wait.

        At first sizes double for as long as each doubling gains `GAIN_MIN` in rows per second, then they stay; a model
        for which batching does not pay stays at one row after a few tries. From time to time the size takes turns with
        a neighbour, which is then the answer for some runs, and the better one stays. While many wait, two batches of
        that size go together (`part_rows`), if the way to the instance and back is worth saving.
        """
        if self._trial is not None:
            return min(self._trial.next_rows, limit)
        if not self._best or (limit != self._limit and not self._has_grown):
            self._best, self._limit = self._choose(limit), limit
        if waiting >= COMPANY_WAITING * self._best and self._is_company_worth_it():
            return min(2 * self._best, limit)
        return min(self._best, limit)

    def part_rows(self, rows: int) -> int:
        """In runs of how many rows a batch of so many is best computed: of all, or two of half."""
        is_company = rows == 2 * self._best and self._trial is None and not self._is_whole_faster
        return self._best if is_company else rows

    def _is_company_worth_it(self) -> bool:
        saved_ns = self.hand_over_ns / 2
        return saved_ns > COMPANY_GAIN_MIN * (self.estimate_ns(self._best) + saved_ns)

    def table(self) -> dict[int, float]:
        """Rows -> nanoseconds, as learned so far."""
        return dict(zip(self._rows, self._times_ns, strict=True))

    def _grow(self) -> None:
        if not self._has_grown:
            self._best = 0

    def _try(self, rows: int, elapsed_ns: int) -> None:
        """Holds trials between the best size and its neighbours."""
        self._trial_in -= 1
        trial = self._trial
        if trial is None:
            if self._trial_in <= 0:
                self._begin_trial()
            return
        trial.observe(rows, elapsed_ns)
        winner = trial.winner(self.hand_over_ns)
        if winner and winner != self._best:  # and on in the same direction, as far as that pays
            self._best, self._is_whole_faster, self._retry_runs = winner, False, RETRY_RUNS
            self._begin_trial()
        elif winner or self._trial_in <= 0:  # decided, or never decided, since requests were too few for it
            if winner == trial.smaller:
                self._is_whole_faster = trial.gain(0) >= 0
            self._trial = None
            self._trial_in = self._retry_runs
            self._retry_runs = min(2 * self._retry_runs, RETRY_RUNS_MAX)
            self._tries_larger = not self._tries_larger

    def _begin_trial(self) -> None:
        best = self._best
        larger, smaller = min(_power_of_two_above(best), self._limit), _power_of_two_below(best)
        can_be_larger, can_be_smaller = larger > best, smaller < best
        self._trial = None
        self._trial_in = RETRY_RUNS
        if can_be_larger and (self._tries_larger or not can_be_smaller):
            self._trial = Trial(best, larger)
        elif can_be_smaller:
            self._trial = Trial(smaller, best)

    def _choose(self, limit: int) -> int:
        if not self._rows:
            return min(self._first_aim, limit)
        best = self._measured_best(limit)
        larger = min(_power_of_two_above(best), limit)
        at = bisect_left(self._rows, larger)
        is_known = at < len(self._rows) and self._rows[at] == larger and self._runs[at] >= RUNS_KNOWN
        if not is_known or not best:
            return larger
        self._has_grown = True
        return best

    def _measured_best(self, limit: int) -> int:
        best, best_rate = 0, 0.0
        for rows, time_ns in zip(self._rows, self._times_ns, strict=True):
            if rows > limit:
                break
            rate = rows / (time_ns + self.hand_over_ns)
            if rate > best_rate * (1 + GAIN_MIN):
                best, best_rate = rows, rate
        return best


def _power_of_two_below(rows: int) -> int:
    """The largest power of two smaller than `rows`; 1 for 1."""
    return 1 << max(0, (rows - 1).bit_length() - 1)


def _power_of_two_above(rows: int) -> int:
    """The smallest power of two larger than `rows`."""
    return 1 << rows.bit_length()
