"""BYTES tensors on the wire: each element's length in four little-endian bytes, then the element."""

from struct import Struct
from typing import Final

import numpy as np

from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import BYTES_LENGTH_PREFIX, Tensor

_LENGTH: Final = Struct("<I")


def unpack_bytes(data: bytes, shape: tuple[int, ...], elements: int, where: str) -> Tensor:
    """The tensor whose elements `data` holds, all of them and nothing else."""
    if elements * BYTES_LENGTH_PREFIX > len(data):
        raise InvalidInput(
            f"{where}: expected {elements} string elements, but {len(data)} bytes hold at most "
            f"{len(data) // BYTES_LENGTH_PREFIX}",
            hint="an element is its length in 4 little-endian bytes, then its bytes",
        )
    length_at = _LENGTH.unpack_from
    values: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        if len(values) == elements:
            raise InvalidInput(f"{where}: expected {elements} string elements, and {end - position} bytes follow them")
        start = position + BYTES_LENGTH_PREFIX
        if start > end:
            raise InvalidInput(
                f"{where}: incomplete length of string element {len(values)}: {end - position} bytes are left of 4"
            )
        position = start + length_at(data, position)[0]
        if position > end:
            raise InvalidInput(
                f"{where}: incomplete string element {len(values)}: its length says {position - start} bytes, "
                f"{end - start} are left"
            )
        values.append(data[start:position])
    if len(values) != elements:
        raise InvalidInput(f"{where}: expected {elements} string elements, got {len(values)}")
    return object_tensor(values, shape)


def pack_bytes(tensor: Tensor, name: str) -> bytes:
    """The wire form of a BYTES tensor that a model made. `name` is the output's, for the error."""
    parts: list[bytes] = []
    length = _LENGTH.pack
    for value in tensor.reshape(-1).tolist():
        if not isinstance(value, bytes):
            raise not_bytes(name, value)
        parts.append(length(len(value)))
        parts.append(value)
    return b"".join(parts)


def object_tensor(values: list[bytes], shape: tuple[int, ...]) -> Tensor:
    """An array of exactly these objects; `numpy.array` would guess at what is inside them."""
    tensor = np.empty(len(values), object)
    tensor[:] = values
    return tensor.reshape(shape)


def not_bytes(name: str, value: object) -> EngineFailed:
    """The error for a model whose BYTES output holds something else."""
    return EngineFailed(
        f"output `{name}` is BYTES and the model put a {type(value).__name__} into it",
        hint="have the model return an array of `bytes` objects",
    )
