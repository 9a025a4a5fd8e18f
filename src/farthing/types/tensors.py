"""Tensors and their data types, by the names of the Open Inference Protocol.

A tensor is a C-contiguous, little-endian `numpy.ndarray`. BYTES tensors are arrays of `object` holding `bytes`;
BF16 uses `ml_dtypes.bfloat16`. What a model expects of one is a `TensorSpec`.
"""

import math
from typing import Any, Final

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Datatype name -> numpy dtype; the protocol's whole list (Open Inference Protocol, "Tensor Data Types")."""

DATATYPES: Final[dict[np.dtype[Any], str]] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

BYTES_LENGTH_PREFIX: Final = 4
"""Bytes of the little-endian length before each element of a BYTES tensor on the wire."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Name, datatype and shape of an input or output; -1 is any size. `shape` includes the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False
    labels: tuple[str, ...] = ()
    """Class names by index, for the classification extension (outputs only)."""
    allows_ragged: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return NUMPY_DTYPES[self.datatype]

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row (the shape after the first dimension); None if not fixed or BYTES."""
        tail = self.shape[1:]
        if self.datatype == "BYTES" or any(d < 0 for d in tail):
            return None
        return math.prod(tail) * self.dtype.itemsize


def datatype_of(tensor: Tensor) -> str:
    """The protocol's name of an array's dtype. Raises `KeyError` for a dtype the protocol lacks."""
    return DATATYPES[tensor.dtype]


def shape_fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a concrete shape satisfies one with -1 for "any"."""
    if shape == expected:
        return True
    return len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))
