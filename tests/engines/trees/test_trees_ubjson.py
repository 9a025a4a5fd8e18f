"""UBJSON is read as its specification says; documents that lie are in test_trees_hostile_files.py."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.trees.forest import BadModel
from farthing.engines.trees.ubjson import parse_ubjson

SIZES = {"i": 8, "I": 16, "l": 32, "L": 64}


def integer(value: int) -> bytes:
    code = next(code for code, bits in SIZES.items() if -(1 << bits - 1) <= value < 1 << bits - 1)
    return code.encode() + struct.pack(">" + {"i": "b", "I": "h", "l": "i", "L": "q"}[code], value)


def encoded(value: Any, is_counted: bool) -> bytes:
    """An independent writer; containers with a count or with an end mark."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"S" + integer(len(value.encode())) + value.encode()
    count = b"#" + integer(len(value)) if is_counted else b""
    if isinstance(value, list):
        body = b"".join(encoded(item, is_counted) for item in value)
        return b"[" + count + body + (b"" if is_counted else b"]")
    body = b"".join(encoded(k, is_counted)[1:] + encoded(v, is_counted) for k, v in value.items())
    return b"{" + count + body + (b"" if is_counted else b"}")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_what_is_written_is_read(value: Any, is_counted: bool) -> None:
    assert parse_ubjson(encoded(value, is_counted)) == value


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (b"[$U#i\x03\x01\x02\xff", [1, 2, 255]),
        (b"[$d#i\x02" + struct.pack(">ff", 0.5, -2), [0.5, -2.0]),
        (b"[$l#L" + struct.pack(">q", 1) + struct.pack(">i", -7), [-7]),
        (b"[$S#i\x02i\x01ai\x01b", ["a", "b"]),
        (b"{$i#i\x02i\x01a\x01i\x01b\x02", {"a": 1, "b": 2}),
        (b"[NNTN]", [True]),
        (b"Cx", "x"),
    ],
)
def test_typed_containers_and_rarer_marks_are_read(document: bytes, value: Any) -> None:
    assert parse_ubjson(document) == value


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(BadModel, match="1 bytes after the end"):
        parse_ubjson(b"TT")
