"""A large request body goes from the socket straight to where it will stay, its tensors where an engine wants them.

The usual way (the loop's buffer, a bytes object, the parser's slice, our body) copies a body three times, and a fourth
time where JSON of any length before the tensors leaves them askew. Once the parser has read the headers of a request
with a long `Content-Length`, the socket is given to a `Receiver`, which receives into the body's own memory. Who sent
one likely sends another, so the receiver keeps the socket and reads the next head with little room: nearly all of the
next body is never moved, and nothing is set up again between two of them. Limits and time are the connection's.
"""

import asyncio
from typing import Final, Protocol

import numpy as np

LARGE_BYTES: Final = 128 * 1024
"""Bodies from this size on are received directly; below, changing protocols costs more than the copies do."""

ALIGNMENT: Final = 64
"""Where the first tensor begins: a cache line, and what the widest vector loads want."""

HEAD_ROOM_BYTES: Final = 16 * 1024
"""What is received before the next head is known: the rest of what came with it need not be moved again."""


def room_for(size: int, head_bytes: int) -> memoryview:
    """Memory for a body of which so many bytes stand before the first tensor, which then lies on its boundary.

    One byte more than the body: a read that could have brought more shows that no more has come, and who fills its
    room to the last byte is asked for another, in vain. Not filled with zeros: the system gives memory as the bytes
    arrive, whatever the client claims.
    """
    memory = np.empty(size + ALIGNMENT, np.uint8)
    address: int = memory.__array_interface__["data"][0]
    start = -(address + head_bytes) % ALIGNMENT
    return memory[start : start + size + 1].data


class BodyTaker(Protocol):
    """Who waits for a body."""

    def body_received(self, size: int) -> None:
        """So many more bytes of it are in place."""

    def body_complete(self) -> None:
        """It is whole."""


class Owner(Protocol):
    """The connection whose socket it is."""

    def data_received(self, data: bytes) -> None:
        """Bytes for the parser."""

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Receiver(asyncio.BufferedProtocol):
    """Owns the socket of a client that sends large bodies: takes heads to the parser, bodies to their own memory."""

    def __init__(self, owner: Owner, taker: BodyTaker) -> None:
        self._owner = owner
        self._taker = taker
        self._head_room = memoryview(bytearray(HEAD_ROOM_BYTES))
        self._room = self._head_room
        self._awaited = 0
        """Bytes of a body that are still to come; 0 while a head is read."""

    def expect(self, room: memoryview, size: int) -> None:
        """The next `size` bytes are the rest of a body and go to `room`, which is one byte longer."""
        self._room = room
        self._awaited = size

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        room, awaited = self._room, self._awaited
        if not awaited:
            self._owner.data_received(bytes(room[:nbytes]))
        elif nbytes < awaited:
            self._room = room[nbytes:]
            self._awaited = awaited - nbytes
            self._taker.body_received(nbytes)
        else:
            self._room, self._awaited = self._head_room, 0
            follower = bytes(room[awaited:nbytes])  # of a client that sends the next request before it has the answer
            self._taker.body_received(awaited)
            self._taker.body_complete()
            if follower:
                self._owner.data_received(follower)

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
