"""One request as bytes, and an answer's bytes as arrays: KServe v2, JSON and binary.

Every server gets these same bytes. It is written apart from `farthing.protocols` on purpose: a benchmark that
checks answers with the code under test checks nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models import Model

DATATYPES: Final = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}
DTYPES: Final = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST that the load generator repeats without end."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def _numbers(array: NDArray[Any]) -> list[Any]:
    """Flat numbers; float32 in the fewest digits that read back the same (`0.1234`, not `0.12340000271797180`)."""
    if array.dtype == np.float32:
        return [float(np.format_float_positional(v, unique=True)) for v in array.ravel()]
    flat: list[Any] = array.ravel().tolist()
    return flat


def encode(model: Model, wire: str) -> Request:
    """The model's row as a request; `wire` is "json" or "binary"."""
    path = f"/v2/models/{model.name}/infer"
    tensors: list[dict[str, Any]] = [
        {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        for name, array in model.row.items()
    ]
    if wire == "json":
        inputs = [{**t, "data": _numbers(model.row[t["name"]])} for t in tensors]
        body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
        return Request(path=path, body=body, headers={"Content-Type": "application/json"})
    inputs = [{**t, "parameters": {"binary_data_size": model.row[t["name"]].nbytes}} for t in tensors]
    document = {"parameters": {"binary_data_output": True}, "inputs": inputs}
    head = json.dumps(document, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    body = head + b"".join(array.tobytes() for array in model.row.values())
    return Request(path=path, body=body, headers=headers)


def decode(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """Output name -> array. Raises `ValueError` or `KeyError` for what is no KServe v2 answer."""
    head_length = int(headers.get(HEADER_LENGTH, len(body)))
    document, at, arrays = json.loads(body[:head_length]), head_length, {}
    for output in document["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        dtype = DTYPES[output["datatype"]]
        if size is None:
            array = np.array(output["data"], dtype)
        else:
            array = np.frombuffer(body[at : at + size], dtype)
            at += size
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays
