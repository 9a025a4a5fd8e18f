"""What a worker and the server say to each other about subrequests: a Python model asking other models.

MessagePack over a socket of their own that keeps messages apart (`pair`), so that any thread of the worker may send at
any time, whatever the main connection is busy with. Tensors are not in here: they lie in arenas, numbered by who made
them, whose descriptors travel with the first message that names them. Nothing that the server reads is trusted.
"""

import socket
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from farthing.engines.python.channel import Place
from farthing.engines.python.messages import ERRORS
from farthing.types.errors import EngineFailed, FarthingError, ModelNotFound
from farthing.types.requests import Parameter

SUBREQUESTS_MAX: Final = 64
"""Subrequests of one process under way; more wait in the process. Enough to fill two batches of the largest models."""

MESSAGE_BYTES_MAX: Final = 1 << 17
"""The longest message: ids, parameters and places. A socket takes it whole (Linux's default buffer is 208 KiB)."""

PART_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 3
"""The longest subrequest or answer. A message is a MessagePack array of them, whose head takes 3 bytes."""

BATCH_INPUTS: Final = 0
"""The number of the arena that the running batch's inputs lie in. The worker's own count up from 1, the server's
down from -1."""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All are tagged arrays: the field names need not travel."""


class Put(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where an input lies, in which arena."""

    arena: int
    place: Place


class Ask(_Message, frozen=True, kw_only=True):
    """A subrequest."""

    number: int
    model: str
    version: str
    inputs: tuple[Put, ...]
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: dict[str, Parameter] = {}
    is_stream: bool = False
    """It may be answered any number of times: one answer comes, and one more for each `Next`."""
    priority: int = 0
    timeout_us: int = 0
    batch: int = 0
    """The batch that runs, counted from 1; 0: none does."""
    member: int = -1
    """The request of it that this is for; -1: all of them."""
    streams: tuple[int, ...] = ()
    """Instead of a batch: the numbers of the requests being answered that this is for (`stream_messages`)."""
    blocks: bool = False
    """Until the answer is there, the process begins no other batch and goes on with none of its requests."""
    inputs_renewed: int = 0
    """How often the batches' inputs have moved to another arena."""
    arena: int = 0
    """The worker's arena it needs, if any: free again with the answer."""
    has_new_arena: bool = False
    """That arena's descriptor comes with this message."""
    freed: tuple[int, ...] = ()
    """The server's arenas that the model looks at no more."""


class Withdraw(_Message, frozen=True):
    """Nobody waits for this answer any more. The worker's arena, if it has one (else 0), is not used again."""

    number: int
    arena: int


class Next(_Message, frozen=True):
    """This one's answer has been taken, and the one after it may come."""

    number: int
    freed: tuple[int, ...]
    """As in `Ask`."""


class Told(_Message, frozen=True, kw_only=True):
    """The answer, in the server's arena of that number: the worker's to look at until it says that it is freed."""

    number: int
    model: str
    version: str
    id: str
    places: tuple[Place, ...]
    parameters: dict[str, Parameter]
    arena: int
    has_new_arena: bool
    is_last: bool = True
    is_empty: bool = False
    """It only says that this was the last."""


class Failed(_Message, frozen=True, kw_only=True):
    """The error it was answered with."""

    number: int
    kind: str
    error: str
    hint: str
    retry_after_s: float | None
    is_last: bool = True
    is_withdrawn: bool = False
    """The server gave it up: its inputs may still be read, and the worker answers with `Withdraw`."""


def failed(number: int, error: FarthingError, *, is_last: bool = True, is_withdrawn: bool = False) -> Failed:
    """An error as a message: of the nearest kind that both sides know."""
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS), EngineFailed.__name__)
    # An answer has to arrive, however long what it says is.
    return Failed(
        number=number,
        kind=kind,
        error=error.message[:_TEXT_CHARACTERS_MAX],
        hint=error.hint[:_TEXT_CHARACTERS_MAX],
        retry_after_s=error.retry_after_s,
        is_last=is_last,
        is_withdrawn=is_withdrawn,
    )


def ended(number: int) -> Told:
    """That there was no further answer."""
    return Told(
        number=number,
        model="",
        version="",
        id="",
        places=(),
        parameters={},
        arena=0,
        has_new_arena=False,
        is_empty=True,
    )


def error_of(answer: Failed) -> FarthingError:
    """The error, for the model to catch. A missing model is `ModelNotFound`."""
    kind = ERRORS.get(answer.kind, EngineFailed)
    return (ModelNotFound if kind.__name__ == "NotFound" else kind)(
        answer.error, hint=answer.hint, retry_after_s=answer.retry_after_s
    )


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages whole."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM)


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """The next message and the file descriptors with it; no bytes: the other side is gone. Raises `OSError`."""
    # By hand: `socket.recv_fds` and `send_fds` of Python 3.11 do not pass their flags on.
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_BYTES_MAX, _FDS_SPACE, flags | _CLOSE_ON_EXEC)
    if not ancillary:
        return data, []
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist()


class Outbox:
    """Messages that leave together, in as few sends as can be: what the other side is woken for. One thread's."""

    def __init__(self) -> None:
        self._parts: list[tuple[bytes, int]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, part: bytes, fd: int = -1) -> None:
        """One message of at most `PART_BYTES_MAX`, encoded, and its file descriptor if it has one."""
        self._parts.append((part, fd))

    def sends(self) -> Iterator[tuple[bytes, list[int]]]:
        """What to send, one after the other; afterwards it is empty."""
        parts, self._parts = self._parts, []
        begin = size = 0
        for end, (part, _) in enumerate(parts):
            if size + len(part) > PART_BYTES_MAX or end - begin == SUBREQUESTS_MAX:
                yield _joined(parts[begin:end])
                begin, size = end, 0
            size += len(part)
        if parts:
            yield _joined(parts[begin:])


def _joined(parts: list[tuple[bytes, int]]) -> tuple[bytes, list[int]]:
    head = b"\xdc" + len(parts).to_bytes(2, "big")  # MessagePack's array of up to 65,535
    return head + b"".join([part for part, _ in parts]), [fd for _, fd in parts if fd >= 0]


def send(sock: socket.socket, message: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Sends one message, and file descriptors with it. Raises `OSError`."""
    if fds:
        sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], flags)
    else:
        sock.send(message, flags)


_FDS_SPACE: Final = socket.CMSG_SPACE(SUBREQUESTS_MAX * array("i").itemsize)
_TEXT_CHARACTERS_MAX: Final = 4000
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

encode: Final = msgspec.msgpack.Encoder().encode
decode_questions: Final = msgspec.msgpack.Decoder(list[Ask | Next | Withdraw]).decode
"""What the server reads. Raises `msgspec.DecodeError`, and `ValueError` for text that is not UTF-8."""
decode_answers: Final = msgspec.msgpack.Decoder(list[Told | Failed]).decode
"""What a worker reads."""
