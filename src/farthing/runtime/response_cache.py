"""Answers kept for requests that come again: bounded in bytes, the one unused for longest goes first.

One for the whole server, on the event loop. What makes requests equal is `cache_key`'s, when to look and what to count
`cached`'s.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.telemetry.cache import CacheCounters
from farthing.types.requests import Parameter, RequestedOutput
from farthing.types.tensors import Tensor

ENTRY_BYTES: Final = 1024
"""What an entry is reckoned at beside its tensors' bytes: key, dictionaries, array objects (about 750 bytes for one
output, tracemalloc)."""

ELEMENT_BYTES: Final = 48
"""What an element of a BYTES tensor takes beside its text: the object and the pointer to it."""


class KeptAnswer(msgspec.Struct, frozen=True, gc=False):
    """What a request was answered with; nobody writes to its tensors."""

    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter]
    size: int
    """Bytes it takes."""
    load: int
    """The load of the model that gave it."""


def kept(
    outputs: Mapping[str, Tensor],
    parameters: Mapping[str, Parameter],
    asked: tuple[RequestedOutput, ...],
    load: int,
) -> KeptAnswer:
    """An answer as it can be kept: only what was asked for, and no view that would keep a whole batch alive."""
    names = {output.name for output in asked} or outputs.keys()
    own: dict[str, Tensor] = {}
    size = ENTRY_BYTES
    for name, tensor in outputs.items():
        if name in names:
            own[name] = mine = tensor if tensor.base is None else tensor.copy()
            mine.flags.writeable = False
            size += mine.nbytes
            if mine.dtype == object:
                size += sum(map(len, mine.flat)) + ELEMENT_BYTES * mine.size
    return KeptAnswer(own, parameters, size, load)


class ResponseCache:
    """Key -> answer, for as long as there is room."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, KeptAnswer] = OrderedDict()
        self._of_load: dict[int, set[bytes]] = {}
        self.counters = CacheCounters(bytes_max=bytes_max)

    def get(self, key: bytes) -> KeptAnswer | None:
        """The answer to requests with this key, if there is one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, answer: KeptAnswer) -> bool:
        """Keeps an answer; False if it is larger than the whole cache."""
        if answer.size > self._bytes_max:
            return False
        if key in self._entries:
            self._drop(key)
        counters = self.counters
        while counters.bytes_used + answer.size > self._bytes_max:
            self._drop(next(iter(self._entries)))
            counters.evictions += 1
        self._entries[key] = answer
        self._of_load.setdefault(answer.load, set()).add(key)
        counters.bytes_used += answer.size
        counters.entries = len(self._entries)
        return True

    def forget(self, load: int) -> None:
        """Drops what a load of a model gave: it is gone, and nobody will ask for it again."""
        for key in list(self._of_load.get(load, ())):
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        keys = self._of_load[entry.load]
        keys.discard(key)
        if not keys:
            del self._of_load[entry.load]
        self.counters.bytes_used -= entry.size
        self.counters.entries = len(self._entries)

    def check_integrity(self) -> None:
        """Asserts that the counters agree with the entries (for tests)."""
        assert self.counters.bytes_used == sum(entry.size for entry in self._entries.values()) <= self._bytes_max
        assert self.counters.entries == len(self._entries)
        assert {key for keys in self._of_load.values() for key in keys} == self._entries.keys()
