"""When do waiting requests leave together?

The batcher decides and never waits. It is given what is queued, the limits, what is known of the model's speed and
of arrivals, and the time; it answers with how many requests to run now or the moment to ask again. Sleeping and
running belong to `batching.loop`, who is queued in which order to `batching.queue`.

Requests are counted from the head of the queue. Units are nanoseconds and rows.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from farthing.batching.row_times import RowTimes

WAIT_SHARE_MAX: Final = 0.5
"""A request never waits for company longer than this share of its own run time, so the choice to wait can cost a
request half a run at worst and a lone one (whose next companion is a whole run away) never waits at all."""

WAIT_NS_MIN: Final = 1_000_000
"""Shorter waits are not begun: event loops keep time in milliseconds, so a shorter one would last that long."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's configuration demands of a batch."""

    rows_max: int
    """Rows of a batch; 0 for a model whose requests never share a run."""
    preferred_rows: tuple[int, ...] = ()
    """Sizes to wait for (`preferred_batch_size`), ascending."""
    delay_ns_max: int | None = None
    """How long the oldest may be kept waiting for them; None: nobody said, so measure."""


class Run(msgspec.Struct, frozen=True):
    """Run the first `requests` of the queue now."""

    requests: int


class Wait(msgspec.Struct, frozen=True):
    """Ask again at this time, or when something arrives."""

    until_ns: int


def decide(
    rows: Sequence[int],
    arrivals_ns: Sequence[int],
    limits: Limits,
    times: RowTimes,
    gap_ns: int,
    now_ns: int,
) -> Run | Wait | None:
    """What an idle instance should do with the requests at the head of the queue.

    `rows` and `arrivals_ns` describe requests that may share a batch, first to be served first; `arrivals_ns` need
    not ascend. `gap_ns` is the mean time between arrivals lately (0: unknown). None when there is nothing to do.
    """
    if not rows:
        return None
    if limits.rows_max <= 0 or rows[0] <= 0:
        return Run(1)
    is_configured = limits.delay_ns_max is not None
    aim = limits.rows_max if is_configured else times.best_rows(limits.rows_max)
    requests, total = _prefix(rows, aim)
    if is_configured:
        return _as_configured(rows, arrivals_ns, limits, requests, total, now_ns)
    if total >= aim or requests < len(rows):
        return Run(requests)
    return _as_measured(arrivals_ns[:requests], total, times, gap_ns, now_ns) or Run(requests)


def _as_configured(
    rows: Sequence[int], arrivals_ns: Sequence[int], limits: Limits, requests: int, total: int, now_ns: int
) -> Run | Wait:
    """Triton's rule: a preferred size leaves at once, anything else when the oldest has waited long enough.

    Model configuration, "Dynamic Batcher": without preferred sizes the maximum is the preferred one.
    """
    for preferred in reversed(limits.preferred_rows or (limits.rows_max,)):
        count, sum_rows = _prefix(rows, preferred)
        if sum_rows == preferred:
            return Run(count)
    due_ns = min(arrivals_ns[:requests]) + (limits.delay_ns_max or 0)
    if now_ns >= due_ns or requests < len(rows) or total >= limits.rows_max:
        return Run(requests)
    return Wait(due_ns)


def _as_measured(arrivals_ns: Sequence[int], total: int, times: RowTimes, gap_ns: int, now_ns: int) -> Wait | None:
    """Whether waiting for one more row lowers the mean time to an answer.

    Without waiting, n requests end after t(n), and the next one (a gap g away) starts when they do: it ends
    t(n) - g + t(1) after its arrival. With waiting all n + 1 end at g + t(n+1). Wait when the sum of times is less:

        n (g + t(n+1)) + t(n+1)  <  n t(n) + t(n) - g + t(1)
    """
    if gap_ns <= 0 or not times:
        return None
    n = len(arrivals_ns)
    now_time, one, together = times.estimate_ns(total), times.estimate_ns(1), times.estimate_ns(total + 1)
    if n * (gap_ns + together) + together >= n * now_time + now_time - gap_ns + one:
        return None
    newest, oldest = max(arrivals_ns), min(arrivals_ns)
    # The companion is overdue after twice the usual gap: then it is not coming.
    until_ns = min(newest + 2 * gap_ns, oldest + int(WAIT_SHARE_MAX * now_time))
    return Wait(until_ns) if until_ns - now_ns >= WAIT_NS_MIN else None


def _prefix(rows: Sequence[int], rows_max: int) -> tuple[int, int]:
    """How many requests from the head fit into `rows_max` (at least one), and their rows."""
    total = rows[0]
    for index in range(1, len(rows)):
        if total + rows[index] > rows_max:
            return index, total
        total += rows[index]
    return len(rows), total
