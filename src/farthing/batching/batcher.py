"""When do waiting requests leave together?

The batcher decides and never waits. It is given what is queued, the limits, what is known of the model's speed and
of its callers, and the time; it answers with how many requests to run now or the moment to ask again. Sleeping and
running belong to `batching.loop`, who is queued in which order to `batching.queue`. Why it decides as it does is told
in docs/decisions/0002.

Requests are counted from the head of the queue. Units are nanoseconds and rows.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from farthing.batching.row_times import RowTimes
from farthing.types.batch_axes import BatchAxes

WAIT_SHARE_MAX: Final = 0.5
"""Waiting by choice ends when so much of a run's time has passed since an instance came free: it costs nobody more."""

WAIT_NS_MIN: Final = 1_000_000
"""Event loops keep time in milliseconds, so a wait may last that long whatever was asked for: models of which half a
run is shorter never wait."""

LAST_LAGS: Final = 3
"""The last of those who come back is expected after so many mean lags. At an even pace it takes two; the third is for
callers who only seem to come back: with it, Poisson arrivals are served within 5 % of never waiting."""

OVERDUE_LAGS: Final = 4
"""Who has not come back after so many mean lags is not coming."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's configuration demands of a batch."""

    rows_max: int
    """Rows of a batch; 0 for a model whose requests never share a run."""
    preferred_rows: tuple[int, ...] = ()
    """Sizes to wait for (`preferred_batch_size`), ascending."""
    delay_ns_max: int | None = None
    """How long the oldest may be kept waiting for them; None: nobody said, so measure."""
    axes: BatchAxes | None = None
    """Along which the rows lie; None: along the first of every tensor."""


class Callers(msgspec.Struct, frozen=True, gc=False):
    """What is known of those who send requests."""

    away: int = 0
    """Callers answered by the last run who have not come back since."""
    lag_ns: int = 0
    """How long such callers took lately from their answers to their next request, in the mean."""
    free_ns: int = 0
    """When the last run ended."""


NOBODY: Final = Callers()


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
    callers: Callers,
    now_ns: int,
) -> Run | Wait | None:
    """What an idle instance should do with the requests at the head of the queue.

    `rows` and `arrivals_ns` describe requests that may share a batch, first to be served first; `arrivals_ns` need
    not ascend. None when there is nothing to do.
    """
    if not rows:
        return None
    if limits.rows_max <= 0 or rows[0] <= 0:
        return Run(1)
    aim, requests, total = _aimed(rows, limits, times)
    if limits.delay_ns_max is not None:
        return _as_configured(rows, arrivals_ns, limits, requests, total, now_ns)
    if total >= aim or requests < len(rows):
        return Run(requests)
    if callers.away > 0:
        until_ns = _wait_until_ns(requests, total, aim, times, callers)
        if until_ns > now_ns:
            return Wait(until_ns)
    return Run(requests)


def full_batch(rows: Sequence[int], limits: Limits, times: RowTimes) -> int:
    """How many requests at the head of the queue make a batch that nobody could still join; 0 if it is not full."""
    if not rows:
        return 0
    if limits.rows_max <= 0 or rows[0] <= 0:
        return 1
    aim, requests, total = _aimed(rows, limits, times)
    return requests if total >= aim or requests < len(rows) else 0


def _aimed(rows: Sequence[int], limits: Limits, times: RowTimes) -> tuple[int, int, int]:
    """How many rows a batch is to have, how many requests from the head come to no more, and their rows."""
    aim = limits.rows_max if limits.delay_ns_max is not None else times.best_rows(limits.rows_max, sum(rows))
    return aim, *_prefix(rows, aim)


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


def _wait_until_ns(requests: int, total: int, aim: int, times: RowTimes, callers: Callers) -> int:
    """Until when to wait for callers who were just answered and may come back with the next request; 0 for not at all.

    Many clients send their next request when they have the answer to the last. Run those who wait now, n rows, and the
    k rows of those who come back run after them: a round takes t(n) + t(k). Wait for them, and it takes t(n + k) and
    the waiting. Waiting pays when it is shorter than the time saved.
    """
    wait_ns_max = int(WAIT_SHARE_MAX * times.estimate_ns(total))
    if wait_ns_max < WAIT_NS_MIN:
        return 0
    more = min(callers.away * max(total // requests, 1), aim - total)
    saved_ns = times.estimate_ns(total) + times.estimate_ns(more) - times.hoped_ns(total + more)
    if LAST_LAGS * callers.lag_ns >= saved_ns:
        return 0
    return callers.free_ns + min(max(OVERDUE_LAGS * callers.lag_ns, WAIT_NS_MIN), wait_ns_max)


def _prefix(rows: Sequence[int], rows_max: int) -> tuple[int, int]:
    """How many requests from the head fit into `rows_max` (at least one), and their rows."""
    total = rows[0]
    for index in range(1, len(rows)):
        if total + rows[index] > rows_max:
            return index, total
        total += rows[index]
    return len(rows), total
