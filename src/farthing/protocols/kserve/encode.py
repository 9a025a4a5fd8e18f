"""An `InferResponse` to the bytes of its answer.

What repeats from answer to answer (the model's name, each output's name, datatype and shape) is kept as JSON text,
so that writing an answer is joining three or four pieces.
"""

from typing import Any, Final

import msgspec
import numpy as np

from farthing.protocols.kserve.bytes_tensor import pack_bytes
from farthing.protocols.kserve.classification import check_classification, classify
from farthing.protocols.kserve.json_tensor import json_from_tensor
from farthing.protocols.memo import Memo
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Regions, RequestedOutput
from farthing.types.tensors import DATATYPES, Tensor, TensorSpec

JOIN_BYTES_MAX: Final = 64 << 10
"""Binary answers up to this size become one buffer: one copy costs less than more pieces to write to a socket."""

BINARY_ONLY: Final = frozenset(("FP16", "BF16"))
"""Datatypes that JSON does not carry (Open Inference Protocol, tensor data types)."""

_json: Final = msgspec.json.Encoder().encode

_model_heads: Final[Memo[tuple[str, str], bytes]] = Memo(1024)
"""`"model_name":"m","model_version":"1","outputs":[` by name and version."""

_output_heads: Final[Memo[tuple[str, np.dtype[np.generic], tuple[int, ...], bool], bytes]] = Memo(4096)
"""An output up to its values, by name, dtype, shape and whether they are binary. A model has few shapes a client
really uses; a client that uses a new one each time only pays for building it."""


def check_outputs(request: InferRequest, spec: ModelSpec) -> None:
    """Raises what `encode_infer` would raise whatever the tensors hold: call it before running the model.

    (FP16 or BF16 as JSON, classification of a BYTES output.) Output names must already be known to exist.
    """
    if not request.outputs:
        if not request.binary_output:
            for output in spec.outputs:
                if output.datatype in BINARY_ONLY:
                    raise _not_in_json(output.name, output.datatype)
        return
    for asked in request.outputs:
        if asked.classes:
            check_classification(output_spec(asked.name, spec))
        elif asked.part is None and not _is_binary(asked, request):
            output = output_spec(asked.name, spec)
            if output.datatype in BINARY_ONLY:
                raise _not_in_json(output.name, output.datatype)


def encode_infer(
    response: InferResponse, request: InferRequest, spec: ModelSpec, regions: Regions | None = None
) -> tuple[bytes | list[bytes | memoryview], int | None]:
    """The body, and how many of its bytes are JSON when tensors follow them (None: all of it is JSON).

    A list is to be written buffer by buffer: large tensors are not copied. With a length the content type is
    `application/octet-stream` and the length goes into `Inference-Header-Content-Length`.
    """
    named = (response.model_name, response.model_version)
    opening = _opening(response) if response.id or response.parameters else b"{"
    parts = [opening, _model_heads.get(named) or _model_heads.remember(named, _model_head(*named))]
    asked_by_name = {asked.name: asked for asked in request.outputs} if request.outputs else None
    buffers: list[bytes | memoryview] = []
    for name, tensor in response.outputs.items():
        shown, is_binary = tensor, request.binary_output
        if asked_by_name:
            asked = asked_by_name.get(name)
            if asked:
                if asked.part is not None and regions is not None:
                    regions.write(asked.part, tensor_bytes(name, tensor), f"output '{name}'")
                    parts += (_shared_head(name, tensor), b",")
                    continue
                is_binary = _is_binary(asked, request)
                if asked.classes:
                    shown = classify(tensor, asked.classes, output_spec(name, spec), is_batched=spec.batch_rows_max > 0)
        if is_binary:
            parts += (_binary_output(name, shown, buffers), b",")
        else:
            key = (name, shown.dtype, shown.shape, False)
            head = _output_heads.get(key) or _output_heads.remember(key, _json_head(name, shown))
            parts += (head, json_from_tensor(shown, name), b"}", b",")
    if response.outputs:
        parts[-1] = b"]}"  # in place of the last comma
    else:
        parts.append(b"]}")
    text = b"".join(parts)
    if not buffers:
        return text, None
    if sum(map(len, buffers)) <= JOIN_BYTES_MAX:
        return b"".join([text, *buffers]), len(text)
    return [text, *buffers], len(text)


def _binary_output(name: str, tensor: Tensor, buffers: list[bytes | memoryview]) -> bytes:
    """The JSON of a binary output; its bytes, if it has any, are added to `buffers`."""
    if tensor.dtype.kind == "O":
        packed = pack_bytes(tensor, name)
        if packed:
            buffers.append(packed)
        return _binary_head(name, tensor, len(packed))
    size = tensor.nbytes
    if size > JOIN_BYTES_MAX:
        # Not every dtype of ours has a buffer of its own (bfloat16); its bytes have.
        buffers.append(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    elif size:
        buffers.append(tensor.tobytes())
    key = (name, tensor.dtype, tensor.shape, True)
    return _output_heads.get(key) or _output_heads.remember(key, _binary_head(name, tensor, size))


def tensor_bytes(name: str, tensor: Tensor) -> bytes:
    """A tensor as it travels in binary."""
    return pack_bytes(tensor, name) if tensor.dtype.kind == "O" else tensor.tobytes()


def _shared_head(name: str, tensor: Tensor) -> bytes:
    """An output whose values are in shared memory."""
    return _json({"name": name, "datatype": datatype_named(name, tensor.dtype), "shape": tensor.shape})


def _opening(response: InferResponse) -> bytes:
    """What differs from answer to answer of one model."""
    opening = b"{"
    if response.id:
        opening += b'"id":' + _json(response.id) + b","
    if response.parameters:
        opening += b'"parameters":' + _json(response.parameters) + b","
    return opening


def _model_head(model_name: str, model_version: str) -> bytes:
    return _json({"model_name": model_name, "model_version": model_version})[1:-1] + b',"outputs":['


def _json_head(name: str, tensor: Tensor) -> bytes:
    datatype = datatype_named(name, tensor.dtype)
    if datatype in BINARY_ONLY:
        raise _not_in_json(name, datatype)
    return _json({"name": name, "datatype": datatype, "shape": tensor.shape})[:-1] + b',"data":'


def _binary_head(name: str, tensor: Tensor, size: int) -> bytes:
    output = {
        "name": name,
        "datatype": datatype_named(name, tensor.dtype),
        "shape": tensor.shape,
        "parameters": {"binary_data_size": size},
    }
    return _json(output)


def datatype_named(name: str, dtype: np.dtype[Any]) -> str:
    """The protocol's datatype of what a model made. `name` is the output's, for the error."""
    try:
        return DATATYPES[dtype]
    except KeyError:
        raise EngineFailed(
            f"output `{name}` is an array of {dtype}, which the protocol has no name for",
            hint=f"have the model return one of {', '.join(DATATYPES.values())}",
        ) from None


def _is_binary(asked: RequestedOutput, request: InferRequest) -> bool:
    # The text of the extension, not Triton's code: `binary_data_output` also covers outputs that are listed.
    return request.binary_output if asked.is_binary is None else asked.is_binary


def output_spec(name: str, spec: ModelSpec) -> TensorSpec:
    """One output of a model that has it."""
    return next(output for output in spec.outputs if output.name == name)


def _not_in_json(name: str, datatype: str) -> InvalidInput:
    return InvalidInput(
        f"output `{name}`: {datatype} cannot be written in JSON",
        hint='ask for it with "parameters": {"binary_data": true}, or "binary_data_output": true for all outputs',
    )
