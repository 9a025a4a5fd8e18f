"""A large request body goes from the socket straight to where it will stay, its tensors where an engine wants them.

The usual way (the loop's buffer, a bytes object, the parser's slice, our body) copies a body three times, and a fourth
time where JSON of any length before the tensors leaves them askew. Once the parser has read the headers of a request
with a long `Content-Length`, the connection hands the socket to this protocol, which receives into the body's own
memory and gives the socket back when the body is whole. Who sent one likely sends another, so the next head is read
with little room, and nearly all of the next body is never moved. Limits and time are still the connection's.
"""

import asyncio
from typing import Final, Protocol

import numpy as np

LARGE_BYTES: Final = 128 * 1024
"""Bodies from this size on are received directly; below, changing protocols costs more than the copies do."""


ALIGNMENT: Final = 64
"""Where the first tensor begins: a cache line, and what the widest vector loads want."""


def room_for(size: int, head_bytes: int) -> memoryview:
    """Memory for a body of which so many bytes stand before the first tensor, which then lies on its boundary.

    Not filled with zeros: the system gives memory as the bytes arrive, whatever the client claims.
    """
    memory = np.empty(size + ALIGNMENT, np.uint8)
    address: int = memory.__array_interface__["data"][0]
    start = -(address + head_bytes) % ALIGNMENT
    return memory[start : start + size].data


HEAD_ROOM_BYTES: Final = 16 * 1024
"""What is received before the next head is known: the rest of what came with it need not be moved again."""


class BodyOwner(Protocol):
    """The connection, as the readers need it."""

    def data_received(self, data: bytes) -> None:
        """Bytes for the parser."""

    def body_received(self, size: int) -> None:
        """So many more bytes of the body are in place."""

    def body_complete(self) -> None:
        """The body is whole, and the socket is the connection's again."""

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class _Reader(asyncio.BufferedProtocol):
    """Receives into its own memory; all else is its owner's."""

    def __init__(self, owner: BodyOwner, room: memoryview) -> None:
        self._owner = owner
        self._room = room

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


class LargeBodyReader(_Reader):
    """Fills `room` from the socket, then gives the socket back to its owner."""

    def buffer_updated(self, nbytes: int) -> None:
        self._room = self._room[nbytes:]
        self._owner.body_received(nbytes)
        if not self._room:
            self._owner.body_complete()


class HeadReader(_Reader):
    """Receives little at a time, for its owner's parser, where the next body is likely as large as the last one."""

    def __init__(self, owner: BodyOwner) -> None:
        super().__init__(owner, memoryview(bytearray(HEAD_ROOM_BYTES)))

    def buffer_updated(self, nbytes: int) -> None:
        self._owner.data_received(bytes(self._room[:nbytes]))
