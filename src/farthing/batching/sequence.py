"""A client's series of requests that share state, and a request of one.

Plain values of `sequences`, which alone changes who waits, runs and holds a slot; the states are put there by
`sequence_loop`.
"""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any, Final

from farthing.batching.queue import Waiter
from farthing.types.tensors import Tensor

SequenceId = int | str
"""A correlation id: 5 and "5" are two."""

NO_STATES: Final[Mapping[str, Tensor]] = {}


class SequenceWaiter(Waiter):
    """A request of a sequence."""

    # Without slots of its own, so that requests that are answered often can be of a sequence too.
    def __init__(
        self, *waiter: Any, sequence_id: SequenceId, is_start: bool, is_end: bool, is_iterative: bool = False
    ) -> None:
        super().__init__(*waiter)
        self.sequence_id = sequence_id
        self.is_start = is_start
        """Of one that runs again: until it has run."""
        self.is_end = is_end
        self.is_iterative = is_iterative
        """It is all of its sequence, and its model may have it run again."""
        self.sequence: Sequence
        self.ran_ns = 0
        self.runs = 0
        """That have ended without an answer."""
        self.again_ns = 0
        """Since when it waits for its next run."""
        self.is_held = False
        """It does not run again yet: its client is behind."""
        self.is_timed = False
        """Its deadline is in the table's."""

    @property
    def since_ns(self) -> int:
        return self.again_ns or self.arrival_ns


class Sequence:
    """One series, from its START to its end. Its first request, and no other, is a START."""

    __slots__ = (
        "id",
        "idle_since_ns",
        "inherits_slot",
        "instance",
        "is_closed",
        "predecessor",
        "running",
        "slot",
        "state_shapes",
        "states",
        "successor",
        "waiting",
    )

    def __init__(self, sequence_id: SequenceId) -> None:
        self.id = sequence_id
        self.waiting: deque[SequenceWaiter] = deque()
        self.running: SequenceWaiter | None = None
        self.states: Mapping[str, Tensor] = NO_STATES
        """What its last request left, by the state's input; empty before the first."""
        self.state_shapes: Hashable = None
        """Only sequences whose states have the same shapes share a run."""
        self.instance = -1
        self.slot = -1
        """-1: waits for one."""
        self.idle_since_ns = 0
        self.is_closed = False
        """Takes no more requests: its END is queued, or the next sequence of this id has begun."""
        self.predecessor: Sequence | None = None
        self.successor: Sequence | None = None
        """The next of the same id, which does not begin before this one has ended."""
        self.inherits_slot = False
        """Begun by a client that started over without an END: it keeps the slot of the one before."""
