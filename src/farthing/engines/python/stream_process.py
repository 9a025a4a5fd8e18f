"""The server's side of a process whose model answers requests as often as it likes.

One thread reads what the worker says and tells whoever hears it; one writes, so that whoever cancels or takes never
waits for a worker that is busy. Whatever way a request's answers end, it hears a last part. What the parts are worth is
judged in `engine`.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from queue import SimpleQueue

import msgspec
import numpy as np

from farthing.engines.contract import Batch
from farthing.engines.python.channel import MESSAGE_BYTES_MAX, Arena, Connection, read_tensor, write_tensors
from farthing.engines.python.stream_messages import (
    UNTAKEN_BYTES_MAX,
    UNTAKEN_RESPONSES_MAX,
    Cancel,
    Rescheduled,
    Response,
    Returned,
    StreamRun,
    Taken,
    decode_answer,
    encode,
)
from farthing.engines.python.subrequest_port import SubrequestPort
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, TooLarge
from farthing.types.tensors import Tensor

HearResponse = Callable[[Response | Rescheduled | FarthingError, dict[str, Tensor]], None]
"""Gets one request's responses and their tensors, or what ended them, on the reading thread."""

JOIN_S = 5.0
"""How long the threads may take to see that the process is gone."""


class RunningStreams:
    """A batch that was begun; `engines.streaming.StreamedBatch`."""

    def __init__(self, streams: "Streams", numbers: tuple[int, ...], timeout_s: float | None) -> None:
        self._streams = streams
        self._numbers = numbers
        self._timeout_s = timeout_s

    def wait(self) -> None:
        """Blocks until the worker can begin another batch, or is gone."""
        self._streams.wait(self._timeout_s)

    def cancel(self, member: int) -> None:
        """The model is told, and no more is heard."""
        self._streams.cancel(self._numbers[member])

    def take(self, member: int) -> None:
        """The worker may send one more."""
        self._streams.take(self._numbers[member])


