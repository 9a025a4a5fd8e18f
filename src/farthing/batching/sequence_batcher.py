"""Which requests of an instance's sequences leave together, and when?

Decides and never waits, as `batcher` does; it is given what may run, the rules, what is known of the model's speed
and of its callers, and the time. Who may run is for `sequences` to say, waiting and running for `sequence_loop`.

    direct   each sequence keeps a row of the batch: all slots run together, empty ones as padding (READY is false)
    oldest   the sequences that have been ready for longest fill a batch, as the dynamic batcher would
"""

from collections.abc import Sequence

import msgspec

from farthing.batching.batcher import Callers, Limits, Run, Wait, decide
from farthing.batching.row_times import RowTimes


class SequenceRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's configuration demands."""

    limits: Limits
    """Of a batch; its sizes to wait for and its delay count for `oldest` alone."""
    slots: int
    """Sequences that each instance has at one time."""
    idle_ns: int
    """A sequence of which nothing came for so long has ended."""
    is_direct: bool
    is_iterative: bool = False
    """Each request is a sequence, which runs again as often as the model likes."""
    is_in_order: bool = False
    """Answers come in the order in which the requests of an instance became ready (`preserve_ordering`)."""
    fill_min: float = 0.0
    """Share of the slots that must be ready, else `direct` waits (`minimum_slot_utilization`)."""
    fill_delay_ns: int = 0
    """For so long at most."""


def decide_batch(
    ready_ns: Sequence[int], rules: SequenceRules, times: RowTimes, callers: Callers, now_ns: int
) -> Run | Wait | None:
    """What an idle instance should do with requests of different sequences that may share a run.

    `ready_ns` says since when each could run, longest first. None when there is nothing to do.
    """
    if not ready_ns:
        return None
    if not rules.is_direct:
        return decide([1] * len(ready_ns), ready_ns, rules.limits, times, callers, now_ns)
    due_ns = min(ready_ns) + rules.fill_delay_ns
    if len(ready_ns) >= rules.fill_min * rules.slots or now_ns >= due_ns:
        return Run(len(ready_ns))
    return Wait(due_ns)
