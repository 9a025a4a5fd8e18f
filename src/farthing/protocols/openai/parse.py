"""A body to a checked value, or an error that names the field.

One pass: msgspec checks types and ranges while it reads. Null and missing are the same (every optional field is
`T | None`), unknown fields are skipped. What fields there are belongs to `chat` and `completions`.
"""

import re
from typing import Any, Final, TypeVar

import msgspec

from farthing.types.errors import InvalidField, InvalidInput

Body = TypeVar("Body")

_PATH: Final = re.compile(r" - at `(?:(?:key|value) in )?`?\$(?P<path>[^`]*)`*$")
_INDEX: Final = re.compile(r"\[(\d+)\]")
SHOWN_CHARACTERS_MAX: Final = 300
"""What an error repeats of what a client sent; msgspec quotes values it did not expect."""


def parse(body: bytes | memoryview, decoder: msgspec.json.Decoder[Body]) -> Body:
    """The body as the decoder's kind of value. Raises `InvalidField` with the dotted path of what is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as wrong:
        raise _at_its_field(str(wrong)) from None
    except msgspec.DecodeError as wrong:
        raise InvalidInput(f"the body is not JSON: {_shown(str(wrong))}") from None
    except UnicodeDecodeError:
        raise InvalidInput("the body is not UTF-8") from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None


def parse_value(value: Any, kind: type[Body]) -> Body:
    """The same for JSON that is read already."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        raise _at_its_field(str(wrong)) from None


def _at_its_field(text: str) -> InvalidField:
    found = _PATH.search(text)
    field = ""
    if found is not None:
        field = _INDEX.sub(r".\1", found["path"].replace("[...]", ".*")).lstrip(".")
        text = text[: found.start()]
    elif text.startswith("Object missing required field"):
        field = text.partition("`")[2].rstrip("`")
    text = _shown(text)
    if found is not None and text.startswith("Object missing required field"):
        field = f"{field}.{text.partition('`')[2].rstrip('`')}".lstrip(".")
    return InvalidField(f"{field or 'the body'}: {text[:1].lower()}{text[1:]}", field=field)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."
