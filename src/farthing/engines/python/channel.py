"""Tensors and messages between the server and a worker: shared memory for the one, a socket for the other.

An `Arena` is a piece of memory both processes map. It has no name in the file system, so nothing is left behind
however either side dies. It only grows, and is written anew for every batch: no allocation, no page faults. A
`Connection` carries short messages that say where in an arena the tensors lie. What is said is in `messages`;
nothing that is read here is trusted, since a user's code runs on the other side.
"""

import contextlib
import mmap
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from farthing.types.tensors import BYTES_LENGTH_PREFIX, DATATYPES, NUMPY_DTYPES, Tensor

if sys.platform == "linux":
    import fcntl

ALIGNMENT_BYTES: Final = 64
"""Tensors begin at multiples of this: a cache line, and the widest vector register."""

ARENA_BYTES_FIRST: Final = 1 << 16
"""What an arena begins with; small models never grow it."""

ARENA_BYTES_MAX: Final = 1 << 32
"""The most one batch may put in or take out. Beyond it the batch is refused; both sides check."""

MESSAGE_BYTES_MAX: Final = 1 << 26
"""The longest message either side accepts: a batch's ids and parameters, never tensor data."""

ARENA_BYTES_KEPT: Final = 1 << 24
"""What an arena keeps of its memory when large batches have become rare."""

RARE_BATCHES: Final = 256
"""So many batches in a row that needed no more than `ARENA_BYTES_KEPT`: the last large one was an exception."""