class Streams:
    """All requests that one process is answering."""

    def __init__(
        self,
        model: str,
        connection: Connection,
        inputs: Arena,
        *,
        port: SubrequestPort,
        death: Callable[[str], FarthingError],
        kill: Callable[[], None],
    ) -> None:
        """`port` learns which requests are being answered. `death` waits for the process's end and tells of it."""
        self._model = model
        self._connection = connection
        self._inputs = inputs
        self._port = port
        self._death = death
        self._kill = kill
        self._counts = count(1)
        self._lock = threading.Lock()
        self._hears: dict[int, _Listener] = {}
        self._ending: FarthingError | None = None
        self._is_free = threading.Event()
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=serve, name=f"python-{model}-{serve.__name__}", daemon=True)
            for serve in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, batch: Batch, hears: Sequence[HearResponse], timeout_s: float | None) -> RunningStreams:
        """Has a batch begun; called when the one before has returned. Raises `InvalidInput` or how the process died."""
        parents = batch.parents or [None] * len(batch.members)
        numbers = tuple(self._port.number(next(self._counts), parent) for parent in parents)
        try:
            places = write_tensors(self._inputs, batch.inputs.items())
            order = encode(StreamRun(places, batch.outputs, batch.members, numbers))
        except (OverflowError, ValueError) as problem:
            raise InvalidInput(
                f"model `{self._model}`: a request cannot be handed to it: {problem}",
                hint="numbers have at most 64 bits, and text is Unicode",
            ) from problem
        if len(order) > MESSAGE_BYTES_MAX:
            raise TooLarge(
                f"model `{self._model}`: ids and parameters of a batch take {len(order)} bytes; "
                f"allowed: {MESSAGE_BYTES_MAX}"
            )
        with self._lock:
            if self._ending is not None:
                raise self._ending
            self._is_free.clear()
            # Before the process can ask on their behalf.
            self._port.begin_streams(dict(zip(numbers, parents, strict=True)))
            self._hears.update(zip(numbers, map(_Listener, hears), strict=True))
        self.post(order)
        return RunningStreams(self, numbers, timeout_s)

    def wait(self, timeout_s: float | None) -> None:
        """Blocks until the worker can begin another batch, or is gone; kills one that takes too long."""
        if not self._is_free.wait(timeout_s):
            self._end(
                EngineFailed(
                    f"model `{self._model}` did not return within {timeout_s:g} s; its process was killed and starts "
                    "anew",
                    hint="the parameter `execution_timeout_seconds` sets how long a batch may take to return",
                )
            )
            self._kill()

    def cancel(self, number: int) -> None:
        """No more is heard of this request, and the model learns it."""
        with self._lock:
            is_open = self._hears.pop(number, None) is not None
        if is_open:
            self._port.leave_stream(number)
            self.post(encode(Cancel(number)))

    def take(self, number: int) -> None:
        """The oldest response to this request has been dealt with: the worker may send one more."""
        with self._lock:
            if (listener := self._hears.get(number)) is not None and listener.untaken:
                listener.untaken_bytes -= listener.untaken.popleft()
        self.post(encode(Taken(number)))

    def post(self, data: bytes) -> None:
        """Sends soon, in order; never blocks."""
        self._to_send.put(data)

    def close(self) -> None:
        """The process is gone, its connection hung up: ends the threads."""
        self._to_send.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def _write(self) -> None:
        while (data := self._to_send.get()) is not None:
            try:
                self._connection.send(data)
            except OSError:
                return  # gone; the reading thread sees it too

    def _read(self) -> None:
        when = "while it answered"
        try:
            while (data := self._connection.receive()) is not None:
                answer = decode_answer(data)
                if isinstance(answer, Returned):
                    self._is_free.set()
                elif isinstance(answer, Rescheduled):
                    self._rescheduled(answer)
                else:
                    self._heard(answer)
        except (OSError, ValueError, msgspec.DecodeError) as problem:
            self._kill()
            when = f"after it answered nonsense ({problem})"
        self._end(self._death(when))

    def _rescheduled(self, answer: Rescheduled) -> None:
        with self._lock:
            listener = self._hears.pop(answer.number, None)
        self._port.end_stream(answer.number)
        if listener is not None:
            listener.hear(answer, {})

    def _heard(self, response: Response) -> None:
        memory = np.frombuffer(response.data, np.uint8)
        tensors = {place.name: read_tensor(memory, place) for place in response.places}
        with self._lock:
            listener = self._hears.get(response.number)
            if listener is not None and not response.is_empty:
                listener.add(len(response.data))
            if response.is_last:
                self._hears.pop(response.number, None)
        if response.is_last:
            self._port.end_stream(response.number)
        if listener is not None:
            listener.hear(response, tensors)

    def _end(self, error: FarthingError) -> None:
        with self._lock:
            if self._ending is None:
                self._ending = error
            listeners, self._hears = self._hears, {}
        self._is_free.set()
        for listener in listeners.values():
            listener.hear(error, {})


class _Listener:
    """Who hears one request's responses, and how many of them nobody has taken yet."""

    __slots__ = ("hear", "untaken", "untaken_bytes")

    def __init__(self, hear: HearResponse) -> None:
        self.hear = hear
        self.untaken: deque[int] = deque()
        """Bytes of each."""
        self.untaken_bytes = 0

    def add(self, size: int) -> None:
        """One more has come. Raises `ValueError` if the worker had to wait before it sent it.

        What is taken is counted here before the worker hears of it, so that none that keeps to it is ever too early.
        """
        if len(self.untaken) >= UNTAKEN_RESPONSES_MAX or self.untaken_bytes >= UNTAKEN_BYTES_MAX:
            raise ValueError(
                f"{len(self.untaken) + 1} responses to one request, {self.untaken_bytes + size} bytes, that nobody had "
                f"taken; allowed: {UNTAKEN_RESPONSES_MAX}, and none after {UNTAKEN_BYTES_MAX} bytes"
            )
        self.untaken.append(size)
        self.untaken_bytes += size
