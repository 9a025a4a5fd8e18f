"""GGUF files put together byte by byte, so that every byte of them can be wrong."""

import struct
from collections.abc import Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

Entry = tuple[str, int, Any]
"""Key, type, value; an array's value is (type, values)."""
Table = tuple[str, Sequence[int], int, int]
"""Name, dimensions (innermost first), kind, offset."""


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, given: Any) -> bytes:
    if kind == STRING:
        return text(given)
    if kind == ARRAY:
        inner, values = given
        return struct.pack("<IQ", inner, len(values)) + b"".join(value(inner, one) for one in values)
    return struct.pack("<" + FORMATS[kind], given)


def gguf(
    entries: Sequence[Entry] = (),
    tensors: Sequence[Table] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    said = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *said)
    for key, kind, given in entries:
        head += text(key) + struct.pack("<I", kind) + value(kind, given)
    for name, dimensions, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return head + bytes(-len(head) % alignment) + data


EVERY_TYPE: Sequence[Entry] = (
    ("u8", U8, 255),
    ("i8", I8, -1),
    ("u16", U16, 65535),
    ("i16", I16, -2),
    ("u32", U32, 1 << 31),
    ("i32", I32, -3),
    ("f32", F32, 0.5),
    ("bool", BOOL, True),
    ("string", STRING, "grüße"),
    ("numbers", ARRAY, (I32, [1, -2, 3])),
    ("flags", ARRAY, (BOOL, [True, False])),
    ("strings", ARRAY, (STRING, ["a", "", "ß"])),
    ("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"])])),
    ("u64", U64, 1 << 63),
    ("i64", I64, -4),
    ("f64", F64, 0.25),
)
SOUND = gguf(EVERY_TYPE, [("w", [4, 2], 0, 0), ("v", [32], 8, 32)], bytes(range(66)))
"""A matrix of floats and a row of Q8_0."""
