"""A curl line that calls a model: printed by `farthing serve`, and works when pasted into a shell."""

import json
import math
import shlex
from typing import Any, Final

from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec

INLINE_ELEMENTS_MAX: Final = 64
"""Inputs up to this many values are written out; larger ones are zeros from /dev/zero."""

FREE_DIMENSION: Final = 1


def curl_line(url: str, spec: ModelSpec) -> str:
    """One request with made-up values of the right names, datatypes and shapes."""
    sizes = {tensor.name: math.prod(_shape(tensor)) for tensor in spec.inputs}
    target = f"{url}/v2/models/{spec.name}/infer"
    if all(size <= INLINE_ELEMENTS_MAX for size in sizes.values()) and not _needs_bytes(spec):
        body = {"inputs": [_tensor(tensor, data=[_one(tensor)] * sizes[tensor.name]) for tensor in spec.inputs]}
        return f"curl -s {target} -d {shlex.quote(json.dumps(body))}"
    total = 0
    inputs = []
    for tensor in spec.inputs:
        size = sizes[tensor.name] * (4 if tensor.datatype == "BYTES" else tensor.dtype.itemsize)
        inputs.append(_tensor(tensor, parameters={"binary_data_size": size}))
        total += size
    header = json.dumps({"inputs": inputs})
    return (
        f"(printf %s {shlex.quote(header)}; head -c {total} /dev/zero) | curl -s {target} "
        f"-H 'Inference-Header-Content-Length: {len(header.encode())}' --data-binary @- | head -c 300"
    )


def chat_line(url: str, name: str) -> str:
    """A question to a language model, answered as a stream."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
        "max_tokens": 40,
        "stream": True,
    }
    return f"curl -sN {url}/v1/chat/completions -d {shlex.quote(json.dumps(body))}"


def stream_line(url: str, spec: ModelSpec) -> str:
    """One request to a decoupled model, answered as a stream."""
    body = {tensor.name: [_one(tensor)] * math.prod(_shape(tensor)) for tensor in spec.inputs}
    return f"curl -sN {url}/v2/models/{spec.name}/generate_stream -d {shlex.quote(json.dumps(body))}"


def _needs_bytes(spec: ModelSpec) -> bool:
    return any(tensor.datatype in ("FP16", "BF16") for tensor in spec.inputs)


def _shape(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(FREE_DIMENSION if size < 0 else size for size in tensor.shape)


def _tensor(tensor: TensorSpec, **more: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(_shape(tensor)), **more}


def _one(tensor: TensorSpec) -> Any:
    if tensor.datatype == "BYTES":
        return "1"
    return True if tensor.datatype == "BOOL" else 1
