"""How many fields a message has, counted before it is parsed.

An empty submessage is two bytes on the wire and ninety in memory, so a message within the size limit could take
forty times that limit. Elements of typed contents are not counted: there it is at most a factor of eight.
"""

from typing import Final

from farthing.types.errors import TooLarge

FIELDS_MAX: Final = 1 << 16
"""Fields of a message and of its inputs and outputs. The largest request that the other limits allow (1,024 inputs
with 32 dimensions, each written by itself) has 40,000."""

_NESTED: Final = (5, 6)
"""`inputs` and `outputs` of a `ModelInferRequest`."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GROUPS: Final = (3, 4)


def check_fields(data: bytes | memoryview) -> None:
    """Raises `TooLarge` for a message of too many fields. What is no message is left for the parser to say."""
    try:
        _count(data, 0, len(data), 0, is_nested=False)
    except IndexError:
        return


def _count(data: bytes | memoryview, position: int, end: int, count: int, *, is_nested: bool) -> int:
    while position < end:
        count += 1
        if count > FIELDS_MAX:
            raise TooLarge(
                f"the message has more than {FIELDS_MAX} fields",
                hint="send fewer inputs, outputs or parameters, and shapes packed",
            )
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _LENGTH:
            size, position = _varint(data, position)
            if not is_nested and tag >> 3 in _NESTED:
                count = _count(data, position, min(position + size, end), count, is_nested=True)
            position += size
        elif kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind not in _GROUPS:  # a group's fields are counted as if they stood outside of it
            return count
    return count


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:  # longer ones are no varints, and the parser says so
            return value, position + 1
        shift += 7
