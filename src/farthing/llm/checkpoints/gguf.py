"""GGUF files, versions 2 and 3: metadata and a table of tensors over a read-only map of the file.

    magic "GGUF" | version u32 | tensors u64 | entries u64 | entries | tensor table | padding | tensor data

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, length and offset is held
against the bytes that are there before anything is made of it, so a hostile file costs no more than its size and is
answered with `LoadFailed`. What the numbers in a block mean belongs to `gguf_blocks`, what the names mean to
`llm.architectures` and `llm.gguf_vocabulary`.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.types.errors import LoadFailed

VERSIONS: Final = (2, 3)
ENTRIES_MAX: Final = 65_536
"""Metadata entries a file may have; models have some tens."""
TENSORS_MAX: Final = 262_144
STRINGS_MAX: Final = 4_194_304
"""Strings one array may hold: sixteen times the largest vocabulary there is."""
NESTING_MAX: Final = 4
NAME_BYTES_MAX: Final = 1_024
DIMENSIONS_MAX: Final = 4
ALIGNMENT_DEFAULT: Final = 32
ALIGNMENT_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BlockKind:
    """How a tensor is stored: `elements` consecutive ones of a row share a block of `size_bytes`."""

    name: str
    elements: int
    size_bytes: int


KINDS: Final = {
    0: BlockKind("F32", 1, 4),
    1: BlockKind("F16", 1, 2),
    2: BlockKind("Q4_0", 32, 18),
    3: BlockKind("Q4_1", 32, 20),
    6: BlockKind("Q5_0", 32, 22),
    7: BlockKind("Q5_1", 32, 24),
    8: BlockKind("Q8_0", 32, 34),
    10: BlockKind("Q2_K", 256, 84),
    11: BlockKind("Q3_K", 256, 110),
    12: BlockKind("Q4_K", 256, 144),
    13: BlockKind("Q5_K", 256, 176),
    14: BlockKind("Q6_K", 256, 210),
    30: BlockKind("BF16", 1, 2),
}
"""Number in the file -> kind."""

KIND_NAMED: Final = {kind.name: kind for kind in KINDS.values()}

_SCALARS: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING: Final = 8
_ARRAY: Final = 9


class GgufFile:
    """A GGUF file, mapped. Raises `LoadFailed` naming the file and what is wrong with it.

    The file must not be cut short while it is mapped: the system answers reads past its end with a signal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as error:
            raise LoadFailed(f"{path}: cannot be read: {error}") from error
        self.data = memoryview(self._map)
        reader = _Reader(path, self._map, self.data)
        tensors, entries = reader.head()
        self.metadata = reader.metadata(entries)
        """Values as Python has them; arrays of numbers are numpy arrays, arrays of strings lists."""
        self.tensors = reader.table(tensors, self._alignment())
        self.header_bytes = reader.at
        """Where the table of tensors ends."""

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT_DEFAULT)
        if type(alignment) is not int or not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
            raise LoadFailed(f"{self.path}: general.alignment is {alignment!r}; a power of two is needed")
        return alignment


