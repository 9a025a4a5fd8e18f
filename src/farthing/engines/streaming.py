"""What an engine must do whose models may answer a request zero, one or many times (Triton's "decoupled" models).

Such an executable is an `Executable` that can also `begin` a batch: the answers come while it runs and after, on a
thread of the engine's own. Engines that answer once need not know of this file.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import msgspec

from farthing.engines.contract import Batch, Executable, MemberAnswer
from farthing.types.errors import FarthingError


class Part(msgspec.Struct, frozen=True):
    """One thing that a model says to a request."""

    answer: MemberAnswer | FarthingError | None
    """None: there is nothing more to say than that this was the last, or that the request runs again."""
    is_last: bool
    is_rescheduled: bool = False
    """Nothing more is said in this batch: the request is to run again, in another."""


Hear = Callable[[Part], None]
"""Gets one member's parts in their order, on a thread of the engine's. Must be quick. The last one `is_last`, or
`is_rescheduled` before the batch has returned."""


class StreamedBatch(Protocol):
    """A batch whose members are being answered. All but `wait` may be called from any thread, and none blocks."""

    def wait(self) -> None:
        """Blocks until the instance can take the next batch; answers may go on coming."""

    def cancel(self, member: int) -> None:
        """Nobody hears this member's answers any more: the model is told, and what it still says is dropped."""

    def take(self, member: int) -> None:
        """One more answer of this member has been dealt with; engines make only so many ahead."""


@runtime_checkable
class StreamingExecutable(Executable, Protocol):
    """A model that can be run as a stream. Its `execute` runs a batch to its end and drops what it said."""

    @property
    def is_decoupled(self) -> bool:
        """Whether this model has to be run by `begin`: it answers as often as it likes."""

    @property
    def returns_at_once(self) -> bool:
        """Whether a batch has returned as soon as it is begun, so that `wait` says nothing of what still runs."""

    def begin(self, batch: Batch, instance: int, hears: Sequence[Hear]) -> StreamedBatch:
        """Begins a batch; `hears` has one function a member. Each hears a last part, whatever happens.

        Raises `FarthingError` when the batch could not begin; then nobody hears anything.
        """


def run_to_the_end(executable: StreamingExecutable, batch: Batch, instance: int) -> list[MemberAnswer | FarthingError]:
    """Runs a batch until every member has heard its last part, which blocks; answers each one's first error, if any.

    For warming up: what the members are told is dropped.
    """
    errors: dict[int, FarthingError] = {}
    left = len(batch.members)
    is_done = threading.Event()
    running: list[StreamedBatch] = []
    untaken: list[int] = []

    def hear(member: int, part: Part) -> None:
        nonlocal left
        if isinstance(part.answer, FarthingError):
            errors.setdefault(member, part.answer)
        if running:
            running[0].take(member)
        else:
            untaken.append(member)
        left -= part.is_last or part.is_rescheduled
        if not left:
            is_done.set()

    running.append(executable.begin(batch, instance, [partial(hear, member) for member in range(left)]))
    for member in untaken:
        running[0].take(member)
    running[0].wait()
    is_done.wait()
    return [errors.get(member, MemberAnswer({})) for member in range(len(batch.members))]
