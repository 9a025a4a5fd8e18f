"""Universal Binary JSON, as XGBoost writes it (`.ubj`): bytes in, plain Python values out.

Typed arrays are read whole by numpy; all else value by value. Nothing is allocated on the word of a length that
the remaining bytes do not bear out, and nesting is limited, so a hostile file costs no more than its size. The
library there is for this (`py-ubjson`) checks neither.
"""

import struct
from typing import Any, Final

import numpy as np

from farthing.engines.trees.forest import BadModel

NESTING_MAX: Final = 64

_INTEGERS: Final = {b"i": "b", b"U": "B", b"I": "h", b"l": "i", b"L": "q"}
_NUMBERS: Final = {marker: np.dtype(f">{code}") for marker, code in {**_INTEGERS, b"d": "f4", b"D": "f8"}.items()}
_CONSTANTS: Final = {b"Z": None, b"T": True, b"F": False}


def parse_ubjson(raw: bytes) -> object:
    """The value of a UBJSON document. Raises `BadModel` naming the byte where it stops making sense."""
    reader = _Reader(raw)
    value = reader.value(reader.take(1), 0)
    if reader.at != len(raw):
        raise BadModel(f"{len(raw) - reader.at} bytes after the end of the document")
    return value


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._raw):
            raise BadModel(f"byte {self.at}: {size} bytes expected, {len(self._raw) - self.at} are left")
        piece = self._raw[self.at : end]
        self.at = end
        return piece

    def value(self, marker: bytes, nesting: int) -> Any:
        if nesting > NESTING_MAX:
            raise BadModel(f"byte {self.at}: nested deeper than {NESTING_MAX}")
        if marker in _NUMBERS:
            return np.frombuffer(self.take(_NUMBERS[marker].itemsize), _NUMBERS[marker])[0].item()
        if marker == b"S":
            return self._string()
        if marker == b"{":
            return self._object(nesting)
        if marker == b"[":
            return self._array(nesting)
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker == b"C":
            return self.take(1).decode("ascii", "replace")
        raise BadModel(f"byte {self.at - 1}: no value begins with {marker!r}")

    def _marker(self) -> bytes:
        """The next marker that is not a no-op."""
        while (marker := self.take(1)) == b"N":
            pass
        return marker

    def _length(self) -> int:
        marker = self.take(1)
        if marker not in _INTEGERS:
            raise BadModel(f"byte {self.at - 1}: a length begins with one of i U I l L, not {marker!r}")
        code = _INTEGERS[marker]
        length: int = struct.unpack(f">{code}", self.take(struct.calcsize(f">{code}")))[0]
        if not 0 <= length <= len(self._raw) - self.at:
            raise BadModel(f"byte {self.at}: a length of {length} with {len(self._raw) - self.at} bytes left")
        return length

    def _string(self) -> str:
        return self.take(self._length()).decode("utf-8", "replace")

    def _container_head(self) -> tuple[bytes, bytes | None, int | None]:
        """The first marker after the head, the elements' type and their number, where these are given."""
        kind, count = None, None
        marker = self._marker()
        if marker == b"$":
            kind = self.take(1)
            marker = self._marker()
            if marker != b"#":
                raise BadModel(f"byte {self.at - 1}: a type without a count")
        if marker == b"#":
            count = self._length()
            marker = b""
        return marker, kind, count

    def _array(self, nesting: int) -> list[Any]:
        marker, kind, count = self._container_head()
        if kind in _NUMBERS and count is not None:
            dtype = _NUMBERS[kind]
            numbers: list[Any] = np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()
            return numbers
        self._refuse_weightless(kind)
        items: list[Any] = []
        if count is not None:
            for _ in range(count):
                items.append(self.value(kind or self._marker(), nesting + 1))  # noqa: PERF401
            return items
        while marker != b"]":
            items.append(self.value(marker, nesting + 1))
            marker = self._marker()
        return items

    def _object(self, nesting: int) -> dict[str, Any]:
        marker, kind, count = self._container_head()
        self._refuse_weightless(kind)
        fields: dict[str, Any] = {}
        if count is not None:
            for _ in range(count):
                key = self._string()
                fields[key] = self.value(kind or self._marker(), nesting + 1)
            return fields
        while marker != b"}":
            self.at -= 1  # the marker begins the key's length
            key = self._string()
            fields[key] = self.value(self._marker(), nesting + 1)
            marker = self._marker()
        return fields

    def _refuse_weightless(self, kind: bytes | None) -> None:
        """Elements of no bytes: a count alone could then ask for any amount of memory."""
        if kind in _CONSTANTS or kind == b"N":
            raise BadModel(f"byte {self.at}: a container of {kind!r}, which takes no bytes")
