"""A request whose answer another model reads next: it stays in its batch, and goes on with the others.

Rows that one batch made are the next batch as they are, so nobody takes them apart, makes an answer of each and puts
them together again. `batching.run` lets them be, `batching.loop` tells where they go on (`Onward`), and that they go to
which model belongs to `runtime.convoy`. A rider goes through one queue; should it have to wait for the next model too,
there is another one for that.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from farthing.batching.queue import ENDED, Waiter
from farthing.types.tensors import Tensor


class Arrival(Protocol):
    """A batch that has run, as `batching.run.Ran` tells of it."""

    started_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int


class Onward(Protocol):
    """What becomes of riders that their model has run."""

    def arrived(
        self, riders: "Sequence[Rider]", outputs: Mapping[str, Tensor], ran: Arrival, *, is_last: bool
    ) -> "Sequence[Pumped]":
        """`outputs` are the whole batch's; each rider has the rows from its `start` on. Called on the event loop.

        `is_last`: no others follow in this turn, whose company would be worth waiting for. Answers where they are
        queued now. Never raises. Errors, and answers that a model gave one by one, go to `done` instead.
        """


class Pumped(Protocol):
    """The loop of a model."""

    def pump_once(self) -> "Sequence[Pumped]":
        """Runs what waits, if it is time; answers those where others wait because of that."""

    def pump_soon(self) -> None:
        """The same, in the next turn of the event loop."""


class Rider(Waiter):
    """A waiter whose rows stay where they are. Its maker says what it has beside these, and what `done` does."""

    goes_on: ClassVar[bool] = True

    __slots__ = ("onward", "start")

    onward: Onward
    start: int
    """Its first row: before it runs, in `inputs` that it shares with others (-1: they are its own); then, in what its
    batch made."""


def shared_rows(waiters: Sequence[Waiter]) -> Mapping[str, Tensor] | None:
    """The inputs of a batch that still lie one after the other, where an earlier batch made them; views. None: no."""
    inputs, start = waiters[0].inputs, waiters[0].start
    if start < 0:
        return None
    end = start
    for waiter in waiters:
        if waiter.inputs is not inputs or waiter.start != end:
            return None
        end += waiter.rows
    return {name: tensor if end - start == len(tensor) else tensor[start:end] for name, tensor in inputs.items()}


def own_rows(waiter: Waiter, name: str) -> Tensor:
    """One input of one request."""
    tensor = waiter.inputs[name]
    return tensor if waiter.start < 0 else tensor[waiter.start : waiter.start + waiter.rows]


def riders_of(waiters: Sequence[Waiter]) -> dict[Onward, list[Rider]]:
    """Those of a batch that has run whose clients are there, by where they go on; each is told where its rows begin."""
    going_on: dict[Onward, list[Rider]] = {}
    onward: Onward | None = None
    riders: list[Rider] = []
    start = 0
    for waiter in waiters:
        if waiter.goes_on and waiter.state != ENDED:
            assert isinstance(waiter, Rider)
            waiter.start = start
            if waiter.onward is not onward:  # neighbours mostly have the same way
                onward = waiter.onward
                riders = going_on.setdefault(onward, [])
            riders.append(waiter)
        start += waiter.rows
    return going_on
