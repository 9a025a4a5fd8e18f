"""How the server hands answers over to a process: written once into memory it maps, and told in one go.

Small answers are written on the event loop, large ones on a thread; what is answered in one turn of the event loop
leaves together. Which answers these are is up to `subrequest_port`.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Final

import msgspec

from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.arena_pool import ArenaPool, NoRoom
from farthing.engines.python.channel import Arena, write_tensors
from farthing.engines.python.subrequest_messages import SUBREQUESTS_MAX, Told
from farthing.engines.python.subrequest_tensors import HELD_MAX
from farthing.types.errors import EngineFailed, FarthingError, Overloaded
from farthing.types.requests import InferResponse
from farthing.types.tensors import Tensor

ANSWER_BYTES_SOON: Final = 1 << 18
"""Answers up to this size are written on the event loop: some 20 microseconds of copying, what a hand-over costs."""

_LOG: Final = logging.getLogger("farthing.engines.python")

Write = Callable[[], None]


class Letter(msgspec.Struct, frozen=True):
    """An answer on its way."""

    number: int
    """Of the subrequest."""
    model: str
    """Whom it asked."""
    outputs: tuple[str, ...]
    """Those that it asked for; empty: all."""
    answer: InferResponse
    is_last: bool
    over: Callable[[], object]
    """Called before the last one is sent."""


class AnswerWriter:
    """One process's answers; `send_soon` and `write` are called on the event loop."""

    def __init__(self, sock: socket.socket, model: str, soon: Callable[[Callable[[], None]], None] | None) -> None:
        """`soon` has something called in the next turn of the event loop; None: nobody answers."""
        self._socket = sock
        self._model = model
        self._soon = soon
        self._lock = threading.Lock()
        self._answers = ArenaPool(step=-1, arenas_max=SUBREQUESTS_MAX + HELD_MAX)
        self._is_closed = False
        self._outbox = messages.Outbox()
        """Answers of one turn of the event loop; they leave at its end, together."""
        self._writes: SimpleQueue[Write | None] | None = None

    def give(self, freed: Iterable[int]) -> None:
        """The process looks at these no more. Raises `KeyError` or `ValueError` for what cannot be."""
        with self._lock:
            for number in freed:
                self._answers.give(number)

    def in_use(self, number: int) -> Arena | None:
        """The memory of an answer that the process may look at."""
        with self._lock:
            return self._answers.in_use(number)

    def write(self, letter: Letter) -> None:
        """Writes and sends an answer: now, or soon on a thread."""
        tensors = letter.answer.outputs.values()
        size = sum(tensor.nbytes for tensor in tensors)
        if size > ANSWER_BYTES_SOON or any(tensor.dtype.hasobject for tensor in tensors):
            self._on_thread(partial(self._write, letter, self._send_alone))
        else:
            self._write(letter, self.send_soon)

    def close(self) -> None:
        """Gives memory back. The process is gone."""
        with self._lock:
            self._is_closed = True
            if self._writes is not None:
                self._writes.put(None)
            self._answers.close()

    def _write(self, letter: Letter, send: Callable[[bytes, int], None]) -> None:
        asked, number, is_last = letter.outputs, letter.number, letter.is_last
        outputs = {name: tensor for name, tensor in letter.answer.outputs.items() if not asked or name in asked}
        try:
            message, fd = self._told(letter, outputs)
        except NoRoom as full:
            said: FarthingError = Overloaded(
                f"model `{self._model}`: no memory for the answer of `{letter.model}`: {full}",
                hint="let go of earlier answers, or ask for less at once",
            )
            message, fd = messages.encode(messages.failed(number, said, is_last=is_last)), -1
        except (ValueError, OverflowError, OSError) as problem:
            said = EngineFailed(f"the answer of model `{letter.model}` cannot be handed over: {problem}")
            message, fd = messages.encode(messages.failed(number, said, is_last=is_last)), -1
        # Withdrawn meanwhile or not: the process frees the memory once it has heard of it.
        if is_last:
            letter.over()
        send(message, fd)

    def _told(self, letter: Letter, outputs: Mapping[str, Tensor]) -> tuple[bytes, int]:
        """Writes outputs where the process can see them, and says so. Raises `NoRoom`, `ValueError`, `OSError`."""
        with self._lock:
            if self._is_closed:
                raise NoRoom("the process is gone")
            arena_number, arena, is_new = self._answers.take(sum(tensor.nbytes for tensor in outputs.values()))
        try:
            answer = letter.answer
            told = Told(
                number=letter.number,
                model=answer.model_name,
                version=answer.model_version,
                id=answer.id,
                places=write_tensors(arena, outputs.items()),
                parameters=dict(answer.parameters),
                arena=arena_number,
                has_new_arena=is_new,
                is_last=letter.is_last,
            )
            message = messages.encode(told)
            if len(message) > messages.PART_BYTES_MAX:
                raise ValueError(f"its parameters take more than {messages.PART_BYTES_MAX} bytes")
        except BaseException:
            with self._lock:
                if not self._is_closed:
                    self._answers.drop(arena_number) if is_new else self._answers.give(arena_number)
            raise
        return message, arena.fd if is_new else -1

    def send_soon(self, part: bytes, fd: int = -1) -> None:
        """Sends with all else that is answered in this turn of the event loop."""
        is_first = not self._outbox
        self._outbox.add(part, fd)
        if is_first and self._soon is not None:
            self._soon(self._flush)

    def _send_alone(self, part: bytes, fd: int) -> None:
        """Sends from another thread."""
        outbox = messages.Outbox()
        outbox.add(part, fd)
        for message, fds in outbox.sends():
            self._send_patiently(message, fds)

    def _flush(self) -> None:
        """Sends at once if there is room in the socket, else on a thread."""
        for message, fds in self._outbox.sends():
            if self._is_closed:
                return
            try:
                messages.send(self._socket, message, fds, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._on_thread(partial(self._send_patiently, message, fds))
            except OSError:  # the process is gone
                return

    def _send_patiently(self, message: bytes, fds: Sequence[int]) -> None:
        with contextlib.suppress(OSError):
            messages.send(self._socket, message, fds)

    def _on_thread(self, write: Write) -> None:
        with self._lock:
            if self._is_closed:
                return
            if self._writes is None:
                self._writes = SimpleQueue()
                threading.Thread(
                    target=_carry_out, args=(self._writes,), name=f"{self._model}#answers", daemon=True
                ).start()
            self._writes.put(write)


def _carry_out(writes: "SimpleQueue[Write | None]") -> None:
    while (write := writes.get()) is not None:
        try:
            write()
        except Exception:
            _LOG.exception("writing the answer of a subrequest failed")
