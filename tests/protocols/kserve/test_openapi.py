"""The published document against what the parsers take and the encoders make."""

import json

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farthing.protocols.kserve import (
    WireLimits,
    decode_infer,
    encode_error,
    encode_json,
    index_json,
    live_json,
    model_metadata,
    model_ready_json,
    openapi_document,
    parse_index_request,
    parse_load_request,
    parse_unload_request,
    ready_json,
    server_metadata,
    statistics_json,
)
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import InvalidInput, NotFound, Unsupported
from farthing.types.models import ModelSpec, ModelState, ModelStatus
from farthing.types.requests import RequestedOutput
from farthing.types.tensors import TensorSpec

DOCUMENT = openapi_document("0.0.0")
API = schemathesis.openapi.from_dict(DOCUMENT)
GENERATED = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

SPEC = ModelSpec(
    name="m",
    version=1,
    platform="p",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(),
    batch_rows_max=4,
)


def fits(name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return bool(jsonschema_rs.validator_for(schema).is_valid(value))


def test_the_document_is_valid_openapi_and_json() -> None:
    assert json.loads(encode_json(DOCUMENT)) == DOCUMENT
    API.validate()


def test_every_operation_has_its_own_name() -> None:
    names = [
        operation["operationId"]
        for path in DOCUMENT["paths"].values()
        for method, operation in path.items()
        if method in ("get", "post")
    ]
    assert len(names) == len(set(names)) == 31


def test_what_we_answer_is_what_the_document_says(wire) -> None:
    statistics = ModelStatistics()
    statistics.batch_done(requests=1, rows=2, queue_ns=1, input_ns=1, compute_ns=1, output_ns=1, now_ms=1)
    index = [ModelStatus(name="a")] + [
        ModelStatus(name="a", version="1", state=str(state), reason="r") for state in ModelState
    ]
    answers = {
        "Error": json.loads(encode_error(NotFound("a", hint="b"))),
        "ServerMetadata": server_metadata("f", "0", ["statistics"]),
        "Live": live_json(),
        "Ready": ready_json(),
        "ModelReady": model_ready_json("m"),
        "ModelMetadata": model_metadata(SPEC, [1]),
        "Index": index_json(index),
        "Statistics": statistics_json([statistics.snapshot("m", "1")]),
    }
    for name, answer in answers.items():
        assert fits(name, answer), name
        assert not fits(name, {"data": 1} if isinstance(answer, list) else []), name
    outputs = {"y": np.array([[1.5]], np.float32), "b": np.array([True]), "s": np.array([b"a"], object)}
    asked = [RequestedOutput("y", 1), RequestedOutput("b"), RequestedOutput("s", 0, True)]
    for answer in (
        wire.encode(outputs)[0],
        wire.encode(outputs, *asked, response={"id": "a", "parameters": {"n": 1}})[0],
    ):
        assert fits("InferResponse", answer)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"inputs": {}},
        {"outputs": [{}]},
        {"parameters": {"triton_a": 1}},
        {"parameters": {"headers": "a"}},
        {"parameters": {"a": None}},
        {"parameters": {"a": []}},
        {"parameters": {"priority": -1}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1], "data": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": ["1"]}]},
        {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1.5]}]},
        {"inputs": [{"name": "x", "datatype": "BOOL", "shape": [1], "data": [2]}]},
        {"inputs": [{"name": "x", "datatype": "FP16", "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "x", "datatype": "TYPE_FP32", "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "parameters": {"binary_data_size": 4}}]},
    ],
)  # fmt: skip
def test_what_the_document_forbids_the_decoder_refuses(wire, change) -> None:
    request = {**wire.one("FP32", [1], data=[1]), **change}
    assert not fits("InferRequest", request)
    with pytest.raises((InvalidInput, Unsupported)):
        wire.decode(request)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [1, 2], [1, 2.5]),
        ("FP64", [1, 2], [[1, 2]]),
        ("INT64", [0], []),
        ("BOOL", [2, 1], [[True], [0]]),
        ("BYTES", [1], ["a"]),
    ],
)
def test_what_the_decoder_takes_the_document_allows(wire, datatype, shape, data) -> None:
    request = {
        **wire.one(datatype, shape, data=data, parameters={"other": 1}),
        "id": None,
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    }
    wire.decode(request)
    assert fits("InferRequest", request)


@GENERATED
@given(data=st.data())
def test_generated_inference_requests_are_answered_or_refused(data) -> None:
    case = data.draw(API["/v2/models/{model_name}/infer"]["POST"].as_strategy())
    body = (
        case.body
        if isinstance(case.body, bytes)
        else json.dumps(case.body).encode()
        if isinstance(case.body, dict)
        else b""
    )
    for header_length in (None, 0, len(body)):
        try:
            decode_infer(
                body,
                model_name="m",
                model_version="",
                header_length=header_length,
                spec=lambda: SPEC,
                limits=WireLimits(),
            )
        except (InvalidInput, Unsupported):
            continue


@GENERATED
@given(data=st.data())
def test_generated_repository_requests_are_taken(data) -> None:
    index = data.draw(API["/v2/repository/index"]["POST"].as_strategy()).body
    unload = data.draw(API["/v2/repository/models/{model_name}/unload"]["POST"].as_strategy()).body
    parse_index_request(json.dumps(index).encode() if isinstance(index, dict) else b"")
    parse_unload_request(json.dumps(unload).encode() if isinstance(unload, dict) else b"")


@GENERATED
@given(data=st.data())
def test_generated_loads_are_taken_or_refused(data) -> None:
    load = data.draw(API["/v2/repository/models/{model_name}/load"]["POST"].as_strategy()).body
    try:
        parse_load_request(json.dumps(load).encode() if isinstance(load, dict) else b"")
    except InvalidInput as error:
        assert "config" in str(error) or "file:" in str(error)  # noqa: PT017 (both outcomes are right)
