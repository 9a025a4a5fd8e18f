"""What the server and a worker say to each other when the model answers as often as it likes.

After `messages.Ready` both sides may speak at any time. A request has a number, which counts up. Its responses carry
their tensors with them; so many may be on their way that the server has not taken yet, then the model waits.
"""

from typing import Final

import msgspec

from farthing.engines.contract import Member
from farthing.engines.python.channel import Place
from farthing.engines.python.messages import Stop
from farthing.types.requests import Parameter

UNTAKEN_RESPONSES_MAX: Final = 32
"""Responses of one request that are on their way; enough to hide the way there and back."""

UNTAKEN_BYTES_MAX: Final = 4 << 20
"""The same in bytes; a single response may be larger."""

RESPONSE_BYTES_MAX: Final = 48 << 20
"""Tensors of one response; a message is at most `channel.MESSAGE_BYTES_MAX`."""


_DEPTH_BITS: Final = 6
_OWN: Final = 1 << _DEPTH_BITS
_DEPTHS: Final = _OWN - 1


def numbered(count: int, depth: int, *, is_own: bool) -> int:
    """The number of the `count`th request of a process: no other has it, and whoever has it knows where it came from.

    `depth` models in a row asked each other until it came to this request; it `is_own` where this model was one of
    them. That outlasts the request: what it leaves behind when it ends may still ask for more.
    """
    return (count << _DEPTH_BITS + 1) | (_OWN if is_own else 0) | min(depth, _DEPTHS)


def depth_of(number: int) -> int:
    """How many models in a row asked each other until it came to this request."""
    return number & _DEPTHS


def is_own(number: int) -> bool:
    """Whether the model asked for this request itself, directly or through others."""
    return bool(number & _OWN)


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tagged arrays, as all messages are."""


class StreamRun(_Message, frozen=True):
    """Begin this batch. The inputs lie in the arena until `Returned`."""

    inputs: tuple[Place, ...]
    outputs: tuple[str, ...]
    members: tuple[Member, ...]
    numbers: tuple[int, ...]
    """Of the members' requests (`numbered`)."""


class Cancel(_Message, frozen=True):
    """Nobody waits for this request's responses any more."""

    number: int


class Taken(_Message, frozen=True):
    """One more response of this request has been dealt with."""

    number: int


class Response(_Message, frozen=True):
    """One response to a request, or its error, or neither but the last word."""

    number: int
    is_last: bool
    is_empty: bool = False
    """Only says that it is the last."""
    places: tuple[Place, ...] = ()
    """Where the tensors lie in `data`."""
    data: bytes = b""
    parameters: dict[str, Parameter] = {}
    error_kind: str = ""
    error: str = ""


class Rescheduled(_Message, frozen=True):
    """This request is to run again, under another number; nothing more is said under this one."""

    number: int


class Returned(_Message, frozen=True):
    """The worker can begin another batch."""


encode: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(StreamRun | Cancel | Taken | Stop).decode
"""What a worker reads. Raises `msgspec.DecodeError`, and `ValueError` for text that is not UTF-8."""
decode_answer: Final = msgspec.msgpack.Decoder(Response | Rescheduled | Returned).decode
"""What the server reads. Raises as `decode_order` does."""
