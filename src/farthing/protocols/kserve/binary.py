"""The binary tensor data extension: where JSON ends, and bytes to tensors."""

from typing import Final

import numpy as np

from farthing.protocols.kserve.bytes_tensor import object_tensor, unpack_bytes
from farthing.types.errors import InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest
from farthing.types.tensors import NUMPY_DTYPES, Tensor

INT32_MAX: Final = (1 << 31) - 1

VIEW_BYTES_MIN: Final = 4096
"""Tensors smaller than this are copied out of the body: that is quicker than asking whether they are aligned, and
it lets go of the body."""

_UINT8: Final = NUMPY_DTYPES["UINT8"]


def parse_header_length(value: bytes | str, body_bytes: int) -> int:
    """The value of `Inference-Header-Content-Length`, for a (decompressed) body of that many bytes.

    Raises `InvalidInput` unless it is plain decimal digits, fits int32 and lies within the body.
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    shown = text if len(text) <= 40 else text[:40] + "..."
    if not (text.isascii() and text.isdigit()):
        raise InvalidInput(f"Inference-Header-Content-Length: `{shown}` is not a whole number of bytes")
    length = int(text) if len(text) <= 40 else INT32_MAX + 1
    if length > INT32_MAX:
        raise InvalidInput(f"Inference-Header-Content-Length: {shown} is over {INT32_MAX}")
    if length > body_bytes:
        raise InvalidInput(
            f"Inference-Header-Content-Length: {length} bytes of JSON announced, the body has {body_bytes}"
        )
    return length


def tensor_from_bytes(
    body: bytes | memoryview, start: int, size: int, datatype: str, shape: tuple[int, ...], elements: int, where: str
) -> Tensor:
    """The tensor at `body[start:start + size]`, whose size has been checked. Large ones are views, so read-only."""
    if datatype == "BYTES":
        return unpack_bytes(bytes(body[start : start + size]), shape, elements, where)
    if datatype == "BOOL":
        # Any non-zero byte is true on the wire; a numpy bool holding anything but 0 and 1 misbehaves later.
        is_true: Tensor = np.ndarray(shape, _UINT8, body, start) != 0
        return is_true
    dtype = NUMPY_DTYPES[datatype]
    if size < VIEW_BYTES_MIN:
        return np.ndarray(shape, dtype, bytes(body[start : start + size]))
    tensor: Tensor = np.ndarray(shape, dtype, body, start)
    # JSON of any length stands before the tensors, so most of them lie askew. numpy reads them all the same; ONNX
    # Runtime is given the address as it is, and its kernels may assume that elements lie on their own boundaries.
    return tensor if tensor.flags.aligned else tensor.copy()


def raw_binary_request(
    body: bytes | memoryview, *, model_name: str, model_version: str, spec: ModelSpec
) -> InferRequest:
    """A request that is nothing but one tensor's bytes: a batch of one, answered in binary."""
    if len(spec.inputs) != 1:
        raise InvalidInput(
            f"model `{spec.name}` has {len(spec.inputs)} inputs; raw binary request needs exactly one",
            hint="send JSON that names the inputs and put its length into Inference-Header-Content-Length",
        )
    wanted = spec.inputs[0]
    shape = list(wanted.shape)
    if spec.batch_rows_max > 0:
        shape[0] = 1
    free = [axis for axis, dim in enumerate(shape) if dim < 0]
    fixed = 1
    for dim in shape:
        fixed *= dim if dim >= 0 else 1
    if len(free) > 1:
        raise InvalidInput(
            f"input `{wanted.name}` has shape {list(wanted.shape)}; raw binary request allows at most one variable "
            "dimension, for the others cannot be known",
            hint="send JSON with the shape, followed by the tensor",
        )
    if wanted.datatype == "BYTES":
        if fixed != 1:
            raise InvalidInput(
                f"input `{wanted.name}` has {fixed} string elements; raw binary request can carry one",
                hint="send JSON with the shape, followed by the tensor",
            )
        tensor = object_tensor([bytes(body)], tuple(1 if dim < 0 else dim for dim in shape))
    else:
        row_bytes = fixed * wanted.dtype.itemsize
        if free and row_bytes and len(body) % row_bytes == 0:
            shape[free[0]] = len(body) // row_bytes
        elif free or len(body) != row_bytes:
            raise InvalidInput(
                f"input byte size mismatch for input '{wanted.name}' for model '{spec.name}'. Expected "
                f"{'a multiple of ' if free else ''}{row_bytes}, got {len(body)}"
            )
        elements = len(body) // wanted.dtype.itemsize
        tensor = tensor_from_bytes(
            body, 0, len(body), wanted.datatype, tuple(shape), elements, f"input `{wanted.name}`"
        )
    return InferRequest(
        model_name=model_name, model_version=model_version, inputs={wanted.name: tensor}, binary_output=True
    )
