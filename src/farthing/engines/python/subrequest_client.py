"""The worker's end of subrequests: sends them, waits for answers, from any thread and any event loop.

There is no thread for reading: whoever waits reads, for the others too. A tensor that already lies in memory shared
with the server (an input of the batch, or of an answer to an earlier subrequest) is not copied, only named. What a
model's code sees of this is in `models` and `triton`.
"""

import asyncio
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.arena_pool import ArenaPool, NoRoom
from farthing.engines.python.channel import Arena, Place, read_tensor, write_tensors
from farthing.engines.python.subrequest_messages import (
    BATCH_INPUTS,
    SUBREQUESTS_MAX,
    Ask,
    Failed,
    Next,
    Put,
    Told,
    Withdraw,
)
from farthing.types.errors import FarthingError, InvalidInput, TooLarge, Unavailable
from farthing.types.requests import Parameter
from farthing.types.tensors import DATATYPES, Tensor

HELD_MAX: Final = 64
"""Answers whose memory a model may hold on to. Of further ones it gets copies, so that there is an end to it."""

REFERRED_BYTES_MIN: Final = 4096
"""Smaller tensors are copied: looking for where they lie takes longer."""


answered_here: Final[ContextVar[tuple[int, ...]]] = ContextVar("answered_here", default=())
"""Numbers of the requests that the running code answers, where a model answers as often as it likes. Tasks have it
from whoever made them; threads that a model starts begin without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A subrequest as a model asks it."""

    model: str
    version: str = ""
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0
    member: int = -1
    is_stream: bool = False
    """It may be answered any number of times."""
    can_block: bool = True
    """Whoever draws the answers may hold up the thread."""
    stream: int = 0
    """The number of the request that it is for, where these have numbers; 0: of all that are answered here."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it. The outputs are the model's own, to keep and to change."""

    model: str
    version: str
    id: str
    outputs: dict[str, Tensor]
    parameters: dict[str, Parameter]


class Pending:
    """A subrequest under way. Who drives it from outside only hands it back."""

    __slots__ = ("answer", "arena", "future", "inputs", "loop", "number", "thread")

    def __init__(self, inputs: Mapping[str, Tensor], loop: asyncio.AbstractEventLoop | None) -> None:
        self.inputs = inputs  # so that what it refers to stays where it is
        self.number = 0
        self.arena = 0
        self.answer: Told | Failed | None = None
        self.loop = loop
        self.future = None if loop is None else loop.create_future()
        self.thread = threading.get_ident()