class _Reader:
    def __init__(self, path: Path, raw: mmap.mmap | bytes, data: memoryview) -> None:
        self._path = path
        self._raw = raw
        self._data = data
        self.at = 0

    def head(self) -> tuple[int, int]:
        """Number of tensors and of metadata entries."""
        if bytes(self._data[:4]) != b"GGUF":
            raise self._wrong("it does not begin with GGUF", at=0)
        self.at = 4
        version = self._u32()
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            which = f"big-endian, version {swapped}" if swapped in VERSIONS else f"version {version}"
            raise self._wrong(f"{which} of the format; versions 2 and 3, little-endian, are read")
        tensors, entries = self._u64(), self._u64()
        self._check_count("tensors", tensors, TENSORS_MAX, 33)  # a name of one byte, one dimension
        self._check_count("metadata entries", entries, ENTRIES_MAX, 13)
        return tensors, entries

    def metadata(self, entries: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(entries):
            key = self._name()
            if key in found:
                raise self._wrong(f"metadata `{key}` is given twice")
            found[key] = self._value(self._u32(), 0)
        return found

    def table(self, tensors: int, alignment: int) -> dict[str, StoredTensor]:
        rows = [(self._name(), self._shape(), self._u32(), self._u64()) for _ in range(tensors)]
        start = -(-self.at // alignment) * alignment
        found: dict[str, StoredTensor] = {}
        for name, shape, number, offset in rows:
            if name in found:
                raise self._wrong(f"tensor `{name}` is given twice")
            if number not in KINDS:
                known = ", ".join(kind.name for kind in KINDS.values())
                raise self._wrong(f"tensor `{name}` is of ggml type {number}; types that are read: {known}")
            kind = KINDS[number]
            if shape[-1] % kind.elements:
                raise self._wrong(f"tensor `{name}`: rows of {shape[-1]} do not divide into {kind.name} blocks")
            size = math.prod(shape) // kind.elements * kind.size_bytes
            if offset % alignment:
                raise self._wrong(f"tensor `{name}` begins at {offset}, which is no multiple of {alignment}")
            if start + offset + size > len(self._data):
                raise self._wrong(
                    f"tensor `{name}` ends at byte {start + offset + size}, the file at {len(self._data)}; "
                    f"the download may be incomplete"
                )
            found[name] = StoredTensor(kind.name, shape, self._data[start + offset : start + offset + size])
        return found

    def _value(self, kind: int, nesting: int) -> Any:
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1)[0].item()
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._wrong(f"no metadata value is of type {kind}")
        if nesting >= NESTING_MAX:
            raise self._wrong(f"arrays nested deeper than {NESTING_MAX}")
        inner, count = self._u32(), self._u64()
        if inner in _SCALARS:
            return self._numbers(_SCALARS[inner], count)
        if inner == _STRING:
            return self._strings(count)
        self._check_count("values in an array", count, STRINGS_MAX, 12)
        return [self._value(inner, nesting + 1) for _ in range(count)]

    def _numbers(self, dtype: np.dtype[Any], count: int) -> Any:
        start = self._take(dtype.itemsize * count)
        if dtype.kind == "b":  # other bytes than 0 and 1 are no bool that numpy knows
            return np.frombuffer(self._data, np.uint8, count, start) != 0
        return np.frombuffer(self._data, dtype, count, start)

    def _strings(self, count: int) -> list[str]:
        self._check_count("strings in an array", count, STRINGS_MAX, 8)
        raw, at, end = self._raw, self.at, len(self._data)
        unpack = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):  # a vocabulary and its merges: a hundred thousand times, so by hand
            if at + 8 > end:
                raise self._wrong("it ends in an array of strings", at=at)
            (length,) = unpack(raw, at)
            at += 8
            if length > end - at:
                raise self._wrong(f"a string of {length} bytes with {end - at} left", at=at)
            strings.append(raw[at : at + length].decode("utf-8", "replace"))
            at += length
        self.at = at
        return strings

    def _string(self) -> str:
        length = self._u64()
        start = self._take(length)
        return str(self._data[start : start + length], "utf-8", "replace")

    def _name(self) -> str:
        length = self._u64()
        if not 0 < length <= NAME_BYTES_MAX:
            raise self._wrong(f"a name of {length} bytes; 1 to {NAME_BYTES_MAX} are allowed")
        start = self._take(length)
        try:
            return str(self._data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self._wrong("a name that is not UTF-8", at=start) from None

    def _shape(self) -> tuple[int, ...]:
        """Outermost dimension first, as numpy says it; the file has it the other way round."""
        dimensions = self._u32()
        if not 0 < dimensions <= DIMENSIONS_MAX:
            raise self._wrong(f"a tensor of {dimensions} dimensions; 1 to {DIMENSIONS_MAX} are allowed")
        shape = tuple(self._u64() for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise self._wrong(f"a tensor without elements: {list(shape)}")
        return shape

    def _u32(self) -> int:
        return int.from_bytes(self._data[(start := self._take(4)) : start + 4], "little")

    def _u64(self) -> int:
        return int.from_bytes(self._data[(start := self._take(8)) : start + 8], "little")

    def _take(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start = self.at
        if size > len(self._data) - start:
            raise self._wrong(f"{size} bytes expected, {len(self._data) - start} are left")
        self.at = start + size
        return start

    def _check_count(self, what: str, count: int, most: int, each_bytes: int) -> None:
        if count > most:
            raise self._wrong(f"{count} {what}; {most} are allowed")
        if count * each_bytes > len(self._data) - self.at:
            raise self._wrong(f"{count} {what} with {len(self._data) - self.at} bytes left")

    def _wrong(self, reason: str, *, at: int | None = None) -> LoadFailed:
        return LoadFailed(
            f"{self._path}: not a sound GGUF file: {reason} (byte {self.at if at is None else at})",
            hint="fetch the file again, or compare its checksum with the publisher's",
        )
