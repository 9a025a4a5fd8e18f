"""How many elements and bytes a declared shape stands for, checked before anything is allocated."""

from math import prod
from typing import Final

from farthing.protocols.kserve.limits import WireLimits
from farthing.types.errors import InvalidInput, TooLarge
from farthing.types.tensors import BYTES_LENGTH_PREFIX, NUMPY_DTYPES

INT64_MAX: Final = (1 << 63) - 1

ITEM_BYTES: Final = {
    name: BYTES_LENGTH_PREFIX if name == "BYTES" else dtype.itemsize for name, dtype in NUMPY_DTYPES.items()
}
"""Bytes an element takes on the wire; for BYTES the least it can take."""


def elements_of(shape: tuple[int, ...], datatype: str, index: int, limits: WireLimits) -> int:
    """The number of elements, after checking the datatype's name and the bytes they imply."""
    item_bytes = ITEM_BYTES.get(datatype)
    if item_bytes is None:
        raise InvalidInput(
            f"inputs[{index}].datatype: `{datatype}` is not a datatype; datatypes: {', '.join(ITEM_BYTES)}",
            hint="`TYPE_STRING` of a model configuration is BYTES on the wire, `TYPE_FP32` is FP32, and so on",
        )
    elements = prod(shape)
    # A zero makes the product zero whatever stands beside it; numpy multiplies without it and so do we.
    size = (elements or prod(dim for dim in shape if dim)) * item_bytes
    if size <= limits.body_bytes_max:
        return elements
    if size > INT64_MAX:
        raise TooLarge(
            f"inputs[{index}].shape: {_short(shape)} of {datatype} would exceed maximum size of {INT64_MAX} bytes "
            "(byte size overflow)",
            hint="send the shape of the data that is in the request",
        )
    raise TooLarge(
        f"inputs[{index}].shape: {_short(shape)} of {datatype} is {size} bytes, which exceeds the maximum allowed "
        f"input size of {limits.body_bytes_max} bytes",
        hint="send fewer rows a request, or raise the server's limit on request bodies",
    )


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape[:8]))[:200] + ("..." if len(shape) > 8 else "")
