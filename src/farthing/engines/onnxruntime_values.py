"""Values that ONNX Runtime's Python interface does not take as they are: BF16 and text.

Each wrapper has the signature of the session's own `run`, so that models without such tensors pay nothing for them.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import Tensor

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""ONNX Runtime's type names -> the protocol's."""

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

BFLOAT16_IN_ONNX: Final = 16
"""`TensorProto.DataType.BFLOAT16`."""

Run = Callable[[Sequence[str], Mapping[str, Tensor], Any], list[Tensor]]
"""Output names, inputs, run options -> outputs."""


def running_bfloat16(session: Any) -> Run:
    """Runs a session with BF16 tensors: numpy cannot name their type to ONNX Runtime, so their bits travel."""
    from onnxruntime import OrtValue

    def run(names: Sequence[str], inputs: Mapping[str, Tensor], options: Any) -> list[Tensor]:
        # Values borrow the arrays' memory; `inputs` keeps it alive until the run is over.
        values = {
            name: OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(np.uint16), BFLOAT16_IN_ONNX)
            if tensor.dtype == BFLOAT16
            else OrtValue.ortvalue_from_numpy(tensor)
            for name, tensor in inputs.items()
        }
        return [_taken_out(value) for value in session.run_with_ort_values(names, values, options)]

    return run


def _taken_out(value: Any) -> Tensor:
    if value.data_type() != "tensor(bfloat16)":
        array: Tensor = value.numpy()
        return array
    copy = np.empty(value.shape(), BFLOAT16)
    ctypes.memmove(copy.ctypes.data, value.data_ptr(), copy.nbytes)
    return copy


def running_text(run: Run) -> Run:
    """Runs with BYTES tensors, which inside ONNX Runtime are text: UTF-8 there, bytes outside."""

    def run_text(names: Sequence[str], inputs: Mapping[str, Tensor], options: Any) -> list[Tensor]:
        texts = {n: _decoded(n, tensor) if tensor.dtype.hasobject else tensor for n, tensor in inputs.items()}
        try:
            values = run(names, texts, options)
        except UnicodeDecodeError as error:
            raise EngineFailed("the model made text that is not UTF-8, and ONNX Runtime hands out no other") from error
        return [_encoded(tensor) if tensor.dtype.hasobject else tensor for tensor in values]

    return run_text


def _decoded(name: str, tensor: Tensor) -> Tensor:
    texts = np.empty(tensor.shape, object)
    flat = texts.reshape(-1)  # a view: `texts` is contiguous
    for i, value in enumerate(tensor.flat):
        try:
            flat[i] = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"input `{name}`, element {i}: byte {error.start} is not UTF-8, and text is all that ONNX models take",
                hint="send text in UTF-8; encode other bytes (base64, say) in a way the model understands",
            ) from error
    return texts


def _encoded(tensor: Tensor) -> Tensor:
    values = np.empty(tensor.shape, object)
    flat = values.reshape(-1)
    for i, text in enumerate(tensor.flat):
        flat[i] = text.encode()
    return values
