"""Length-prefixed messages: five bytes (coded or not, and how long), then the message.

A request's body comes in pieces of any size; the reader puts messages together in one buffer each, so that a client
that sends them byte by byte costs no more memory than one that does not.
"""

from typing import Final, Literal

from farthing.protocols.compression import deflate, inflate
from farthing.types.errors import InvalidInput, MessageTooLarge, TooLarge, Unsupported

PREFIX_BYTES: Final = 5
CODINGS: Final = ("gzip", "deflate")
"""`grpc-encoding` of messages that are not as they are; `deflate` is the zlib format, as in HTTP."""

CODED_BYTES_MIN: Final = 1024
"""Answers smaller than this go out as they are, also to a client that asked in a coding."""

Coding = Literal["identity", "gzip", "deflate"]
Message = bytes | memoryview


def coding_of(said: bytes) -> Coding:
    """What `grpc-encoding` names. Raises `Unsupported`: the answer then lists what is accepted."""
    name = said.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return "identity"
    if name == "gzip":
        return "gzip"
    if name == "deflate":
        return "deflate"
    raise Unsupported(f"grpc-encoding: `{name[:80]}` is not supported", hint="send identity, gzip or deflate")


def prefixed(message: bytes) -> bytes:
    """A message as it goes out, uncoded."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def framed(message: bytes, coding: Coding) -> bytes:
    """A message as it goes out to a client that accepts this coding."""
    if coding == "identity" or len(message) < CODED_BYTES_MIN:
        return prefixed(message)
    coded = deflate(message, coding)
    return b"\1" + len(coded).to_bytes(4, "big") + coded


def inflate_message(message: Message, coding: Coding, bytes_max: int) -> bytes:
    """A coded message as it was. Raises `MessageTooLarge` past the limit, `InvalidInput` for what is not coded so."""
    if coding == "identity":
        raise InvalidInput(
            "a message is marked as compressed, and the call names no grpc-encoding",
            hint="send grpc-encoding: gzip or deflate with it",
        )
    try:
        return inflate(message, coding, bytes_max)
    except TooLarge as error:
        raise MessageTooLarge(error.message, hint=error.hint) from None


class MessageReader:
    """What came of one stream's body, and the messages in it, one at a time."""

    __slots__ = ("_buffer", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """More of the body."""
        self._buffer += data

    @property
    def unread_bytes(self) -> int:
        """What was fed and not read as a message yet."""
        return len(self._buffer)

    def check(self) -> int:
        """Where the next message ends; 0 while that is not known. Raises `MessageTooLarge` as soon as it announces its
        length, `InvalidInput` for what is no message."""
        buffer = self._buffer
        if len(buffer) < PREFIX_BYTES:
            return 0
        if buffer[0] > 1:
            raise InvalidInput(f"a message begins with {buffer[0]}, which is neither 0 nor 1")
        size = int.from_bytes(buffer[1:PREFIX_BYTES], "big")
        if size > self._bytes_max:
            raise MessageTooLarge(
                f"a message of {size} bytes is over the limit of {self._bytes_max}",
                hint="send fewer rows a request, or raise --http-max-input-size",
            )
        return size + PREFIX_BYTES

    def next(self) -> tuple[Message, bool] | None:
        """The next message and whether it is coded; None until all of it is here. Raises as `check` does."""
        end, buffer = self.check(), self._buffer
        if not end or len(buffer) < end:
            return None
        is_coded = bool(buffer[0])
        if len(buffer) == end:  # the usual case, and not copied
            self._buffer = bytearray()
            return memoryview(buffer)[PREFIX_BYTES:], is_coded
        message = bytes(buffer[PREFIX_BYTES:end])
        del buffer[:end]
        return message, is_coded
