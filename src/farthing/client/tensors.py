"""Arrays to the bytes of an inference request and back: the protocol's JSON form and its binary extension.

{ JSON: names, datatypes, shapes, sizes } input 0 input 1 ...      Inference-Header-Content-Length: JSON's bytes
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.requests import Parameter
from farthing.types.tensors import BYTES_LENGTH_PREFIX, DATATYPES, NUMPY_DTYPES, Tensor

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""Datatypes that the protocol's JSON form cannot carry."""


def encode_request(
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str],
    parameters: Mapping[str, Parameter],
    request_id: str,
    *,
    is_binary: bool,
) -> tuple[bytes, int | None]:
    """The body, and how many of its bytes are JSON when tensors follow them."""
    document: dict[str, Any] = {"id": request_id} if request_id else {}
    described: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for name, values in inputs.items():
        tensor, datatype = _as_tensor(name, values)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(tensor.shape)}
        if is_binary:
            tails.append(_to_bytes(tensor, datatype))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = _to_json(name, tensor, datatype)
        described.append(entry)
    document["inputs"] = described
    if outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": is_binary}} for name in outputs]
    elif is_binary:
        parameters = {**parameters, "binary_data_output": True}
    if parameters:
        document["parameters"] = dict(parameters)
    head = json.dumps(document, separators=(",", ":")).encode()
    return (b"".join((head, *tails)), len(head)) if is_binary else (head, None)


def decode_response(body: bytearray, json_bytes: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON document and the outputs. Raises `EngineFailed` if the server's answer is not what it should be."""
    try:
        head = memoryview(body)[: len(body) if json_bytes is None else json_bytes]
        document = json.loads(bytes(head))
        at, outputs = len(head), {}
        for described in document["outputs"]:
            shape = tuple(int(size) for size in described["shape"])
            size = described.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[described["name"]] = _from_json(described["data"], described["datatype"], shape)
            else:
                tail = memoryview(body)[at : at + int(size)]
                outputs[described["name"]] = _from_bytes(tail, described["datatype"], shape)
                at += int(size)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise EngineFailed(f"the server's answer is not in the protocol's form: {error!r}") from error
    return document, outputs


def _as_tensor(name: str, values: ArrayLike) -> tuple[Tensor, str]:
    tensor = np.asarray(values)
    if tensor.dtype.kind in "SUO":
        return tensor, "BYTES"
    if tensor.dtype.byteorder == ">":
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"))
    datatype = DATATYPES.get(tensor.dtype)
    if datatype is None:
        raise InvalidInput(
            f"input `{name}` is an array of {tensor.dtype}, which the protocol has no name for",
            hint=f"convert it to one of: {', '.join(NUMPY_DTYPES)}",
        )
    return tensor, datatype


def _to_bytes(tensor: Tensor, datatype: str) -> bytes:
    if datatype != "BYTES":
        return tensor.tobytes()
    pieces: list[bytes] = []
    for element in tensor.reshape(-1).tolist():
        encoded = element.encode() if isinstance(element, str) else bytes(element)
        pieces += (len(encoded).to_bytes(BYTES_LENGTH_PREFIX, "little"), encoded)
    return b"".join(pieces)


def _to_json(name: str, tensor: Tensor, datatype: str) -> list[Any]:
    if datatype in BINARY_ONLY:
        raise InvalidInput(
            f"input `{name}` is {datatype}, which JSON cannot carry", hint="use `infer`, which is binary"
        )
    flat: list[Any] = tensor.reshape(-1).tolist()
    if datatype == "BYTES":
        try:
            return [element if isinstance(element, str) else bytes(element).decode() for element in flat]
        except UnicodeDecodeError:
            raise InvalidInput(
                f"input `{name}` is not text, and JSON carries nothing else", hint="use `infer`"
            ) from None
    return flat


def _from_json(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Tensor:
    if datatype == "BYTES":
        flat = np.empty(math.prod(shape), object)
        flat[:] = [text.encode() for text in _flat(data)]
        return flat.reshape(shape)
    return np.array(data, NUMPY_DTYPES[datatype]).reshape(shape)


def _flat(data: list[Any]) -> list[str]:
    return [text for part in data for text in (_flat(part) if isinstance(part, list) else [part])]


def _from_bytes(tail: memoryview, datatype: str, shape: tuple[int, ...]) -> Tensor:
    if datatype != "BYTES":
        return np.frombuffer(tail, NUMPY_DTYPES[datatype]).reshape(shape)
    elements, at = [], 0
    while at < len(tail):
        length = int.from_bytes(tail[at : at + BYTES_LENGTH_PREFIX], "little")
        at += BYTES_LENGTH_PREFIX
        if at + length > len(tail):
            raise ValueError("a BYTES element is longer than its tensor")
        elements.append(bytes(tail[at : at + length]))
        at += length
    flat = np.empty(len(elements), object)
    flat[:] = elements
    return flat.reshape(shape)
