"""Tensor values in JSON: an input's `data` to an array, an array to an output's `data`.

Numbers are read by a decoder made for their datatype, which checks every element's type while it reads, and packed
by `struct`, which checks its range: two to three times as fast as `numpy.array` on a list, at every size.
"""

from collections.abc import Callable
from itertools import chain
from math import isfinite, isnan
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from farthing.protocols.kserve.bytes_tensor import not_bytes, object_tensor
from farthing.protocols.kserve.limits import JSON_DEPTH_MAX
from farthing.types.errors import InvalidInput
from farthing.types.tensors import NUMPY_DTYPES, Tensor

_ELEMENTS: Final[dict[str, Any]] = {
    "BOOL": bool | int,  # 0 and 1 are accepted for false and true
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), int),
    "FP32": float,
    "FP64": float,
    "BYTES": str,
}
"""What an element of `data` must be. FP16 and BF16 are missing: they travel as binary tensors only."""

_PACKED_AS: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
PACKERS_MAX: Final = 1024
"""Tensors of up to that many elements are packed by a `Struct` kept for their size; making one takes as long as
packing some hundred elements."""

_SHOWN_MAX: Final = 80
"""Characters of a wrong value that an error shows."""


class _Reader:
    """Everything that reading one datatype's `data` needs, so that a request finds it with one look-up."""

    __slots__ = ("_decoders", "_element", "_packers", "datatype", "decode", "dtype")

    def __init__(self, datatype: str) -> None:
        self.datatype = datatype
        self.dtype = NUMPY_DTYPES[datatype]
        self._element = _ELEMENTS[datatype]
        self._decoders: dict[int, tuple[Any, msgspec.json.Decoder[Any]]] = {}
        self.decode: Callable[..., list[Any]] = self.of_depth(1)[1].decode
        self._packers: dict[int, Callable[..., bytes]] = {}

    def of_depth(self, depth: int) -> tuple[Any, msgspec.json.Decoder[Any]]:
        """The type of `data` nested that deep, and its decoder; at most `JSON_DEPTH_MAX` of them are ever made."""
        known = self._decoders.get(depth)
        if known is None:
            nested: Any = self._element
            for _ in range(depth):
                nested = list[nested]
            known = self._decoders[depth] = (nested, msgspec.json.Decoder(nested))
        return known

    def packer(self, elements: int) -> Callable[..., bytes]:
        pack = self._packers.get(elements)
        if pack is None:
            pack = Struct(f"<{elements}{_PACKED_AS[self.datatype]}").pack
            if elements <= PACKERS_MAX:
                self._packers[elements] = pack
        return pack


_READERS: Final = {datatype: _Reader(datatype) for datatype in _ELEMENTS}


def tensor_from_json(
    data: msgspec.Raw | list[Any], datatype: str, shape: tuple[int, ...], elements: int, index: int
) -> Tensor:
    """The array that `data` (JSON text, or what a parser made of it) stands for, flat or nested, row by row.

    `index` says which of the inputs it is, for errors.
    """
    reader = _READERS.get(datatype)
    if reader is None:
        raise InvalidInput(
            f"inputs[{index}].data: {datatype} cannot be written in JSON",
            hint="send it as a binary tensor: `binary_data_size` and the header Inference-Header-Content-Length",
        )
    try:
        text = bytes(data) if type(data) is msgspec.Raw else None
        is_flat = text is not None and text[1:2] != b"["
        values = reader.decode(text) if is_flat else _nested(data, reader, index)
    except (msgspec.ValidationError, UnicodeDecodeError):
        values = _nested(data, reader, index)  # which says what is wrong, or finds white space and no fault
    if len(values) != elements:
        raise InvalidInput(
            f"inputs[{index}].data: {len(values)} elements do not fill shape {list(shape)}, which has {elements}"
        )
    if datatype == "BYTES":
        return object_tensor([value.encode() for value in values], shape)
    if datatype == "BOOL":
        _check_bools(values, index)
    try:
        return np.ndarray(shape, reader.dtype, reader.packer(elements)(*values))
    except (StructError, OverflowError):
        raise _out_of_range(values, reader, index) from None


def _nested(data: msgspec.Raw | list[Any], reader: _Reader, index: int) -> list[Any]:
    """The elements of `data` that is no flat list of the right things: nested, or wrong."""
    depth = _depth(data)
    if depth > JSON_DEPTH_MAX:
        raise InvalidInput(f"inputs[{index}].data: arrays are nested {depth} deep; the limit is {JSON_DEPTH_MAX}")
    kind, decoder = reader.of_depth(max(depth, 1))
    try:
        values = decoder.decode(data) if type(data) is msgspec.Raw else msgspec.convert(data, kind)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        detail = str(error).replace("`$", "`data")
        raise InvalidInput(
            f"inputs[{index}].data: {detail}; {reader.datatype} takes a flat or evenly nested array of "
            f"{_element_name(reader.datatype)}"
        ) from None
    for _ in range(depth - 1):
        if len(values) == 1:
            values = values[0]
            continue
        if len(set(map(len, values))) > 1:
            raise InvalidInput(
                f"inputs[{index}].data: nested arrays of different lengths are no tensor",
                hint="pad the rows to one length, or send one request per row",
            )
        values = list(chain.from_iterable(values))
    return values  # type: ignore[no-any-return]


def _depth(data: msgspec.Raw | list[Any]) -> int:
    """How many arrays open before the first element."""
    if type(data) is msgspec.Raw:
        text = bytes(data)
        return text.count(b"[", 0, len(text) - len(text.lstrip(b"[ \t\r\n")))
    depth = 0
    inner: Any = data
    while type(inner) is list:
        depth += 1
        inner = inner[0] if inner else None
    return depth


def _element_name(datatype: str) -> str:
    if datatype == "BYTES":
        return "strings"
    if datatype == "BOOL":
        return "true and false (or 1 and 0)"
    return "numbers" if datatype.startswith("FP") else "integers"


def _check_bools(values: list[Any], index: int) -> None:
    for place, value in enumerate(values):
        if value is not True and value is not False and value not in (0, 1):
            raise InvalidInput(
                f"inputs[{index}].data: element {place} is {_shown(value)}; BOOL takes true and false (or 1 and 0)"
            )


def _out_of_range(values: list[Any], reader: _Reader, index: int) -> InvalidInput:
    """Which element it was: the checks that fail are all of one kind, so the slow search is done only now."""
    dtype = reader.dtype
    low: float
    high: float
    if dtype.kind == "f":
        high = float(np.finfo(dtype).max)
        low, hint = -high, "bare Infinity and -Infinity are accepted"
    else:
        low, high, hint = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), ""
    for place, value in enumerate(values):
        if isfinite(value) and not low <= value <= high:
            return InvalidInput(
                f"inputs[{index}].data: element {place} is {_shown(value)}; {reader.datatype} holds {low} to {high}",
                hint=hint,
            )
    return InvalidInput(f"inputs[{index}].data: an element does not fit {reader.datatype}", hint=hint)


def _shown(value: object) -> str:
    # Python refuses to print integers of thousands of digits; such a number can only be named by its size.
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


_AS_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


def json_from_tensor(tensor: Tensor, name: str) -> bytes:
    """The flat JSON array of an output's values, with bare NaN, Infinity and -Infinity where there are any."""
    flat = tensor.ravel()
    try:
        text = orjson.dumps(flat, option=_AS_NUMPY)
    except orjson.JSONEncodeError:
        return _json_from_strings(tensor, name)
    # orjson writes null for what JSON lacks; no other text made of numbers or booleans has an "n" in it.
    if b"n" in text:
        odd = flat[~np.isfinite(flat)].tolist()
        pieces = text.split(b"null")
        tokens = [b"NaN" if isnan(value) else b"Infinity" if value > 0 else b"-Infinity" for value in odd]
        return b"".join(chain.from_iterable(zip(pieces, [*tokens, b""], strict=True)))
    return text


def _json_from_strings(tensor: Tensor, name: str) -> bytes:
    values = tensor.reshape(-1).tolist()
    try:
        return orjson.dumps([value.decode() for value in values])
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output `{name}`: an element is not UTF-8 ({error.reason}) and cannot be written in JSON",
            hint='ask for this output with "parameters": {"binary_data": true}',
        ) from None
    except AttributeError:
        wrong = next(value for value in values if type(value) is not bytes)
        raise not_bytes(name, wrong) from None
