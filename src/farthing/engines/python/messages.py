"""What the server and a worker say to each other: MessagePack, never pickle.

The server speaks first and the worker answers each message but `Stop` with exactly one. Tensors are not in here,
only where they lie (`channel.Place`).
"""

from typing import Final

import msgspec

from farthing.engines.contract import Member
from farthing.engines.python.channel import Place
from farthing.types import errors
from farthing.types.errors import FarthingError
from farthing.types.requests import Parameter
from farthing.types.tensors import TensorSpec


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All are tagged arrays: the field names need not travel."""


class Start(_Message, frozen=True, kw_only=True):
    """Load this model."""

    name: str
    version: int
    path: str
    folder: str
    instance: int
    inputs: tuple[TensorSpec, ...]
    """As configured; empty: the model declares them."""
    outputs: tuple[TensorSpec, ...]
    batch_rows_max: int | None
    parameters: dict[str, str]
    config: str
    """The model configuration as JSON, in Triton's field names."""
    can_ask: bool = False
    """There are other models to ask."""


class Run(_Message, frozen=True):
    """Run this batch. `has_new_arena`: the inputs lie in an arena whose descriptor comes with this message."""

    inputs: tuple[Place, ...]
    outputs: tuple[str, ...]
    members: tuple[Member, ...]
    has_new_arena: bool


class Stop(_Message, frozen=True):
    """Unload the model and exit."""


class Ready(_Message, frozen=True, kw_only=True):
    """The model is loaded, and this is what it takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_axis: bool | None
    batch_rows_max: int | None
    """As the model declares it; None: not said."""
    is_decoupled: bool = False
    """It answers a request as often as it likes: both sides go on in `stream_messages`."""
    returns_at_once: bool = False
    """Of a decoupled one: a batch has returned as soon as it is begun, whatever is still computed."""


class Broken(_Message, frozen=True):
    """The model could not be loaded."""

    error: str
    """Where and what, in one line."""
    trace: str
    """The end of the traceback."""


class Outputs(_Message, frozen=True):
    """The batch's outputs, rows in the members' order."""

    places: tuple[Place, ...]
    keeps_inputs: bool = False
    """The model still holds views of its inputs: their arena is its own from now on."""


class MemberReply(msgspec.Struct, frozen=True, array_like=True):
    """One member's outputs, or its error."""

    places: tuple[Place, ...] = ()
    parameters: dict[str, Parameter] = {}
    error_kind: str = ""
    error: str = ""
    is_rescheduled: bool = False


class Replies(_Message, frozen=True):
    """One reply a member."""

    members: tuple[MemberReply, ...]
    keeps_inputs: bool = False


class Raised(_Message, frozen=True):
    """The batch as a whole failed."""

    error_kind: str
    error: str
    keeps_inputs: bool = False


ERRORS: Final[dict[str, type[FarthingError]]] = {
    kind.__name__: kind
    for kind in (
        errors.AlreadyExists,
        errors.Cancelled,
        errors.DeadlineExceeded,
        errors.EngineFailed,
        errors.InvalidInput,
        errors.NotFound,
        errors.Overloaded,
        errors.TenantLimited,
        errors.TooLarge,
        errors.Unavailable,
        errors.Unsupported,
    )
}
"""Errors a model may answer with, by name. Any other is our `EngineFailed`."""


encode: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(Start | Run | Stop).decode
"""What a worker reads. Raises `msgspec.DecodeError`, and `ValueError` for text that is not UTF-8."""
decode_answer: Final = msgspec.msgpack.Decoder(Ready | Broken | Outputs | Replies | Raised).decode
"""What the server reads. Raises as `decode_order` does."""
