"""The server's end of a process's subrequests: to the models they are for, and back with the answers.

What the process asks is read on the event loop; inputs become views of the memory it wrote, and go to
`contract.Subrequests`. Answers are `subrequest_writer`'s. What a process says is believed only as far as it is checked.
"""

import contextlib
import fcntl
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from farthing.engines.contract import Parent, Sender, Subrequest, Subrequests, lineage
from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.channel import Arena, Place, read_tensor
from farthing.engines.python.stream_messages import depth_of, numbered
from farthing.engines.python.subrequest_messages import BATCH_INPUTS, SUBREQUESTS_MAX, Ask, Next, Withdraw
from farthing.engines.python.subrequest_writer import AnswerWriter, Letter
from farthing.types.errors import Cancelled, FarthingError, InvalidInput, Overloaded
from farthing.types.requests import InferResponse, StreamedResponse
from farthing.types.tensors import NUMPY_DTYPES, Tensor

_LOG: Final = logging.getLogger("farthing.engines.python")


class SubrequestPort:
    """One process's subrequests, from its start to its end."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        model: str,
        sender: Sender,
        subrequests: Subrequests | None,
        on_nonsense: Callable[[], None],
    ) -> None:
        """`on_nonsense` ends a process that says what cannot be."""
        self._socket = sock
        self._model = model
        self._sender = sender
        self._subrequests = subrequests
        self._on_nonsense = on_nonsense
        self._lock = threading.Lock()
        """Held while anything below is looked at or changed."""
        self._inputs: dict[int, Arena] = {}
        self._writer = AnswerWriter(sock, model, soon=None if subrequests is None else subrequests.soon)
        self._under_way: dict[int, Subrequest] = {}
        self._batches = 0
        self._batch: Sequence[Parent | None] = ()
        self._batch_inputs: Tensor | None = None
        self._inputs_renewed = 0
        self._streams: dict[int, Parent | None] = {}
        """Where the model answers as often as it likes: the requests it is answering, by their numbers."""
        self._left: set[int] = set()
        """Those of them that nobody waits for any more."""
        self._asked_for: dict[int, tuple[int, ...]] = {}
        """The requests that each subrequest under way is for."""
        self._draws: dict[int, _Draw] = {}
        """Of those under way that may be answered many times."""
        self._is_over = False
        if subrequests is not None:
            subrequests.watch(sock, self._on_readable)

    # -- the batch -----------------------------------------------------------------------------------------------

    def begin_batch(self, parents: Sequence[Parent | None], inputs: Tensor) -> None:
        """A batch is about to be sent: these are its requests, and its inputs lie in this memory."""
        with self._lock:
            self._batches += 1
            self._batch = parents
            self._batch_inputs = inputs

    def end_batch(self) -> None:
        """It has been answered. Subrequests that it left under way are nobody's."""
        with self._lock:
            self._batch_inputs = None
            left = [subrequest for subrequest in self._under_way.values() if subrequest.sender is not None]
            self._batch = ()
        if self._subrequests is not None:
            for subrequest in left:
                self._subrequests.detach(subrequest)

    def inputs_renewed(self) -> None:
        """The batches' inputs lie in another arena from now on."""
        with self._lock:
            self._inputs_renewed += 1

    # -- requests that are answered as often as the model likes -----------------------------------------------------

    def begin_streams(self, parents: Mapping[int, Parent | None]) -> None:
        """Requests of these numbers are about to be answered."""
        with self._lock:
            self._streams.update(parents)

    def number(self, count: int, parent: Parent | None) -> int:
        """The number of this request, the `count`th."""
        asked = lineage((parent,))
        return numbered(count, len(asked), is_own=self._sender.model in asked)

    def leave_stream(self, number: int) -> None:
        """Nobody waits for this one's answers any more: what was asked for it is withdrawn, unless it is also for
        others that somebody waits for. On any thread."""
        with self._lock:
            if number not in self._streams:
                return
            self._left.add(number)
        if self._subrequests is not None:
            self._subrequests.on_loop(self._withdraw_left)

    def end_stream(self, number: int) -> None:
        """The model has said its last word to it. Subrequests that it left under way are nobody's."""
        with self._lock:
            self._streams.pop(number, None)
            self._left.discard(number)
            over = [n for n, streams in self._asked_for.items() if not any(s in self._streams for s in streams)]
            left = [subrequest for n in over if (subrequest := self._under_way.get(n)) and subrequest.sender]
            for n in over:
                del self._asked_for[n]
            is_any_left = bool(self._left and self._asked_for)
        if self._subrequests is not None:
            for subrequest in left:
                self._subrequests.detach(subrequest)
            if is_any_left:
                self._subrequests.on_loop(self._withdraw_left)

    def _withdraw_left(self) -> None:
        with self._lock:
            over = [
                n
                for n, streams in self._asked_for.items()
                if self._left.issuperset(open_ := [s for s in streams if s in self._streams]) and open_
            ]
            subrequests = [self._forget(n) for n in over]
        for n, subrequest in zip(over, subrequests, strict=True):
            if subrequest is not None and self._subrequests is not None:
                self._subrequests.withdraw(subrequest)
                self._writer.send_soon(messages.encode(messages.failed(n, _nobody_waits(), is_withdrawn=True)))

    def _forget(self, number: int) -> Subrequest | None:
        """A subrequest is not under way any more."""
        self._asked_for.pop(number, None)
        self._draws.pop(number, None)
        return self._under_way.pop(number, None)

    # -- what the process asks ---------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(SUBREQUESTS_MAX):  # then it is others' turn
            if self._is_over:
                return
            try:
                data, fds = messages.receive(self._socket, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data or not self._is_sense(data, fds):
                self._end()

    def _is_sense(self, data: bytes, fds: list[int]) -> bool:
        """Does what the process says; False, and its end, if that cannot be."""
        try:
            for question in messages.decode_questions(data):
                if isinstance(question, Withdraw):
                    self._withdraw(question.number, question.arena)
                elif isinstance(question, Next):
                    self._next(question)
                else:
                    self._ask(question, fds)
            if fds:
                raise ValueError("a file descriptor came that nobody announced")
        except (ValueError, msgspec.DecodeError, KeyError) as problem:
            _LOG.error("model %s: its process asked nonsense (%s) and is ended", self._model, problem)
            for fd in fds:
                os.close(fd)
            self._on_nonsense()
            return False
        return True

    def _end(self) -> None:
        """Nothing more is heard from the process."""
        self._is_over = True
        if self._subrequests is not None:
            self._subrequests.unwatch(self._socket, self._withdraw_all)

    def _ask(self, ask: Ask, fds: list[int]) -> None:
        with self._lock:
            self._take_memory(ask, fds)
        try:
            subrequest = self._subrequest(ask)
        except FarthingError as refused:
            self._writer.send_soon(messages.encode(messages.failed(ask.number, refused)))
            return
        assert self._subrequests is not None
        if ask.is_stream:
            self._draws[ask.number] = _Draw(subrequest)
            self._subrequests.stream(subrequest, partial(self._said, ask.number, subrequest))
        else:
            self._subrequests.submit(subrequest, partial(self._answer, ask.number, subrequest))

    def _take_memory(self, ask: Ask, fds: list[int]) -> None:
        self._writer.give(ask.freed)
        if ask.has_new_arena:
            if not fds or ask.arena <= 0 or ask.arena in self._inputs or len(self._inputs) >= SUBREQUESTS_MAX:
                raise ValueError(f"arena {ask.arena} cannot be new")
            if sys.platform == "linux" and not fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise ValueError(f"arena {ask.arena} can shrink")
            self._inputs[ask.arena] = Arena(fds.pop(0))

    def _subrequest(self, ask: Ask) -> Subrequest:
        with self._lock:
            if ask.number in self._under_way:
                raise ValueError(f"subrequest {ask.number} is under way already")
            if len(self._under_way) >= SUBREQUESTS_MAX:
                raise Overloaded(f"{SUBREQUESTS_MAX} subrequests of this process are under way, as many as may be")
            memories = [self._memory(put.arena, put.place.offset + put.place.size, ask) for put in ask.inputs]
            batch, parents, sender = self._on_behalf(ask)
        subrequest = Subrequest(
            model_name=ask.model,
            model_version=ask.version,
            inputs={
                put.place.name: _input(put.place, memory) for put, memory in zip(ask.inputs, memories, strict=True)
            },
            outputs=ask.outputs,
            id=ask.id,
            parameters=ask.parameters,
            priority=max(0, ask.priority),
            timeout_us=max(0, ask.timeout_us),
            parents=parents,
            sender=sender,
            batch=batch,
            lineage=(*self._lineage(ask, parents), self._sender.model),
        )
        with self._lock:
            self._under_way[ask.number] = subrequest
            if ask.streams:
                self._asked_for[ask.number] = ask.streams
        return subrequest

    def _on_behalf(self, ask: Ask) -> tuple[Sequence[Parent | None], Sequence[Parent | None], Sender | None]:
        """Requests that wait for the answer, those that it is for, and who waits. Raises that they have gone."""
        if not ask.streams:
            batch = self._batch if ask.batch == self._batches else ()
            parents = (batch[ask.member],) if 0 <= ask.member < len(batch) else batch
            return batch, parents, self._sender if batch else None
        open_ = [number for number in ask.streams if number in self._streams]
        if open_ and self._left.issuperset(open_):
            raise _nobody_waits()
        parents = [self._streams[number] for number in open_]
        if not parents:
            return (), (), None
        if ask.blocks:
            return list(self._streams.values()), parents, self._sender
        # The instance goes on; only these requests wait, as if they were an instance of their own.
        return parents, parents, Sender((id(self), ask.streams), self._sender.instance, _one)

    def _lineage(self, ask: Ask, parents: Sequence[Parent | None]) -> tuple[object, ...]:
        """The models that asked each other until it came to the requests this is for. Of requests that have ended only
        their number is known: they must not begin anew, or what a request leaves behind could go on without end."""
        known = lineage(parents)
        depth = max(map(depth_of, ask.streams), default=0)
        return known if len(known) >= depth else (self._sender.model,) * depth

    def _memory(self, number: int, end: int, ask: Ask) -> Tensor:
        if number == BATCH_INPUTS:
            if self._batch_inputs is None or ask.batch != self._batches or ask.inputs_renewed != self._inputs_renewed:
                raise InvalidInput("an input of a batch was sent on after the batch had ended")
            return self._batch_inputs
        arena = self._inputs.get(number) if number > 0 else self._writer.in_use(number)
        if arena is None:
            raise ValueError(f"no arena is numbered {number}")
        if end > arena.size:
            arena.refresh()
        return arena.memory()

    def _withdraw(self, number: int, arena: int) -> None:
        with self._lock:
            subrequest = self._forget(number)
            if arena:
                self._inputs.pop(arena).close()
        if subrequest is not None and self._subrequests is not None:
            self._subrequests.withdraw(subrequest)

    def _withdraw_all(self) -> None:
        """The process is gone, and nobody waits for these answers."""
        with self._lock:
            left, self._under_way = list(self._under_way.values()), {}
            self._asked_for.clear()
            self._draws.clear()
            self._streams.clear()
            self._left.clear()
        if self._subrequests is not None:
            for subrequest in left:
                self._subrequests.withdraw(subrequest)

    # -- what it is answered ---------------------------------------------------------------------------------------

    def _said(self, number: int, subrequest: Subrequest, said: StreamedResponse) -> None:
        draw = self._draws.get(number)
        if draw is not None and draw.subrequest is subrequest:
            draw.said.append(said)  # so many as the model makes ahead
            self._tell(number, draw)

    def _next(self, question: Next) -> None:
        number = question.number
        self._writer.give(question.freed)
        draw = self._draws.get(number)
        if draw is None:  # it was withdrawn meanwhile
            return
        if draw.is_wanted:
            raise ValueError(f"the next answer of subrequest {number} was asked for twice")
        draw.is_wanted = True
        self._tell(number, draw)

    def _tell(self, number: int, draw: "_Draw") -> None:
        """Hands over the next answer, if it is there and wanted."""
        if not draw.is_wanted or not draw.said:
            return
        said = draw.said.popleft()
        draw.is_wanted = False
        if not said.is_last and self._subrequests is not None:
            self._subrequests.taken(draw.subrequest)
        if said.answer is None:
            self._over(number, draw.subrequest)
            self._writer.send_soon(messages.encode(messages.ended(number)))
        else:
            self._answer(number, draw.subrequest, said.answer, is_last=said.is_last)

    def _over(self, number: int, subrequest: Subrequest) -> bool:
        """Ends one; False where it was withdrawn meanwhile."""
        with self._lock:
            is_wanted = self._under_way.get(number) is subrequest
            if is_wanted:
                self._forget(number)
            return is_wanted

    def _answer(
        self, number: int, subrequest: Subrequest, answer: InferResponse | FarthingError, *, is_last: bool = True
    ) -> None:
        over = partial(self._over, number, subrequest)
        if isinstance(answer, FarthingError):
            if is_last:
                over()
            self._writer.send_soon(messages.encode(messages.failed(number, answer, is_last=is_last)))
            return
        self._writer.write(Letter(number, subrequest.model_name, subrequest.outputs, answer, is_last, over))

    # -- the end -----------------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The process is gone: wakes whoever waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives memory and descriptors back, soon. The process is gone and no batch runs."""
        self.hang_up()
        if self._subrequests is None:
            self._free()
        else:
            self._subrequests.unwatch(self._socket, self._free)

    def _free(self) -> None:
        self._is_over = True
        self._withdraw_all()
        with self._lock:
            for arena in self._inputs.values():
                arena.close()
            self._inputs.clear()
            self._batch_inputs = None
        self._writer.close()
        self._socket.close()


class _Draw:
    """A subrequest whose answers the process draws one by one."""

    __slots__ = ("is_wanted", "said", "subrequest")

    def __init__(self, subrequest: Subrequest) -> None:
        self.subrequest = subrequest
        self.is_wanted = True
        self.said: deque[StreamedResponse] = deque()


def _one() -> int:
    return 1


def _nobody_waits() -> Cancelled:
    return Cancelled("nobody waits any more for the request that this was asked for")


def _input(place: Place, memory: Tensor) -> Tensor:
    """The tensor, as a view. Raises `ValueError` if it cannot be there."""
    if (dtype := NUMPY_DTYPES.get(place.datatype)) is not None and place.offset % dtype.alignment:
        raise ValueError(f"`{place.name}` begins at byte {place.offset}; {place.datatype}: at multiples of its size")
    return read_tensor(memory, place)
