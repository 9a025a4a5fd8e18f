"""The JSON of requests as structs, and parsing into them: what is malformed ends here, with its place named.

A member that is `null` counts as absent, unknown members are ignored, and of two members with one name the last
one counts, as in most JSON readers.
"""

import json
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from farthing.protocols.kserve.limits import DIMENSIONS_MAX, ID_CHARACTERS_MAX, JSON_DEPTH_MAX, TENSORS_MAX
from farthing.types.errors import InvalidInput
from farthing.types.requests import Parameter

Dimension = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Shape = Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=DIMENSIONS_MAX)]


NO_DATA: Final = msgspec.Raw()


class WireInput(msgspec.Struct, gc=False):
    """One of `inputs`. Members stand in the order in which clients write them, which is the quickest to read."""

    name: str
    shape: Shape
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: msgspec.Raw = NO_DATA


class WireOutput(msgspec.Struct, gc=False):
    """One of `outputs`."""

    name: str
    parameters: dict[str, Parameter] | None = None


class WireRequest(msgspec.Struct, gc=False):
    """The JSON of an inference request."""

    inputs: Annotated[list[WireInput], msgspec.Meta(max_length=TENSORS_MAX)]
    outputs: Annotated[list[WireOutput], msgspec.Meta(max_length=TENSORS_MAX)] | None = None
    id: Annotated[str, msgspec.Meta(max_length=ID_CHARACTERS_MAX)] | None = None
    parameters: dict[str, Parameter] | None = None


class ParsedInput(msgspec.Struct):
    """A `WireInput` that the parser of the standard library read."""

    name: str
    shape: Shape
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: Any = NO_DATA


class ParsedRequest(msgspec.Struct):
    """A `WireRequest` that the parser of the standard library read."""

    inputs: Annotated[list[ParsedInput], msgspec.Meta(max_length=TENSORS_MAX)]
    outputs: Annotated[list[WireOutput], msgspec.Meta(max_length=TENSORS_MAX)] | None = None
    id: Annotated[str, msgspec.Meta(max_length=ID_CHARACTERS_MAX)] | None = None
    parameters: dict[str, Parameter] | None = None


_decode: Final = msgspec.json.Decoder(WireRequest).decode

Message = TypeVar("Message")


def parse_infer(text: bytes | memoryview) -> WireRequest | ParsedRequest:
    """The JSON of an inference request; `data` is left as text, or as values where it holds NaN or Infinity."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Bare NaN and Infinity are outside JSON and inside this protocol. They are rare: only a body that failed
        # and has such a word is read again, by the parser of the standard library, which knows them.
        if type(error) is msgspec.DecodeError and _may_have_nonfinite(text):
            return _parse_nonfinite(bytes(text))
        raise malformed(error, "failed to parse the request JSON buffer") from None


class BodyParser(Generic[Message]):
    """Parses small bodies into one kind of struct; an empty body is that struct's defaults."""

    def __init__(self, kind: type[Message], what: str) -> None:
        self._kind = kind
        self._what = what
        self._decode = msgspec.json.Decoder(kind).decode

    def parse(self, body: bytes | memoryview) -> Message:
        if not len(body):
            return self._kind()
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(error, f"failed to parse the {self._what} request") from None


def malformed(error: Exception, what: str) -> InvalidInput:
    """The error for a body that a decoder refused."""
    if isinstance(error, RecursionError):
        return InvalidInput(f"{what}: arrays or objects are nested too deeply; the limit is {JSON_DEPTH_MAX}")
    if isinstance(error, UnicodeDecodeError):
        return InvalidInput(f"{what}: not UTF-8 ({error.reason})")
    # msgspec says "Expected `int`, got `str` - at `$.inputs[0].shape[1]`"; the place reads better without the root.
    return InvalidInput(f"{what}: {str(error).replace('`$.', '`').replace(' - at `$`', '')}")


def _may_have_nonfinite(text: bytes | memoryview) -> bool:
    whole = bytes(text)
    return b"NaN" in whole or b"Infinity" in whole


def _parse_nonfinite(text: bytes) -> ParsedRequest:
    what = "failed to parse the request JSON buffer"
    try:
        parsed = json.loads(text)
        if b"\\u" in text:
            # This parser lets half a surrogate pair through, which no later encoder would.
            json.dumps(parsed, ensure_ascii=False).encode()
        return msgspec.convert(parsed, ParsedRequest)
    except UnicodeEncodeError:
        raise InvalidInput(f"{what}: a string holds half a surrogate pair") from None
    except (msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error, what) from None
    except ValueError as error:
        raise InvalidInput(f"{what}: {str(error)[:200]}") from None
