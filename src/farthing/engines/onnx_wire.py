"""Protocol Buffers wire data, field by field: as much of it as is needed to look into an ONNX file.

What the fields mean is for `onnx_file` and `onnx_functions` to know.
"""

import mmap
from collections.abc import Iterator
from typing import Final

Bytes = bytes | mmap.mmap

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2


class MalformedError(ValueError):
    """The bytes are not a Protocol Buffers message of this kind; says where."""


def fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field of a message: its number, first byte, byte after the last; number 0 for fields that hold no bytes."""
    at = start
    while at < end:
        tag_at = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if not 8 <= tag <= 0xFFFFFFFF:  # readers that keep 32 bits of a longer tag would see another field
            raise MalformedError(f"byte {tag_at} starts no field that ONNX knows")
        if kind == _LENGTH_DELIMITED:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise MalformedError(f"the field at byte {tag_at} has {size} bytes, {end - at} are left")
            yield tag >> 3, at, at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > end:
                raise MalformedError(f"the number at byte {tag_at} is cut off")
        else:
            raise MalformedError(f"byte {tag_at} starts no field that ONNX knows")
        if kind != _LENGTH_DELIMITED:
            yield 0, at, at


def _varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A number of at most ten bytes, seven bits each, lowest first; and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise MalformedError(f"the number before byte {at} is longer than ten bytes")
    raise MalformedError(f"the file ends inside a number at byte {at}")
