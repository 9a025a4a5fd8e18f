"""A request whose answer another model reads next: it stays in its batch, and goes on with the others.

Rows that one batch made are the next batch as they are, so nobody takes them apart, makes an answer of each and puts
them together again. `batching.run` lets them be, `batching.loop` tells where they go on (`Onward`), and that they go to
which model belongs to `runtime.convoy`. A rider goes through one queue; for the next model there is another one.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from farthing.batching.queue import ENDED, WAITING, Waiter
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor


class Arrival(Protocol):
    """A batch that has run, as `batching.run.Ran` tells of it."""

    started_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int


class Onward(Protocol):
    """What becomes of riders that their model has run."""

    def arrived(self, riders: "Sequence[Rider]", outputs: Mapping[str, Tensor], ran: Arrival) -> "Pumped | None":
        """`outputs` are the whole batch's; each rider has the rows from its `start` on. Called on the event loop.

        Answers where they are queued now. Never raises. Errors, and answers that a model gave one by one, go to `done`
        instead.
        """


class Pumped(Protocol):
    """The loop of a model."""

    def pump_once(self) -> "Sequence[Pumped]":
        """Runs what waits, if it is time; answers those where others wait because of that."""

    def pump_soon(self) -> None:
        """The same, in the next turn of the event loop."""


class Trip(Protocol):
    """The request that a rider is a part of."""

    def answered(self, answer: InferResponse | FarthingError) -> None: ...


class Rider(Waiter):
    """A waiter whose rows stay where they are."""

    goes_on: ClassVar[bool] = True

    __slots__ = ("onward", "start", "trip")

    def __init__(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        start: int,
        rows: int,
        signature: Hashable,
        arrival_ns: int,
        trip: Any,
        onward: Onward,
    ) -> None:
        """`inputs` has the rows of several riders, this one's from `start` on; -1: of this one alone. `trip` is the
        `Trip` that it is a part of, which `onward` knows better."""
        self.request = request
        self.inputs = inputs
        self.start = start
        self.rows = rows
        self.signature = signature
        self.arrival_ns = arrival_ns
        self.done = trip.answered
        self.trip = trip
        self.onward = onward
        self.deadline_ns = 0
        self.level = 0
        self.state = WAITING


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
    start = 0
    for waiter in waiters:
        if isinstance(waiter, Rider) and waiter.state != ENDED:
            waiter.start = start
            going_on.setdefault(waiter.onward, []).append(waiter)
        start += waiter.rows
    return going_on
