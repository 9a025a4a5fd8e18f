"""The worker's side of requests that are answered as often as the model likes.

A thread reads what the server says (new batches, cancellations, responses taken); the model runs on the main thread,
and may answer from any thread. `Answering` is one request's answers, `Port` the way to the server. How a batch is run
is for `stream_triton` and `stream_native`.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from farthing.engines.contract import Member
from farthing.engines.python.channel import Arena, Connection, Place, read_tensor, write_tensors
from farthing.engines.python.interface import ModelMistake, rows_of
from farthing.engines.python.messages import Stop
from farthing.engines.python.stream_messages import (
    RESPONSE_BYTES_MAX,
    UNTAKEN_BYTES_MAX,
    UNTAKEN_RESPONSES_MAX,
    Cancel,
    Rescheduled,
    Response,
    Returned,
    StreamRun,
    Taken,
    decode_order,
    encode,
)
from farthing.types.requests import Parameter
from farthing.types.tensors import Tensor

LET_GO: Final = "the model let go of the request without a last response"


class Parcel:
    """Memory that `write_tensors` can fill, to go along with a message."""

    __slots__ = ("map",)

    def __init__(self) -> None:
        self.map: Any = bytearray()

    def grow(self, size: int) -> None:
        """Makes room. Raises `ValueError` for more than a response may hold."""
        if size > RESPONSE_BYTES_MAX:
            raise ValueError(f"{size} bytes of tensors in one response; allowed: {RESPONSE_BYTES_MAX}")
        self.map = bytearray(size)


class Answering:
    """One request's answers. Whoever holds this may answer it; if nobody does, nobody can, and the client is told."""

    __slots__ = (
        "__weakref__",
        "_port",
        "_untaken",
        "_untaken_bytes",
        "is_cancelled",
        "is_over",
        "is_rescheduled",
        "number",
        "wake",
    )

    def __init__(self, port: "Port", number: int) -> None:
        self._port = port
        self.number = number
        self.is_cancelled = False
        """Nobody waits for answers any more; those that are given are dropped."""
        self.is_over = False
        """The last one has been given."""
        self.is_rescheduled = False
        """The request runs again, and is answered there."""
        self.wake: Callable[[], object] | None = None
        """Called on the reading thread when there may be room, or the request has been cancelled."""
        self._untaken: deque[int] = deque()
        self._untaken_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether an answer can be given now without waiting for the server to take others."""
        return self.is_cancelled or (
            len(self._untaken) < UNTAKEN_RESPONSES_MAX and self._untaken_bytes < UNTAKEN_BYTES_MAX
        )

    def respond(
        self, outputs: Mapping[str, Tensor], parameters: Mapping[str, Parameter], *, is_last: bool = False
    ) -> None:
        """Gives an answer; blocks while there is no room. Raises `ModelMistake` for what cannot be sent."""
        parcel = Parcel()
        try:
            places = write_tensors(parcel, outputs.items())
        except ValueError as problem:
            raise ModelMistake(str(problem)) from problem
        self._send(Response(self.number, is_last, False, places, bytes(parcel.map), dict(parameters)))

    def fail(self, error_kind: str, error: str, *, is_last: bool = True) -> None:
        """Gives an error for an answer."""
        self._send(Response(self.number, is_last, error_kind=error_kind, error=error))

    def end(self) -> None:
        """Says that there is no more to come."""
        self._send(Response(self.number, is_last=True, is_empty=True))

    def reschedule(self) -> None:
        """Has the request run again. Too late if the last answer has been given."""
        with self._port.changed:
            if not self.is_over:
                self.is_over = self.is_rescheduled = True
                self._port.send(encode(Rescheduled(self.number)))

    def _send(self, response: Response) -> None:
        if self.is_over:
            return
        try:
            data = encode(response)
        except (OverflowError, ValueError, TypeError) as problem:
            raise ModelMistake(f"a response's parameter cannot be sent: {problem}") from problem
        size = len(response.data)
        with self._port.changed:
            while not response.is_empty and not self.has_room:
                self._port.changed.wait()
            if self.is_over:  # another thread was quicker
                return
            self.is_over = response.is_last
            if self.is_cancelled and not response.is_last:
                return
            if not response.is_empty:
                self._untaken.append(size)
                self._untaken_bytes += size
            self._port.send(data)  # under the lock: responses leave in their order, whatever threads send them

    def taken(self) -> None:
        """The server has dealt with the oldest; called by the port, which holds its lock."""
        if self._untaken:
            self._untaken_bytes -= self._untaken.popleft()

    def __del__(self) -> None:
        if not self.is_over:
            self._port.lost.put(self.number)


class StreamModel(Protocol):
    """What runs batches of a user's model, one way or the other."""

    def serve(self, port: "Port") -> None:
        """Runs what `port.next_batch` gives until it gives None."""

    def close(self) -> None:
        """Tells the user's code that it is over."""


