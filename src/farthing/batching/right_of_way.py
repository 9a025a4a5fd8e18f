"""May a batch of this model start now, or does it stand in the way of a frame of another one?

Every batch takes the machine's cores for a while and cannot be stopped. So while streams of frames with deadlines are
open, batches of different models go one after the other: the earliest deadline first, then those without one. Pure:
who asks, what runs and what is owed are given, as is the time. Keeping them belongs to `batching.crossing`; why it is
decided so is told in docs/decisions/0019.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from farthing.batching.batcher import Run, Wait
from farthing.batching.frames import TIMER_NS

BLOCK_SHARE: Final = 0.5
"""Of the time that frames have to spare, so much may be taken by batches that are under way when one comes. The other
half is for what was not expected: a run that takes longer, and the way of bytes in and out."""

OTHERS_SHARE: Final = 0.1
"""Of the machine's time, so much is left to those without a deadline if they want it, whatever frames come: a video is
no reason for a service to stop. More would take it from videos that fill most of a machine and could still be on
time."""

UNTIL_WOKEN: Final = Wait(0)
"""The answer for who waits for others, not for a time."""


GIVEN_UP_RUNS: Final = 10
"""A batch that takes so many times what it should holds nobody up any longer."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A model with a batch that wants to start."""

    due_ns: int
    """When the first of what it would run, or of what waits behind that, should be answered; 0 for never."""
    run_ns: int
    """What its smallest batch takes."""
    order: int
    """Who asked first has the lower one."""


class Underway(msgspec.Struct, frozen=True, gc=False):
    """A batch that runs."""

    end_ns: int
    """When it should be over."""
    given_up_ns: int
    """From when on nobody waits for its end: it hangs, or nothing is known of such batches."""
    is_due: bool
    """Whether a frame's deadline depends on it."""


def rank(claim: Claim) -> tuple[int, int]:
    """Sorts claims: the earliest deadline first, then those without one as they came."""
    return (claim.due_ns or 1 << 62), claim.order


def slack_ns(deadline_ns: int, run_ns: int, interval_ns: int) -> int:
    """How long a stream's frame can wait: until it would be late, or a newer one takes its place after `interval_ns`
    (0: none does)."""
    late_ns = deadline_ns - run_ns
    return min(late_ns, interval_ns) if interval_ns else late_ns


def block_ns(slacks_ns: Iterable[int]) -> int:
    """How long batches may stand in the way, where streams have so much time to spare for each frame."""
    return int(BLOCK_SHARE * max(0, min(slacks_ns, default=0)))


def owed_ns(run_ns: int) -> int:
    """What a frame's run owes to those it kept waiting."""
    return int(run_ns * OTHERS_SHARE / (1 - OTHERS_SHARE))


def decide(
    rows: Sequence[int],
    claim: Claim,
    estimate_ns: Callable[[int], int],
    others: Sequence[Claim],
    running: Sequence[Underway],
    *,
    block_ns: int,
    owed_ns: int,
    now_ns: int,
) -> Run | Wait:
    """How many of the requests (so many rows each) may start now, or when to ask again at the latest.

    `others` are the claims of other models, `running` the batches under way: those of other models for one that is
    due, all for one that is not. What is due is never kept from starting at the last moment at which it could be on
    time.
    """
    running = [one for one in running if now_ns < one.given_up_ns]
    if claim.due_ns:
        start_ns = claim.due_ns - estimate_ns(sum(rows)) - TIMER_NS
        if start_ns <= now_ns or not (running or _is_behind(claim, others, owed_ns)):
            return Run(len(rows))
        return Wait(start_ns)
    if due := [one.given_up_ns for one in running if one.is_due]:
        return Wait(max(due))
    if any(not other.due_ns and other.order < claim.order for other in others):
        return UNTIL_WOKEN
    if any(other.due_ns for other in others):
        requests = _within(rows, estimate_ns, owed_ns)
        return Run(requests) if requests else UNTIL_WOKEN
    left_ns = block_ns - sum(max(0, one.end_ns - now_ns) for one in running)
    requests = _within(rows, estimate_ns, left_ns)
    if not requests and not running:
        requests = 1  # what takes longer than there is time to spare would never run
    return Run(requests) if requests else UNTIL_WOKEN


def _is_behind(claim: Claim, others: Iterable[Claim], owed_ns: int) -> bool:
    """Whether somebody else is to go first: an earlier deadline, or the first of those who are owed so much."""
    first = min((other for other in others if not other.due_ns), key=rank, default=None)
    if first is not None and first.run_ns <= owed_ns:
        return True
    return any(other.due_ns and rank(other) < rank(claim) for other in others)


def _within(rows: Sequence[int], estimate_ns: Callable[[int], int], limit_ns: int) -> int:
    """How many requests from the head take no longer than that together."""
    requests = len(rows)
    total = sum(rows)
    while requests and estimate_ns(total) > limit_ns:
        requests -= 1
        total -= rows[requests]
    return requests