_RECEIVE_BYTES: Final = 1 << 16
_LENGTH: Final = struct.Struct("<I")


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a tensor lies in an arena."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Arena:
    """Memory shared between two processes: the owner of `fd` on either side."""

    __slots__ = ("_small_batches", "fd", "map", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._small_batches = 0
        self.size = os.fstat(fd).st_size
        self.map = mmap.mmap(fd, self.size)

    @classmethod
    def create(cls) -> "Arena":
        """A new arena that only its file descriptor refers to."""
        if sys.platform == "linux":
            fd = os.memfd_create("farthing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, ARENA_BYTES_FIRST)
            # A worker that shrank what we have mapped would kill the server with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
            os.ftruncate(fd, ARENA_BYTES_FIRST)
        return cls(fd)

    def grow(self, size: int) -> None:
        """Makes room for `size` bytes; at least doubles, so that growing stays rare. Raises `ValueError`."""
        if size <= self.size:
            if self.size > ARENA_BYTES_KEPT:
                self._small_batches = self._small_batches + 1 if size <= ARENA_BYTES_KEPT else 0
                if self._small_batches == RARE_BATCHES:
                    self.give_back()
            return
        if size > ARENA_BYTES_MAX:
            raise ValueError(f"{size} bytes of tensors in one batch; allowed: {ARENA_BYTES_MAX}")
        os.ftruncate(self.fd, min(max(size, 2 * self.size), ARENA_BYTES_MAX))
        self.refresh()

    def give_back(self) -> None:
        """Returns what is above `ARENA_BYTES_KEPT` to the system; it reads as zeros until it is written again."""
        if self.size > ARENA_BYTES_KEPT and sys.platform == "linux":
            # The file keeps its size, which is sealed; its pages return to the system until they are written again.
            self.map.madvise(mmap.MADV_REMOVE, ARENA_BYTES_KEPT, self.size - ARENA_BYTES_KEPT)

    def refresh(self) -> None:
        """Sees what the other side has grown. Views of the old mapping stay valid, and keep it alive."""
        size = os.fstat(self.fd).st_size
        if size > self.size:
            self.map = mmap.mmap(self.fd, size)
            self.size = size

    def memory(self) -> Tensor:
        """All of it as an array of bytes. A tensor that is read from this array keeps it alive."""
        return np.frombuffer(self.map, np.uint8)

    def close(self) -> None:
        """Gives the memory back, once no view is left."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):  # views are still about: the last one frees it
            self.map.close()


class Room(Protocol):
    """What tensors can be written into: an arena, or what goes along with a message."""

    map: Any

    def grow(self, size: int) -> None: ...


def write_tensors(arena: Room, tensors: Iterable[tuple[str, Tensor]]) -> tuple[Place, ...]:
    """Copies tensors into the arena, from its beginning, and says where they are.

    Raises `ValueError` for a dtype that the protocol lacks, for BYTES elements that are neither `bytes` nor `str`,
    and for more than an arena may hold.
    """
    places: list[Place] = []
    sources: list[Tensor] = []
    end = 0
    for name, tensor in tensors:
        datatype = DATATYPES.get(tensor.dtype)
        if datatype is None:
            raise ValueError(f"`{name}` has dtype {tensor.dtype}, which has no datatype; known: {_KNOWN}")
        shape = tensor.shape
        if datatype == "BYTES":
            tensor = np.frombuffer(encode_bytes(name, tensor), np.uint8)  # noqa: PLW2901
        places.append(Place(name, datatype, shape, end, tensor.nbytes))
        sources.append(tensor)
        end += (tensor.nbytes + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES
    arena.grow(end)
    for place, source in zip(places, sources, strict=True):
        if place.size:
            # Assigning also gathers a strided tensor: one copy, whatever its layout.
            target: Tensor = np.ndarray(source.shape, source.dtype, arena.map, place.offset)
            target[...] = source
    return tuple(places)


def read_tensor(memory: Tensor, place: Place) -> Tensor:
    """The tensor at a place of an arena's `memory()`: a view of it (BYTES: decoded).

    Raises `ValueError` if the place cannot be true.
    """
    dtype = NUMPY_DTYPES.get(place.datatype)
    shape = place.shape
    if dtype is None or any(d < 0 for d in shape) or place.size < 0 or place.offset < 0:
        raise ValueError(f"`{place.name}`: no tensor is {place.datatype} of shape {list(shape)}")
    count = prod(shape)
    end = place.offset + place.size
    if end > len(memory):
        raise ValueError(f"`{place.name}` ends at byte {end} of {len(memory)}")
    if place.datatype == "BYTES":
        return decode_bytes(place.name, memory.data[place.offset : end], shape)
    if count * dtype.itemsize != place.size:
        raise ValueError(f"`{place.name}`: {place.size} bytes are not {place.datatype} of shape {list(shape)}")
    if not place.size:
        return np.empty(shape, dtype)
    return memory[place.offset : end].view(dtype).reshape(shape)


def encode_bytes(name: str, tensor: Tensor) -> bytes:
    """A BYTES tensor as the protocol writes it: each element behind its length. `str` becomes UTF-8."""
    parts: list[bytes] = []
    for element in tensor.ravel().tolist():
        if isinstance(element, str):
            element = element.encode()  # noqa: PLW2901
        elif not isinstance(element, bytes):
            raise ValueError(f"`{name}` is BYTES and holds a {type(element).__name__}; allowed: bytes, str")
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def decode_bytes(name: str, data: memoryview | bytes, shape: Sequence[int]) -> Tensor:
    """The inverse of `encode_bytes`. Raises `ValueError` unless the data hold exactly these elements."""
    count = prod(shape)
    size = len(data)
    if count * BYTES_LENGTH_PREFIX > size:
        raise ValueError(f"`{name}`: {size} bytes cannot hold {count} elements of BYTES")
    elements: list[bytes] = []
    at = 0
    for _ in range(count):
        start = at + BYTES_LENGTH_PREFIX
        if start > size:
            raise ValueError(f"`{name}`: element {len(elements)} of {count} is cut off")
        at = start + _LENGTH.unpack_from(data, start - BYTES_LENGTH_PREFIX)[0]
        if at > size:
            raise ValueError(f"`{name}`: element {len(elements)} of {count} is cut off")
        elements.append(bytes(data[start:at]))
    if at != size:
        raise ValueError(f"`{name}`: {size - at} bytes are left over after {count} elements")
    tensor: Tensor = np.empty(count, object)
    tensor[:] = elements
    return tensor.reshape(shape)


class Connection:
    """Messages over a socket, each behind its length. One side sends while the other listens."""

    __slots__ = ("_rest", "_timeout_s", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""
        self._timeout_s: float | None = None
        sock.settimeout(None)

    def send(self, message: bytes, fd: int = -1) -> None:
        """Sends one message, and a file descriptor with it if one is given. Raises `OSError`."""
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; allowed: {MESSAGE_BYTES_MAX}")
        data = _LENGTH.pack(len(message)) + message
        if fd < 0:
            self.socket.sendall(data)
        else:
            self.socket.sendall(data[socket.send_fds(self.socket, [data], [fd]) :])

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next message, or None when the other side is gone. Raises `TimeoutError`, `ValueError`."""
        if timeout_s != self._timeout_s:  # a system call, spared where nothing changes
            self.socket.settimeout(timeout_s)
            self._timeout_s = timeout_s
        try:
            return self._read(self.socket.recv(_RECEIVE_BYTES) if not self._rest else b"")
        except ConnectionError:
            return None

    def receive_with_fd(self) -> tuple[bytes | None, int]:
        """The next message and the file descriptor that came with it."""
        data, fds, _, _ = socket.recv_fds(self.socket, _RECEIVE_BYTES, 1)
        return self._read(data), fds[0] if fds else -1

    def _read(self, data: bytes) -> bytes | None:
        buffer = self._rest + data
        if not buffer:
            return None
        while len(buffer) < _LENGTH.size:
            if not (more := self.socket.recv(_RECEIVE_BYTES)):
                return None
            buffer += more
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if end > MESSAGE_BYTES_MAX + _LENGTH.size:
            raise ValueError(f"a message of {end} bytes; allowed: {MESSAGE_BYTES_MAX}")
        if len(buffer) < end:
            whole = bytearray(buffer)
            while len(whole) < end:
                if not (more := self.socket.recv(min(end - len(whole), 1 << 20))):
                    return None
                whole += more
            buffer = bytes(whole)
        self._rest = buffer[end:]
        return buffer[_LENGTH.size : end]

    def close(self) -> None:
        """Closes our end; whoever waits on the other sees it at once."""
        self.socket.close()

    def hang_up(self) -> None:
        """Ends the conversation under a thread that is waiting in `receive`."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


_KNOWN: Final[Any] = ", ".join(NUMPY_DTYPES)