class StreamBatch:
    """A batch as the worker has it: each member with its own inputs, copied out of the arena."""

    __slots__ = ("answerings", "inputs", "members", "outputs")

    def __init__(
        self,
        members: tuple[Member, ...],
        outputs: tuple[str, ...],
        inputs: list[dict[str, Tensor]],
        answerings: list[Answering],
    ) -> None:
        self.members = members
        self.outputs = outputs
        self.inputs = inputs
        self.answerings = answerings


class Port:
    """The way to the server and back."""

    def __init__(self, connection: Connection, inputs: Arena, on_stop: Callable[[], None]) -> None:
        self._connection = connection
        self._inputs = inputs
        self._on_stop = on_stop
        self._sending = threading.Lock()
        self._batches: SimpleQueue[StreamBatch | None] = SimpleQueue()
        self._open: WeakValueDictionary[int, Answering] = WeakValueDictionary()
        self.changed = threading.Condition()
        """Its lock guards what is untaken; it is told whenever that gets less."""
        self.lost: SimpleQueue[int] = SimpleQueue()
        """Requests nobody can answer any more; filled by destructors, which may run anywhere and must not lock."""
        self.on_batch: Callable[[], object] | None = None
        """Called on the reading thread when there is a batch, or the end."""

    def start(self) -> None:
        """Begins to read."""
        for serve in (self._read, self._mourn):
            threading.Thread(target=serve, name=f"farthing-{serve.__name__}", daemon=True).start()

    def send(self, data: bytes) -> None:
        """Sends one message whole, from any thread. A server that is gone hears nothing."""
        with self._sending:
            try:
                self._connection.send(data)
            except OSError:
                return  # this process is about to end

    def returned(self) -> None:
        """Tells the server that another batch can be begun."""
        self.send(encode(Returned()))

    def next_batch(self, *, blocks: bool = True) -> StreamBatch | None:
        """The next batch; None at the end. Raises `queue.Empty` if there is none and it should not wait."""
        return self._batches.get(block=blocks)

    def _read(self) -> None:
        try:
            while (data := self._connection.receive()) is not None:
                order = decode_order(data)
                if isinstance(order, Stop):
                    break
                if isinstance(order, StreamRun):
                    self._batches.put(self._batch(order))
                    if self.on_batch is not None:
                        self.on_batch()
                else:
                    self._told(order)
        except (OSError, ValueError, msgspec.DecodeError):
            traceback.print_exc()
        self._on_stop()
        for answering in list(self._open.values()):
            self._told(Cancel(answering.number))
        self._batches.put(None)
        if self.on_batch is not None:
            self.on_batch()

    def _told(self, order: Cancel | Taken) -> None:
        answering = self._open.get(order.number)
        if answering is None:
            return
        with self.changed:
            if isinstance(order, Cancel):
                answering.is_cancelled = True
            else:
                answering.taken()
            self.changed.notify_all()
        if answering.wake is not None:
            answering.wake()

    def _batch(self, run: StreamRun) -> StreamBatch:
        self._inputs.refresh()
        memory = self._inputs.memory()
        inputs = {place.name: _copied(memory, place) for place in run.inputs}
        answerings = [Answering(self, number) for number in run.numbers]
        self._open.update({answering.number: answering for answering in answerings})
        own = rows_of(inputs, [member.rows for member in run.members])
        return StreamBatch(run.members, run.outputs, own, answerings)

    def _mourn(self) -> None:
        while True:
            self.send(encode(Response(self.lost.get(), is_last=True, error_kind="EngineFailed", error=LET_GO)))


def _copied(memory: Tensor, place: Place) -> Tensor:
    tensor = read_tensor(memory, place)
    return tensor if place.datatype == "BYTES" else np.array(tensor)
