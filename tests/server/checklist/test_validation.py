"""V1 to V36: requests that are refused, with which status and which words, over both protocols."""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.models import identity, save
from tests.server.checklist.house import House, WireName, tensor
from tests.server.test_grpc import grpc_serving, infer_message
from tests.serving import Gate, eventually, infer_json

from farthing.config.server import AdmissionLimits, ModelControl
from farthing.protocols.kserve_grpc import message_class

PAIR = tensor([[1.0, 2.0]])
INTS = [tensor([[1] * 16], name, "INT32") for name in ("INPUT0", "INPUT1")]


def test_v1_an_unknown_model(house: House, wire: WireName) -> None:
    house.infer(wire, "ghost", PAIR).must_be("NOT_FOUND", "ghost")


def test_v1_a_name_of_several_models_is_told_where_it_is(wire: WireName, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        save(folder / "echo", identity())
    save(tmp_path / "b" / "only", identity())
    with grpc_serving(*folders, has_namespaces=True) as (live, client):
        house = House(live, client)
        for folder in folders:
            house.infer(wire, "echo", PAIR).must_be("INVALID_ARGUMENT", str(folder))
        house.infer(wire, "echo", PAIR, version="1").must_be("INVALID_ARGUMENT", "ambiguous")
        assert house.infer(wire, "only", PAIR).answer["outputs"] == {"y": [1.0, 2.0]}
        house.infer(wire, "ghost", PAIR).must_be("NOT_FOUND", "ghost")


def test_v2_a_version_that_is_not_there(house: House, wire: WireName) -> None:
    house.infer(wire, "echo", PAIR, version="7").must_be("NOT_FOUND", "7")


def test_v3_a_version_that_is_being_unloaded(house: House, wire: WireName, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path, model_control=ModelControl.EXPLICIT, load_models=("gate",)) as (live, client):
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        assert live.post("/v2/repository/models/gate/unload", b"{}").status == 200
        House(live, client).infer(wire, "gate", tensor([[2.0]])).must_be("UNAVAILABLE")
        gate.open()
        first.result()


def test_v4_a_model_none_of_whose_versions_is_there(house: House, wire: WireName) -> None:
    house.infer(wire, "spare", PAIR).must_be("NOT_FOUND", "has no available versions")


@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b"\xff", b'{"inputs": [}'])
def test_v5_a_body_that_is_no_json_is_the_clients_mistake(house: House, body: bytes) -> None:
    house.post_infer("echo", body).must_be("INVALID_ARGUMENT")


@pytest.mark.parametrize(
    "more",
    [
        {"id": 7},
        {"inputs": {}},
        {"inputs": [{**PAIR, "shape": ["1", "2"]}]},
        {"inputs": [{**PAIR, "shape": 2}]},
        {"inputs": [{**PAIR, "name": 1}]},
        {"inputs": [{**PAIR, "datatype": None}]},
        {"inputs": [{**PAIR, "data": "12"}]},
        {"parameters": []},
    ],
)
def test_v6_a_member_of_the_wrong_type_is_the_clients_mistake(house: House, more: Any) -> None:
    body = json.dumps({"inputs": [PAIR], **more}).encode()
    house.post_infer("echo", body).must_be("INVALID_ARGUMENT")


def test_v7_v8_a_negative_dimension(house: House, wire: WireName) -> None:
    for shape in ([-1, 2], [1, -2], [-(1 << 62), 2]):
        house.infer(wire, "echo", {**PAIR, "shape": shape}).must_be("INVALID_ARGUMENT")


def test_v9_a_shape_that_overflows_64_bits(house: House, wire: WireName) -> None:
    for shape in ([1 << 62, 1 << 62], [1 << 61, 2]):
        house.infer(wire, "echo", {**PAIR, "shape": shape}).must_be("INVALID_ARGUMENT")


def test_v10_a_shape_over_the_limit_is_refused_before_anything_is_allocated(house: House, wire: WireName) -> None:
    house.infer(wire, "wide", {**PAIR, "shape": [1 << 20, 1 << 10]}).must_be(
        "INVALID_ARGUMENT", "exceeds the maximum allowed" if wire == "http" else ""
    )


@pytest.mark.parametrize("data", [[1.0], [1.0, 2.0, 3.0], []])
def test_v11_more_or_fewer_elements_than_the_shape_says(house: House, wire: WireName, data: list[float]) -> None:
    house.infer(wire, "echo", {**PAIR, "data": data}).must_be("INVALID_ARGUMENT")


def test_v12_too_few_or_too_many_inputs(house: House, wire: WireName) -> None:
    words = "expected 2 inputs but got 1 inputs for model"
    house.infer(wire, "simple", INTS[0]).must_be("INVALID_ARGUMENT", words)
    third = tensor([[1] * 16], "INPUT2", "INT32")
    house.infer(wire, "simple", *INTS, third).must_be("INVALID_ARGUMENT")


def test_v13_an_unknown_input(house: House, wire: WireName) -> None:
    other = tensor([[1] * 16], "OTHER", "INT32")
    house.infer(wire, "simple", INTS[0], other).must_be("INVALID_ARGUMENT", "unexpected inference input")


def test_v14_an_unknown_output(house: House, wire: WireName) -> None:
    said = house.infer(wire, "echo", PAIR, outputs=[{"name": "z"}])
    said.must_be("INVALID_ARGUMENT", "unexpected inference output")


def test_v15_a_tensor_that_stands_twice(house: House, wire: WireName) -> None:
    words = "already exists in request"
    code = "ALREADY_EXISTS"
    house.infer(wire, "simple", INTS[0], INTS[0]).must_be(code, words)
    house.infer(wire, "echo", PAIR, outputs=[{"name": "y"}, {"name": "y"}]).must_be(code, words)


def test_v16_another_datatype_than_the_models(house: House, wire: WireName) -> None:
    house.infer(wire, "echo", tensor([[1, 2]], datatype="INT32")).must_be("INVALID_ARGUMENT", "INT32")


def test_v17_a_shape_that_does_not_fit(house: House, wire: WireName) -> None:
    for values in ([[1.0, 2.0, 3.0]], [1.0, 2.0], [[[1.0, 2.0]]]):
        house.infer(wire, "echo", tensor(values)).must_be("INVALID_ARGUMENT", "unexpected shape for input")


def test_v18_inputs_of_different_batch_sizes(house: House, wire: WireName) -> None:
    two = tensor([[1] * 16] * 2, "INPUT1", "INT32")
    house.infer(wire, "simple", INTS[0], two).must_be("INVALID_ARGUMENT")


def test_v19_more_rows_than_max_batch_size(house: House, wire: WireName) -> None:
    assert house.infer(wire, "small_batches", tensor([[1.0, 2.0]] * 2)).answer["outputs"]["y"] == [1.0, 2.0] * 2
    house.infer(wire, "small_batches", tensor([[1.0, 2.0]] * 3)).must_be("INVALID_ARGUMENT", "batch-size must be <= 2")


def raw_grpc(model: str, shape: list[int], *raw: bytes, datatype: str = "FP32", name: str = "x") -> Any:
    return message_class("ModelInferRequest")(
        model_name=model,
        inputs=[{"name": name, "datatype": datatype, "shape": shape}],
        raw_input_contents=list(raw),
    )


def binary_http(house: House, model: str, shape: list[int], data: bytes, datatype: str = "FP32", **more: Any) -> Any:
    """A request with one binary tensor; `binary_data_size` is what it says it is."""
    size = more.pop("size", len(data))
    item = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [item], **more}).encode()
    return house.post_infer(model, head + data, {"Inference-Header-Content-Length": str(len(head))})


@pytest.mark.parametrize("size", [0, 4, 12])
def test_v20_more_or_fewer_bytes_than_the_shape_says(house: House, wire: WireName, size: int) -> None:
    data = bytes(size)
    said = (
        binary_http(house, "echo", [1, 2], data) if wire == "http" else house.call_infer(raw_grpc("echo", [1, 2], data))
    )
    said.must_be("INVALID_ARGUMENT", "input byte size mismatch")
    assert f"got {size}" in said.text, said.text


@pytest.mark.parametrize(
    "data",
    [
        b"\x01\0\0\0a",  # one element of two
        b"\x01\0\0\0a" * 3,
        b"\x01\0\0\0a\x01\0\0",  # a length that is cut off
        b"\x01\0\0\0a\x09\0\0\0b",  # an element that is
        b"\x01\0\0\0a\xff\xff\xff\xff",
    ],
)
def test_v21_texts_that_do_not_add_up(house: House, wire: WireName, data: bytes) -> None:
    said = (
        binary_http(house, "of_BYTES", [1, 2], data, "BYTES")
        if wire == "http"
        else house.call_infer(raw_grpc("of_BYTES", [1, 2], data, datatype="BYTES"))
    )
    said.must_be("INVALID_ARGUMENT")


def test_v22_data_from_nowhere_or_from_two_places(house: House, wire: WireName) -> None:
    nothing = {key: value for key, value in PAIR.items() if key != "data"}
    house.infer(wire, "echo", nothing).must_be("INVALID_ARGUMENT")
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    house.infer(wire, "echo", {**PAIR, "parameters": region}).must_be("INVALID_ARGUMENT")
    if wire == "http":
        house.infer(wire, "echo", {**PAIR, "parameters": {"binary_data_size": 8}}).must_be("INVALID_ARGUMENT")
        both = {**nothing, "parameters": {"binary_data_size": 8, **region}}
        house.infer(wire, "echo", both).must_be("INVALID_ARGUMENT")


def test_v23_an_output_in_shared_memory_and_as_something_else(house: House, wire: WireName) -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    said = house.infer(wire, "echo", PAIR, outputs=[{"name": "y", "parameters": {**region, "classification": 1}}])
    said.must_be("INVALID_ARGUMENT")
    if wire == "http":
        wanted = [{"name": "y", "parameters": {**region, "binary_data": True}}]
        house.infer(wire, "echo", PAIR, outputs=wanted).must_be("INVALID_ARGUMENT")


def test_v24_halves_travel_as_bytes_alone(house: House, wire: WireName) -> None:
    halves = np.array([[1, 2]], "<f2").tobytes()
    if wire == "grpc":
        request = raw_grpc("of_FP16", [1, 2])
        request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
        house.call_infer(request).must_be("INVALID_ARGUMENT")
        answer = house.call_infer(raw_grpc("of_FP16", [1, 2], halves, datatype="FP16")).answer
        assert answer["outputs"] == {"y": [1.0, 2.0]}
        return
    house.infer(wire, "of_FP16", {**PAIR, "datatype": "FP16"}).must_be("INVALID_ARGUMENT", "binary")
    binary_http(house, "of_FP16", [1, 2], halves, "FP16").must_be("INVALID_ARGUMENT", "binary")
    said = binary_http(house, "of_FP16", [1, 2], halves, "FP16", parameters={"binary_data_output": True})
    assert said.headers["content-type"] == "application/octet-stream"


def test_v25_parameters_that_begin_with_triton_are_reserved(house: House, wire: WireName) -> None:
    house.infer(wire, "echo", PAIR, parameters={"triton_anything": 1}).must_be("INVALID_ARGUMENT", "reserved")


def test_v27_an_optional_input_may_be_left_out(house: House, wire: WireName) -> None:
    scale = tensor([[10.0, 10.0]], "scale")
    assert house.infer(wire, "optional", PAIR).answer["outputs"]["y"] == [1.0, 2.0]
    assert house.infer(wire, "optional", PAIR, scale).answer["outputs"]["y"] == [10.0, 20.0]


ONE = tensor([[1.0]])


def test_v28_a_request_to_a_stateful_model_without_a_sequence(house: House, wire: WireName) -> None:
    words = "must specify a non-zero or non-empty correlation ID"
    house.infer(wire, "sum", ONE).must_be("INVALID_ARGUMENT", words)
    for none in (0, ""):
        house.infer(wire, "sum", ONE, parameters={"sequence_id": none}).must_be("INVALID_ARGUMENT", words)


def test_v29_a_sequence_that_does_not_start(house: House, wire: WireName) -> None:
    said = house.infer(wire, "sum", ONE, parameters={"sequence_id": 4711})
    said.must_be("INVALID_ARGUMENT", "must specify the START flag on the first request of the sequence")


def test_v30_a_request_of_a_sequence_has_one_row(house: House, wire: WireName) -> None:
    said = house.infer(wire, "sum", tensor([[1.0], [2.0]]), parameters={"sequence_id": 5, "sequence_start": True})
    said.must_be("INVALID_ARGUMENT", "batch-size 1")


def test_v31_a_queue_that_is_full(wire: WireName, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    limits = AdmissionLimits(queue_requests_max=1)
    with grpc_serving(gate.path, admission=limits) as (live, client):
        calls = [client.begin([[1.0]])]
        eventually(lambda: gate.seen() == [1.0])
        calls.append(client.begin([[2.0]]))
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 1)
        said = House(live, client).infer(wire, "gate", tensor([[3.0]]))
        said.must_be("UNAVAILABLE", "Exceeds maximum queue size")
        if wire == "http":
            assert int(said.headers["retry-after"]) >= 1
        gate.open()
        for call in calls:
            call.result()


def test_v32_a_wait_that_is_longer_than_it_may_be(wire: WireName, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path) as (live, client):
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        said = House(live, client).infer(wire, "gate", tensor([[2.0]]), parameters={"timeout": 20_000})
        # Over gRPC a deadline has a status of its own.
        said.must_be("DEADLINE_EXCEEDED" if wire == "grpc" else "UNAVAILABLE", "Request timeout expired")
        gate.open()
        first.result()
        assert gate.seen() == [1.0]


def test_v33_whoever_cancels_is_not_run(tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path) as (live, client):
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        second = client.begin([[2.0]])
        wire = live.connect().send(gate.request(3.0))
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 2)
        second.cancel()
        assert second.code() is grpc.StatusCode.CANCELLED
        wire.socket.close()
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 0)
        gate.open()
        first.result()
        assert gate.seen() == [1.0]


def test_v34_a_server_that_stops(wire: WireName, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path, drain_notice_s=0.0) as (live, client):
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        house = House(live, client)
        assert live.server is not None
        listener = live.server._grpc_listener
        assert listener is not None
        # What `Server.drain` does to each; it would end this listener before a new connection can ask.
        if wire == "http":
            live.on_loop(setattr, live.server._listener, "is_stopping", True)
        else:
            live.on_loop(listener.calls.stop)
        house.infer(wire, "gate", tensor([[2.0]])).must_be("UNAVAILABLE", "Server is stopping")
        gate.open()
        first.result()
        assert gate.seen() == [1.0]


@pytest.mark.parametrize("name", ["..", "a%2Fb", "a%20b", "%09"])
def test_v35_a_model_name_that_could_lead_elsewhere(house: House, name: str) -> None:
    said = house.http("POST", f"/v2/repository/models/{name}/load", {})
    assert said.http in (400, 404), said
    for plain in ("..", "a/b", "a b", ""):
        _, told = house.call("RepositoryModelLoad", model_name=plain)
        assert told.code in ("INVALID_ARGUMENT", "NOT_FOUND"), (plain, told)


def test_v36_a_model_that_raises_is_500_with_its_words_and_no_traceback(house: House, wire: WireName) -> None:
    said = house.infer(wire, "mirror", tensor([[-1.0]]))
    said.must_be("INTERNAL", "minus is not for me")
    assert "Traceback" not in said.text
    assert house.infer(wire, "mirror", tensor([[1.0]])).answer["outputs"]["y"] == [1.0]


def test_the_helpers_of_this_page_send_what_is_answered(house: House) -> None:
    assert house.call_infer(infer_message([[1.0, 2.0]])).answer["outputs"] == {"y": [1.0, 2.0]}
    assert house.post_infer("echo", infer_json([[1.0, 2.0]])).answer["outputs"] == {"y": [1.0, 2.0]}
