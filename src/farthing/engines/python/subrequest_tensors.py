"""The worker's memory of subrequests: inputs written where the server reads them, answers read where it wrote them.

A tensor that already lies in memory shared with the server (an input of the batch, or of an answer to an earlier
subrequest) is not copied, only named. Sending and waiting belong to `subrequest_client`, whose lock this shares.
"""

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from farthing.engines.python.arena_pool import ArenaPool, NoRoom
from farthing.engines.python.channel import Arena, Place, read_tensor, write_tensors
from farthing.engines.python.subrequest_messages import BATCH_INPUTS, SUBREQUESTS_MAX, Failed, Put, Told
from farthing.types.errors import TooLarge
from farthing.types.tensors import DATATYPES, Tensor

HELD_MAX: Final = 64
"""Answers whose memory a model may hold on to. Of further ones it gets copies, so that there is an end to it."""

REFERRED_BYTES_MIN: Final = 4096
"""Smaller tensors are copied: looking for where they lie takes longer."""


class SharedTensors:
    """Arenas of both sides."""

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._pool = ArenaPool(step=1, arenas_max=SUBREQUESTS_MAX)
        self._answers: dict[int, Arena] = {}
        self._held: dict[int, weakref.ref[Tensor]] = {}
        """The memory of each answer that the model still looks at."""
        self._freed: deque[int] = deque()
        self.batch_inputs: Tensor | None = None
        """Those of the batch that runs."""

    # -- inputs ------------------------------------------------------------------------------------------------------

    def drop(self, arena: int, *, is_known: bool) -> None:
        """An arena of inputs that were not sent; `is_known`: the server has had it before. Under the lock."""
        if is_known:
            self._pool.give(arena)
        else:
            self._pool.drop(arena)  # its descriptor never left

    def freed_now(self) -> tuple[int, ...]:
        """Answers that the model looks at no more, to be told to the server."""
        freed = []
        while self._freed:
            try:
                freed.append(self._freed.popleft())
            except IndexError:  # another thread was quicker
                break
        return tuple(freed)

    def put(self, inputs: Mapping[str, Tensor]) -> tuple[tuple[Put, ...], int, int]:
        """Puts inputs where the server can read them: where each lies, the arena that was written, 0 for none, and its
        descriptor if it is new, else -1. Raises `TooLarge`, `ValueError`, `TypeError`."""
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
            with self._lock:
                number, arena, is_new = self._pool.take(sum(tensor.nbytes for tensor in to_write.values()))
        except NoRoom as full:
            raise TooLarge(f"tensors of this model's own requests: {full}") from full
        try:
            places = write_tensors(arena, to_write.items())
        except BaseException:
            with self._lock:
                self.drop(number, is_known=not is_new)
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
        with self._lock:
            seen = [(BATCH_INPUTS, self.batch_inputs), *((number, ref()) for number, ref in self._held.copy().items())]
        for number, memory in seen:
            if memory is None:
                continue
            offset = start - _address(memory)
            if offset >= 0 and offset + tensor.nbytes <= memory.nbytes:
                return Put(number, Place(name, datatype, tensor.shape, offset, tensor.nbytes))
        return None

    def give(self, arena: int) -> None:
        """An arena of inputs that have been dealt with. Under the lock."""
        self._pool.give(arena)

    def lose(self, arena: int) -> None:
        """An arena of inputs that an engine may be reading still. Under the lock."""
        self._pool.drop(arena)

    # -- answers -----------------------------------------------------------------------------------------------------

    def meet(self, told: Told, fds: list[int]) -> None:
        """Takes the memory that comes with an answer. Under the lock."""
        if told.has_new_arena:
            self._answers[told.arena] = Arena(fds.pop(0))

    def forget(self, answer: Told | Failed | None) -> None:
        """An answer that nobody looks at."""
        if isinstance(answer, Told) and answer.arena:
            self._freed.append(answer.arena)

    def not_told(self, freed: tuple[int, ...]) -> None:
        """What `freed_now` gave did not reach the server."""
        self._freed.extend(freed)

    def outputs(self, answer: Told) -> dict[str, Tensor]:
        """An answer's tensors: views while the model may hold so many, then copies."""
        if not answer.arena:
            return {place.name: read_tensor(np.empty(0, np.uint8), place) for place in answer.places}
        with self._lock:
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
