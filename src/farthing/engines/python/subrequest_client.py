"""The worker's end of subrequests: sends them, waits for answers, from any thread and any event loop.

Where tensors lie belongs to `subrequest_tensors`, reading to `subrequest_reader`. What a model's code sees of it is in
`models` and `triton`.
"""

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.stream_messages import is_own
from farthing.engines.python.subrequest_messages import SUBREQUESTS_MAX, Ask, Failed, Next, Told, Withdraw
from farthing.engines.python.subrequest_question import Question, Reply
from farthing.engines.python.subrequest_reader import AnswerReader
from farthing.engines.python.subrequest_tensors import SharedTensors
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, TooLarge, Unavailable
from farthing.types.tensors import Tensor

answered_here: Final[ContextVar[tuple[int, ...]]] = ContextVar("answered_here", default=())
"""Numbers of the requests that the running code answers, where a model answers as often as it likes. Tasks have it
from whoever made them; threads that a model starts begin without."""


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
        self._tensors = SharedTensors(self._changed)
        self._reader = AnswerReader(sock, self._changed, self._heard, self._server_is_gone)
        self._pending: dict[int, Pending] = {}
        self._asked = 0
        self._outbox = messages.Outbox()
        """What coroutines ask in one turn of their event loop leaves at its end, together."""
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        """Coroutines that wait until fewer subrequests are under way."""
        self._batch = 0
        self._batches = 0
        self._inputs_renewed = 0
        self.turn_threads: set[int] = set()
        """Threads that requests take turns on: one that waits there holds up the others."""

    # -- the batch on whose behalf ---------------------------------------------------------------------------------

    def begin_batch(self, inputs: Tensor) -> None:
        """A batch runs from now on, with its inputs in this memory."""
        with self._changed:
            self._batches += 1
            self._batch = self._batches
            self._tensors.batch_inputs = inputs

    def end_batch(self) -> None:
        """It has run."""
        with self._changed:
            self._batch = 0
            self._tensors.batch_inputs = None

    def inputs_renewed(self) -> None:
        """The batches' inputs come in another arena from now on."""
        self._inputs_renewed += 1

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, question: Question) -> Reply:
        """Sends a subrequest and waits for its answer. Raises the `FarthingError` it was answered with."""
        while (pending := self._send(question, None)) is None:
            self._reader.read_until(lambda: len(self._pending) < SUBREQUESTS_MAX)
        self._reader.read_until(lambda: pending.answer is not None)
        return self._reply(pending)

    async def ask_async(self, question: Question) -> Reply:
        """The same, for coroutines. Cancelling withdraws the subrequest."""
        loop = asyncio.get_running_loop()
        self._reader.watch(loop)
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
            self._reader.unwatch(loop)

    # -- several answers to one subrequest (`subrequest_answers`) ----------------------------------------------------

    def begin(self, question: Question) -> Pending:
        """Sends a subrequest whose answers are to be drawn one by one."""
        while (pending := self._send(question, None)) is None:
            self._reader.read_until(lambda: len(self._pending) < SUBREQUESTS_MAX)
        return pending

    async def begin_async(self, question: Question) -> Pending:
        """The same, for coroutines."""
        loop = asyncio.get_running_loop()
        self._reader.watch(loop)
        try:
            while (pending := self._send(question, None)) is None:
                await self._turn(loop)
            return pending
        finally:
            self._reader.unwatch(loop)

    def wait(self, pending: Pending) -> None:
        """Returns when its next answer is there. Raises `Unavailable` if the server is gone."""
        self._reader.read_until(lambda: pending.answer is not None)

    async def wait_async(self, pending: Pending) -> None:
        """The same, for coroutines."""
        loop = asyncio.get_running_loop()
        self._reader.watch(loop)
        try:
            with self._changed:
                if pending.answer is not None:
                    return
                if self._reader.is_over:
                    raise Unavailable("the server is gone")
                pending.loop, pending.future = loop, loop.create_future()
                pending.thread = threading.get_ident()
            await pending.future
        finally:
            pending.loop = pending.future = None
            self._reader.unwatch(loop)

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
                self._outbox.add(messages.encode(Next(pending.number, self._tensors.freed_now())))
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
            if self._reader.is_over:
                raise Unavailable("the server is gone")
            streams = (question.stream,) if question.stream else answered_here.get()
            if len(self._pending) >= SUBREQUESTS_MAX:
                if any(map(is_own, streams)):  # to wait here could be for ever: those may be waiting for it
                    raise EngineFailed(
                        f"a request to model `{question.model}` could wait for ever: {SUBREQUESTS_MAX} that this "
                        "process sent are under way, as many as may be, and it is for one that this model asked for "
                        "itself",
                        hint="a model that asks itself should ask for less at once, or end sooner",
                    )
                return None
            pending = Pending(question.inputs, loop)
            self._asked += 1
            number = pending.number = self._asked
            self._pending[number] = pending
            batch, renewed = self._batch, self._inputs_renewed
        fd, freed = -1, self._tensors.freed_now()
        try:
            puts, arena, fd = self._tensors.put(question.inputs)
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
            self._tensors.not_told(freed)
            with self._changed:
                del self._pending[number]
                if pending.arena:
                    self._tensors.drop(pending.arena, is_known=fd < 0)
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

    # -- answers -----------------------------------------------------------------------------------------------------

    def _server_is_gone(self) -> None:
        self._reader.is_over = True
        for pending in list(self._pending.values()):
            _wake(pending)
        self._changed.notify_all()

    def _heard(self, answer: Told | Failed, fds: list[int]) -> None:
        if isinstance(answer, Told):
            self._tensors.meet(answer, fds)
        asked = self._pending.pop(answer.number, None) if answer.is_last else self._pending.get(answer.number)
        if asked is None:  # withdrawn
            self._tensors.forget(answer)
            return
        asked.answer = answer
        if not answer.is_last:
            _wake(asked)
            self._changed.notify_all()
            return
        is_withdrawn = isinstance(answer, Failed) and answer.is_withdrawn
        if asked.arena:
            self._tensors.lose(asked.arena) if is_withdrawn else self._tensors.give(asked.arena)
        if is_withdrawn:
            self._outbox.add(messages.encode(Withdraw(answer.number, asked.arena)))
            self._flush()
        _wake(asked)
        self._let_in()

    def _withdraw(self, pending: Pending) -> None:
        self._flush()
        with self._changed:
            number = pending.number
            if self._pending.get(number) is not pending:  # answered meanwhile
                self._tensors.forget(pending.answer)
                return
            del self._pending[number]
            self._tensors.forget(pending.answer)  # one of several, which nobody drew
            if pending.arena:
                self._tensors.lose(pending.arena)
            self._let_in()
            self._outbox.add(messages.encode(Withdraw(number, pending.arena)))
        self._flush()

    def _reply(self, pending: Pending) -> Reply:
        answer = pending.answer
        if answer is None:
            raise Unavailable("the server is gone")
        if isinstance(answer, Failed):
            raise messages.error_of(answer)
        return Reply(answer.model, answer.version, answer.id, self._tensors.outputs(answer), answer.parameters)


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
