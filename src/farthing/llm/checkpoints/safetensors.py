"""Safetensors files: a JSON table of names, types, shapes and offsets, then the bytes; mapped, nothing copied.

    table length u64 | table | data

The format is https://github.com/huggingface/safetensors. Lengths and offsets are held against the file before use.
"""

import json
import math
import mmap
from pathlib import Path
from typing import Any, Final

from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.types.errors import LoadFailed

TABLE_BYTES_MAX: Final = 100 << 20
"""The format's own bound."""
TENSORS_MAX: Final = 262_144
DIMENSIONS_MAX: Final = 8

_KINDS: Final = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that weights of a decoder have -> bytes."""


def safetensors_in(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises `LoadFailed` naming the file and what is wrong with it."""
    if not path.is_file():
        raise LoadFailed(f"{path}: no such file", hint="copy the whole folder of the model")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path}: cannot be read: {error}") from error
    table, body = _split(path, data)
    if len(table) > TENSORS_MAX:
        raise _wrong(path, f"{len(table)} tensors; {TENSORS_MAX} are allowed")
    return {name: _tensor(path, name, entry, body) for name, entry in table.items() if name != "__metadata__"}


def _split(path: Path, data: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, TABLE_BYTES_MAX):
        raise _wrong(path, f"a table of {length} bytes in a file of {len(data)}")
    try:
        table = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise _wrong(path, "its table is no JSON") from None
    if not isinstance(table, dict):
        raise _wrong(path, "its table is no object")
    return table, data[8 + length :]


def _tensor(path: Path, name: str, entry: Any, body: memoryview) -> StoredTensor:
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _wrong(path, f"tensor `{name[:100]}` lacks dtype, shape or data_offsets") from None
    if kind not in _KINDS:
        raise _wrong(
            path, f"tensor `{name[:100]}` is of type {str(kind)[:20]}; types that are read: {', '.join(_KINDS)}"
        )
    is_shape = isinstance(shape, list) and len(shape) <= DIMENSIONS_MAX and all(type(n) is int and n > 0 for n in shape)
    if not is_shape or type(start) is not int or type(end) is not int:
        raise _wrong(path, f"tensor `{name[:100]}` has shape {str(shape)[:100]} at {str((start, end))[:100]}")
    if not 0 <= start <= end <= len(body) or end - start != math.prod(shape) * _KINDS[kind]:
        raise _wrong(
            path, f"tensor `{name[:100]}` of {kind} {shape} at bytes {start} to {end}, with {len(body)} bytes of data"
        )
    return StoredTensor(kind, tuple(shape), body[start:end])


def _wrong(path: Path, reason: str) -> LoadFailed:
    return LoadFailed(
        f"{path}: not a sound safetensors file: {reason}",
        hint="fetch the file again, or compare its checksum with the publisher's",
    )