class SubrequestClient:
    """Sends subrequests over one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.can_ask = True
        """Somebody listens; set when that is known."""
        self._changed = threading.Condition()
        """Held while anything below is looked at or changed; notified when a message was read."""
        self._pool = ArenaPool(step=1, arenas_max=SUBREQUESTS_MAX)
        self._answers: dict[int, Arena] = {}
        self._held: dict[int, weakref.ref[Tensor]] = {}
        """The memory of each answer that the model still looks at."""
        self._freed: deque[int] = deque()
        self._pending: dict[int, Pending] = {}
        self._asked = 0
        self._is_reading = False
        self._is_over = False
        self._outbox = messages.Outbox()
        """What coroutines ask in one turn of their event loop leaves at its end, together."""
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        """Coroutines that wait until fewer subrequests are under way."""
        self._watchers: dict[asyncio.AbstractEventLoop, int] = {}
        self._batch = 0
        self._batches = 0
        self._batch_inputs: Tensor | None = None
        self._inputs_renewed = 0
        self.turn_threads: set[int] = set()
        """Threads that requests take turns on: one that waits there holds up the others."""

    # -- the batch on whose behalf ---------------------------------------------------------------------------------

    def begin_batch(self, inputs: Tensor) -> None:
        """A batch runs from now on, with its inputs in this memory."""
        with self._changed:
            self._batches += 1
            self._batch = self._batches
            self._batch_inputs = inputs

    def end_batch(self) -> None:
        """It has run."""
        with self._changed:
            self._batch = 0
            self._batch_inputs = None

    def inputs_renewed(self) -> None:
        """The batches' inputs come in another arena from now on."""
        self._inputs_renewed += 1

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, question: Question) -> Reply:
        """Sends a subrequest and waits for its answer. Raises the `FarthingError` it was answered with."""
        while (pending := self._send(question, None)) is None:
            self._read_until(lambda: len(self._pending) < SUBREQUESTS_MAX)
        self._read_until(lambda: pending.answer is not None)
        return self._reply(pending)

    async def ask_async(self, question: Question) -> Reply:
        """The same, for coroutines. Cancelling withdraws the subrequest."""
        loop = asyncio.get_running_loop()
        self._watch(loop)
        try:
            while (pending := self._send(question, loop)) is None:
                await self._turn(loop)
            assert pending.future is not None
            try:
                await pending.future
            except asyncio.CancelledError:
                self._withdraw(pending)
                raise
            return self._reply(pending)
        finally:
            self._unwatch(loop)

    # -- several answers to one subrequest (`subrequest_answers`) ----------------------------------------------------

    def begin(self, question: Question) -> Pending:
        """Sends a subrequest whose answers are to be drawn one by one."""
        while (pending := self._send(question, None)) is None:
            self._read_until(lambda: len(self._pending) < SUBREQUESTS_MAX)
        return pending

    async def begin_async(self, question: Question) -> Pending:
        """The same, for coroutines."""
        loop = asyncio.get_running_loop()
        self._watch(loop)
        try:
            while (pending := self._send(question, None)) is None:
                await self._turn(loop)
            return pending
        finally:
            self._unwatch(loop)

    def wait(self, pending: Pending) -> None:
        """Returns when its next answer is there. Raises `Unavailable` if the server is gone."""
        self._read_until(lambda: pending.answer is not None)

    async def wait_async(self, pending: Pending) -> None:
        """The same, for coroutines."""
        loop = asyncio.get_running_loop()
        self._watch(loop)
        try:
            with self._changed:
                if pending.answer is not None:
                    return
                if self._is_over:
                    raise Unavailable("the server is gone")
                pending.loop, pending.future = loop, loop.create_future()
                pending.thread = threading.get_ident()
            await pending.future
        finally:
            pending.loop = pending.future = None
            self._unwatch(loop)

    def take(self, pending: Pending) -> tuple[Reply | FarthingError | None, bool]:
        """Its answer, that is there; None if it only says that this was the last. And whether it was: if not, the
        next is asked for."""
        answer = pending.answer
        if answer is None:
            raise Unavailable("the server is gone")
        reply: Reply | FarthingError | None
        if isinstance(answer, Failed):
            reply = messages.error_of(answer)
        else:
            reply = None if answer.is_empty else self._reply(pending)
        if not answer.is_last:
            with self._changed:
                pending.answer = None
                self._outbox.add(messages.encode(Next(pending.number, self._freed_now())))
            self._flush()
        return reply, answer.is_last

    def withdraw(self, pending: Pending) -> None:
        """Nobody draws more of its answers."""
        self._withdraw(pending)

    async def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when fewer subrequests may be under way."""
        turn = loop.create_future()
        with self._changed:
            if len(self._pending) < SUBREQUESTS_MAX:
                return
            self._waiting.append((loop, turn))
        try:
            await turn
        except asyncio.CancelledError:
            with self._changed:
                if (loop, turn) in self._waiting:
                    self._waiting.remove((loop, turn))
                else:  # its turn had come
                    self._let_in()
            raise

    def _let_in(self) -> None:
        """One less is under way: a coroutine that waited for that goes on. Threads hear of it from the condition."""
        if self._waiting:
            _resolve(*self._waiting.popleft())
        self._changed.notify_all()

    def _send(self, question: Question, loop: asyncio.AbstractEventLoop | None) -> Pending | None:
        """Sends a subrequest; None while as many as may be are under way."""
        with self._changed:
            if not self.can_ask:
                raise Unavailable(f"model `{question.model}` cannot be asked: there is no server around this one")
            if self._is_over:
                raise Unavailable("the server is gone")
            if len(self._pending) >= SUBREQUESTS_MAX:
                return None
            pending = Pending(question.inputs, loop)
            self._asked += 1
            number = pending.number = self._asked
            self._pending[number] = pending
            batch, renewed = self._batch, self._inputs_renewed
        streams = (question.stream,) if question.stream else answered_here.get()
        fd, freed = -1, self._freed_now()
        try:
            puts, arena, fd = self._put(question.inputs)
            pending.arena = arena
            message = messages.encode(
                Ask(
                    number=number,
                    model=question.model,
                    version=question.version,
                    inputs=puts,
                    outputs=question.outputs,
                    id=question.id,
                    parameters=question.parameters,
                    priority=question.priority,
                    timeout_us=question.timeout_us,
                    batch=batch,
                    member=question.member if batch else -1,
                    is_stream=question.is_stream,
                    streams=streams,
                    blocks=bool(streams)
                    and loop is None
                    and question.can_block
                    and pending.thread in self.turn_threads,
                    inputs_renewed=renewed,
                    arena=arena,
                    has_new_arena=fd >= 0,
                    freed=freed,
                )
            )
            if len(message) > messages.PART_BYTES_MAX:
                raise TooLarge(
                    f"a request to model `{question.model}`: names and parameters take {len(message)} bytes; "
                    f"allowed: {messages.PART_BYTES_MAX}"
                )
        except BaseException as problem:
            self._freed.extend(freed)
            with self._changed:
                del self._pending[number]
                if pending.arena:
                    self._drop(pending.arena, is_known=fd < 0)
                self._let_in()
            if isinstance(problem, ValueError | OverflowError | TypeError):
                raise InvalidInput(f"a request to model `{question.model}`: {problem}") from problem
            raise
        with self._changed:
            is_first = not self._outbox
            self._outbox.add(message, fd)
        self._flush_soon(loop, is_first=is_first)
        return pending

    def _flush_soon(self, loop: asyncio.AbstractEventLoop | None, *, is_first: bool) -> None:
        if loop is None:
            self._flush()
        elif is_first:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        with self._changed:  # which also keeps a new arena's descriptor before its first use
            try:
                for message, fds in self._outbox.sends():
                    messages.send(self._socket, message, fds)
            except OSError:
                self._server_is_gone()

    def _drop(self, arena: int, *, is_known: bool) -> None:
        if is_known:
            self._pool.give(arena)
        else:
            self._pool.drop(arena)  # its descriptor never left

    def _freed_now(self) -> tuple[int, ...]:
        freed = []
        while self._freed:
            try:
                freed.append(self._freed.popleft())
            except IndexError:  # another thread was quicker
                break
        return tuple(freed)

    def _put(self, inputs: Mapping[str, Tensor]) -> tuple[tuple[Put, ...], int, int]:
        """Puts inputs where the server can read them: where each lies, and the arena that was written, if any."""
        referred: dict[str, Put] = {}
        to_write: dict[str, Tensor] = {}
        for name, tensor in inputs.items():
            put = self._where(name, tensor) if tensor.nbytes >= REFERRED_BYTES_MIN else None
            if put is None:
                to_write[name] = tensor
            else:
                referred[name] = put
        if not to_write:
            return tuple(referred.values()), 0, -1
        try:
            with self._changed:
                number, arena, is_new = self._pool.take(sum(tensor.nbytes for tensor in to_write.values()))
        except NoRoom as full:
            raise TooLarge(f"tensors of this model's own requests: {full}") from full
        try:
            places = write_tensors(arena, to_write.items())
        except BaseException:
            with self._changed:
                self._drop(number, is_known=not is_new)
            raise
        written = {place.name: Put(number, place) for place in places}
        return tuple({**referred, **written}[name] for name in inputs), number, arena.fd if is_new else -1

    def _where(self, name: str, tensor: Tensor) -> Put | None:
        """Where a tensor lies, if the server can see it there."""
        if tensor.dtype.hasobject or not (tensor.flags.c_contiguous and tensor.flags.aligned):
            return None
        datatype = DATATYPES.get(tensor.dtype)
        if datatype is None:
            return None
        start = _address(tensor)
        with self._changed:
            seen = [(BATCH_INPUTS, self._batch_inputs), *((number, ref()) for number, ref in self._held.copy().items())]
        for number, memory in seen:
            if memory is None:
                continue
            offset = start - _address(memory)
            if offset >= 0 and offset + tensor.nbytes <= memory.nbytes:
                return Put(number, Place(name, datatype, tensor.shape, offset, tensor.nbytes))
        return None

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read_until(self, is_done: Callable[[], bool]) -> None:
        """Reads, or lets others read, until something is so."""
        while True:
            with self._changed:
                while not is_done() and not self._is_over and self._is_reading:
                    self._changed.wait()
                if is_done():
                    return
                if self._is_over:
                    raise Unavailable("the server is gone")
                self._is_reading = True
            try:
                self._read(0)
            finally:
                self._stop_reading()

    def _readable(self) -> None:
        """An event loop saw that something can be read."""
        with self._changed:
            if self._is_reading:  # a thread does
                return
            self._is_reading = True
        try:
            while self._read(socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass
        finally:
            self._stop_reading()

    def _stop_reading(self) -> None:
        with self._changed:
            self._is_reading = False
            self._changed.notify_all()

    def _read(self, flags: int) -> bool:
        """Reads a message and hands it over; False: the server is gone."""
        try:
            data, fds = messages.receive(self._socket, flags)
        except BlockingIOError:
            raise
        except OSError:
            data, fds = b"", []
        if not data:
            with self._changed:
                self._server_is_gone()
            return False
        with self._changed:
            for answer in messages.decode_answers(data):
                if isinstance(answer, Told) and answer.has_new_arena:
                    self._answers[answer.arena] = Arena(fds.pop(0))
                self._hand_over(answer)
        return True

    def _server_is_gone(self) -> None:
        self._is_over = True
        for pending in list(self._pending.values()):
            _wake(pending)
        self._changed.notify_all()

    def _hand_over(self, answer: Told | Failed) -> None:
        asked = self._pending.pop(answer.number, None) if answer.is_last else self._pending.get(answer.number)
        if asked is None:  # withdrawn
            if isinstance(answer, Told) and answer.arena:
                self._freed.append(answer.arena)
            return
        asked.answer = answer
        if not answer.is_last:
            _wake(asked)
            self._changed.notify_all()
            return
        is_withdrawn = isinstance(answer, Failed) and answer.is_withdrawn
        if asked.arena:
            self._pool.drop(asked.arena) if is_withdrawn else self._pool.give(asked.arena)
        if is_withdrawn:
            self._outbox.add(messages.encode(Withdraw(answer.number, asked.arena)))
            self._flush()
        _wake(asked)
        self._let_in()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._changed:
            count = self._watchers[loop] = self._watchers.get(loop, 0) + 1
        if count == 1:
            loop.add_reader(self._socket, self._readable)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._changed:
            self._watchers[loop] -= 1
            is_last = not self._watchers[loop]
            if is_last:
                del self._watchers[loop]
        if is_last:
            loop.remove_reader(self._socket)

    def _withdraw(self, pending: Pending) -> None:
        self._flush()
        with self._changed:
            number = pending.number
            if self._pending.get(number) is not pending:  # answered meanwhile
                if isinstance(pending.answer, Told) and pending.answer.arena:
                    self._freed.append(pending.answer.arena)
                return
            del self._pending[number]
            if isinstance(pending.answer, Told) and pending.answer.arena:  # one of several, which nobody drew
                self._freed.append(pending.answer.arena)
            if pending.arena:
                self._pool.drop(pending.arena)  # an engine may be reading it still
            self._let_in()
            self._outbox.add(messages.encode(Withdraw(number, pending.arena)))
        self._flush()

    # -- answers -----------------------------------------------------------------------------------------------------

    def _reply(self, pending: Pending) -> Reply:
        answer = pending.answer
        if answer is None:
            raise Unavailable("the server is gone")
        if isinstance(answer, Failed):
            raise messages.error_of(answer)
        return Reply(answer.model, answer.version, answer.id, self._outputs(answer), answer.parameters)

    def _outputs(self, answer: Told) -> dict[str, Tensor]:
        if not answer.arena:
            return {place.name: read_tensor(np.empty(0, np.uint8), place) for place in answer.places}
        with self._changed:
            arena = self._answers[answer.arena]
            arena.refresh()
            memory = arena.memory()
            is_kept = len(self._held) < HELD_MAX
            if is_kept:
                self._held[answer.arena] = weakref.ref(memory, _Freed(self._held, self._freed, answer.arena))
        outputs = {place.name: read_tensor(memory, place) for place in answer.places}
        if not is_kept:
            outputs = {name: tensor.copy() for name, tensor in outputs.items()}
            self._freed.append(answer.arena)
        return outputs


class _Freed:
    """Called when the last view of an answer is gone, on whatever thread and wherever that happens: takes no lock."""

    __slots__ = ("_arena", "_freed", "_held")

    def __init__(self, held: dict[int, Any], freed: deque[int], arena: int) -> None:
        self._held = held
        self._freed = freed
        self._arena = arena

    def __call__(self, _: object) -> None:
        self._held.pop(self._arena, None)
        self._freed.append(self._arena)


def _address(tensor: Tensor) -> int:
    address: int = tensor.__array_interface__["data"][0]
    return address


def _wake(pending: Pending) -> None:
    """Threads are woken by the condition, coroutines here."""
    if pending.loop is not None and pending.future is not None:
        if pending.thread == threading.get_ident():
            _set(pending.future)
        else:
            _resolve(pending.loop, pending.future)


def _resolve(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> None:
    try:
        loop.call_soon_threadsafe(_set, future)
    except RuntimeError:  # that loop is closed
        return


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
