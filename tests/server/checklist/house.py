"""One server with real models, asked the same over HTTP and gRPC: what the rows of the checklist are tried on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, Literal

import grpc
import numpy as np
from tests.models import identity, running_sum, save
from tests.server.test_grpc import Client
from tests.serving import Live, small_repository

from farthing.protocols.kserve_grpc import message_class

WireName = Literal["http", "grpc"]
WIRES: Final[tuple[WireName, ...]] = ("http", "grpc")

HTTP_OF: Final = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "ALREADY_EXISTS": 400,
    "UNKNOWN": 400,
    "CANCELLED": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}
"""T5 and T6: a gRPC status and the HTTP status of the same kind."""

TYPED: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
NUMPY: Final = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}

SEQUENCE = """
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 16 }
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""
SCORES = """
max_batch_size: 8
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" } ]
"""
MIRROR = """
    from farthing import Tensor

    class Mirror:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]

        def infer(self, inputs, requests):
            for request in requests:
                request.response_parameters.update(request.parameters)
            if inputs["x"][0, 0] < 0:
                raise ValueError("minus is not for me")
            return {"y": inputs["x"]}
"""
OPTIONAL = """
    from farthing import Tensor

    class Optional:
        inputs = [Tensor("x", "FP32", [-1, 2]), Tensor("scale", "FP32", [-1, 2], optional=True)]
        outputs = [Tensor("y", "FP32", [-1, 2])]

        def infer(self, inputs):
            return {"y": inputs["x"] * inputs.get("scale", 1)}
"""


def build(folder: Path) -> Path:
    """A repository with a model for everything the checklist asks of one."""
    small_repository(folder)
    for datatype in (*NUMPY, "BYTES"):
        save(folder / f"of_{datatype}", identity(datatype))
    save(folder / "text", identity("BYTES", ("batch", 1)))
    save(folder / "wide", identity(shape=("batch", "width")))
    _write_python(folder / "optional", OPTIONAL)
    save(folder / "scores", identity(shape=("batch", 4)))
    (folder / "scores" / "config.pbtxt").write_text(SCORES)
    (folder / "scores" / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    save(folder / "sum", running_sum())
    (folder / "sum" / "config.pbtxt").write_text(SEQUENCE)
    save(folder / "single", identity(shape=(2,)))
    save(folder / "small_batches", identity())
    (folder / "small_batches" / "config.pbtxt").write_text("max_batch_size: 2")
    for version in ("1", "2"):
        save(folder / "twice", identity())
        (folder / "twice" / "1").rename(folder / "twice" / f"v{version}")
    for version in ("1", "2"):
        (folder / "twice" / f"v{version}").rename(folder / "twice" / version)
    (folder / "twice" / "config.pbtxt").write_text("version_policy { all {} }")
    _write_python(folder / "mirror", MIRROR)
    save(folder / "spare", identity())
    return folder


def _write_python(folder: Path, text: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(dedent(text))


def tensor(values: Any, name: str = "x", datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    """An input: `data` is flat, `shape` that of `values` unless told otherwise."""
    array = np.array(values, dtype=object)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist(), **more}


@dataclass
class Said:
    """An answer of either protocol, or the error it was."""

    http: int = 0
    """The status; 0 over gRPC."""
    code: str = ""
    """The name of the gRPC status; empty over HTTP."""
    text: str = ""
    """Words of an error, up to the hint."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Names, version, id, `parameters`, and `outputs` by name, as their flat values."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def must_be(self, code: str, words: str = "", http: int = 0) -> None:
        """Is it this status, by gRPC's name or HTTP's number, with these words?"""
        found = f"{self.http} {self.code} {self.text!r}"
        if self.code:
            assert self.code == code, found
        else:
            assert self.http == (http or HTTP_OF[code]), found
        assert words in self.text, found


class House:
    """The server, and a client of it over each protocol."""

    def __init__(self, live: Live, client: Client) -> None:
        self.live = live
        self.client = client

    def infer(
        self,
        wire: WireName,
        model: str,
        *inputs: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]] = (),
        parameters: Mapping[str, Any] | None = None,
        id: str = "",
        version: str = "",
    ) -> Said:
        """Asks a model, in JSON or with typed contents."""
        if wire == "http":
            body: dict[str, Any] = {"inputs": list(inputs)}
            if outputs:
                body["outputs"] = list(outputs)
            if parameters:
                body["parameters"] = parameters
            if id:
                body["id"] = id
            return self.post_infer(model, json.dumps(body).encode(), version=version)
        request = message_class("ModelInferRequest")(model_name=model, model_version=version, id=id)
        _put(request.parameters, parameters or {})
        for one in inputs:
            item = request.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
            _put(item.parameters, one.get("parameters", {}))
            values = one.get("data", [])
            if one["datatype"] == "BYTES":
                values = [value.encode() if isinstance(value, str) else value for value in values]
            if values:  # else even that there are contents would be said
                getattr(item.contents, TYPED[one["datatype"]]).extend(values)
        for wanted in outputs:
            _put(request.outputs.add(name=wanted["name"]).parameters, wanted.get("parameters", {}))
        return self.call_infer(request)

    def post_infer(self, model: str, body: bytes, headers: Mapping[str, str] = {}, version: str = "") -> Said:
        """Posts a body of one's own."""
        path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
        reply = self.live.post(path, body, headers)
        if reply.status != 200:
            return Said(http=reply.status, text=reply.error, headers=reply.headers)
        if reply.headers["content-type"] != "application/json":
            return Said(http=200, headers=reply.headers)
        told = reply.json
        outputs = {one["name"]: one.get("data") for one in told["outputs"]}
        return Said(http=200, answer={**told, "outputs": outputs}, headers=reply.headers)

    def call_infer(self, request: Any, **more: Any) -> Said:
        """Sends a message of one's own."""
        try:
            data = self.client.raw("ModelInfer")(request.SerializeToString(), timeout=20, **more)
        except grpc.RpcError as error:
            return refused(error)
        answer = message_class("ModelInferResponse").FromString(data)
        outputs = {}
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            outputs[output.name] = _values(output.datatype, raw)
        told = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
        if answer.id:
            told["id"] = answer.id
        parameters = {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in answer.parameters.items()}
        if parameters:
            told["parameters"] = parameters
        return Said(code="OK", answer=told)

    def call(self, method: str, **fields: Any) -> tuple[Any, Said]:
        """A unary call, its answer and how it went."""
        try:
            return self.client.ask(method, **fields), Said(code="OK")
        except grpc.RpcError as error:
            return None, refused(error)

    def http(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Said:
        """A request whose answer is JSON, or nothing."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = self.live.ask(method, path, data, headers)
        told = reply.json if reply.body else {}
        if reply.status != 200:
            assert list(told) == ["error"], "T2: errors are an object with one member"
            assert reply.headers["content-type"] == "application/json"
            return Said(http=reply.status, text=told["error"], headers=reply.headers)
        return Said(http=200, answer=told, headers=reply.headers)


def refused(error: Any) -> Said:
    """A gRPC error as what was said."""
    return Said(code=error.code().name, text=error.details())


def _put(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        kinds: dict[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(parameters[name], kinds[type(value)], value)


def _values(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, NUMPY[datatype]).tolist())
    texts = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts
