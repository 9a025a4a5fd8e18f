"""An input's values, from raw bytes or from the typed list of its datatype."""

from typing import Any, Final

import numpy as np

from farthing.protocols.kserve.binary import tensor_from_bytes
from farthing.protocols.kserve.bytes_tensor import object_tensor
from farthing.protocols.kserve.shapes import ITEM_BYTES
from farthing.types.errors import InvalidInput
from farthing.types.tensors import NUMPY_DTYPES, Tensor

TYPED_FIELDS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> field of `InferTensorContents`. FP16 and BF16 have none."""

NARROWER: Final = frozenset(("UINT8", "UINT16", "INT8", "INT16"))
"""Datatypes whose field holds wider numbers than they do."""


def raw_tensor(raw: bytes, name: str, datatype: str, shape: tuple[int, ...], elements: int, where: str) -> Tensor:
    """The tensor whose bytes are one entry of `raw_input_contents`."""
    needed = elements * ITEM_BYTES[datatype]
    if len(raw) != needed and datatype != "BYTES":
        raise InvalidInput(
            f"{where}: input byte size mismatch for input '{name}'. Expected {needed}, got {len(raw)}",
            hint="an entry of `raw_input_contents` has the bytes of one element for each element of `shape`",
        )
    return tensor_from_bytes(raw, 0, len(raw), datatype, shape, elements, where)


def typed_tensor(contents: Any, name: str, datatype: str, shape: tuple[int, ...], elements: int, where: str) -> Tensor:
    """The tensor whose elements are in `contents`."""
    field = TYPED_FIELDS.get(datatype)
    if field is None:
        raise InvalidInput(
            f"{where}.contents: {datatype} has no typed contents", hint="send it in `raw_input_contents`"
        )
    for filled, _ in contents.ListFields():
        if filled.name != field:
            raise InvalidInput(
                f"{where}.contents: `{filled.name}` is filled, but input '{name}' is {datatype}",
                hint=f"{datatype} belongs in `{field}`",
            )
    values = getattr(contents, field)
    if len(values) != elements:
        raise InvalidInput(
            f"{where}: input '{name}' has shape {list(shape)}, which is {elements} elements, and `{field}` has "
            f"{len(values)}"
        )
    if datatype == "BYTES":
        return object_tensor(list(values), shape)
    dtype = NUMPY_DTYPES[datatype]
    if datatype in NARROWER:
        return _narrowed(np.array(values, np.int64), dtype, datatype, where).reshape(shape)
    return np.array(values, dtype).reshape(shape)


def _narrowed(values: Tensor, dtype: np.dtype[Any], datatype: str, where: str) -> Tensor:
    bounds = np.iinfo(dtype)
    if values.size and not (bounds.min <= values.min() and values.max() <= bounds.max):
        wrong = values[(values < bounds.min) | (values > bounds.max)][0]
        raise InvalidInput(f"{where}.contents: {wrong} does not fit {datatype}, which is {bounds.min} to {bounds.max}")
    return values.astype(dtype)
