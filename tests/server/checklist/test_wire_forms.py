"""Sections 3, 4.2, 4.3, 5 and 6.1 to 6.3, 6.10: datatypes, binary tensors, reserved parameters, gRPC's rules,
classification, timeouts, sequences, shared memory."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.checklist.house import NUMPY, House, WireName, tensor
from tests.server.checklist.test_validation import binary_http, raw_grpc
from tests.server.test_grpc import grpc_serving, infer_message
from tests.server.test_grpc_streams import Talk, is_final
from tests.serving import Gate, eventually, serving

from farthing.protocols.kserve_grpc import message_class

PAIR = tensor([[1.0, 2.0]])
LENGTH = "Inference-Header-Content-Length"
EXTREMES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    **{name: [np.iinfo(NUMPY[name]).min, np.iinfo(NUMPY[name]).max] for name in NUMPY if "INT" in name},
    "FP32": [float(np.finfo("f4").max), -0.0],
    "FP64": [float(np.finfo("f8").max), 5e-324],
    "BYTES": ["", "\N{SNOWMAN}"],
}


@pytest.mark.parametrize("datatype", EXTREMES)
def test_s3_every_datatype_goes_there_and_back(house: House, wire: WireName, datatype: str) -> None:
    values = [int(v) if "INT" in datatype else v for v in EXTREMES[datatype]]
    said = house.infer(wire, f"of_{datatype}", tensor([values], datatype=datatype))
    found = said.answer["outputs"]["y"]
    assert (np.float32(found).tolist() if datatype == "FP32" else found) == values, said.text
    config = house.http("GET", f"/v2/models/of_{datatype}/config").answer
    assert config["input"][0]["data_type"] == ("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")


def test_s3_numbers_that_are_none_are_bare_words_in_json(house: House) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"data":[[NaN,Infinity],[-Infinity,0]]}]}'
    reply = house.live.post("/v2/models/echo/infer", body)
    assert b'"data":[NaN,Infinity,-Infinity,0.0]' in reply.body.replace(b" ", b"")


def test_s3_data_may_be_nested_and_comes_back_flat(house: House) -> None:
    nested = {**PAIR, "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    assert house.infer("http", "echo", nested).answer["outputs"]["y"] == [1.0, 2.0, 3.0, 4.0]


def test_s4_an_answer_has_what_it_should(house: House, wire: WireName) -> None:
    said = house.infer(wire, "echo", PAIR, id="mine")
    assert {key: said.answer[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "echo",
        "model_version": "1",
        "id": "mine",
    }
    assert "id" not in house.infer(wire, "echo", PAIR).answer
    both = [tensor([[1] * 16], name, "INT32") for name in ("INPUT0", "INPUT1")]
    assert set(house.infer(wire, "simple", *both).answer["outputs"]) == {"OUTPUT0", "OUTPUT1"}
    assert set(house.infer(wire, "simple", *both, outputs=[{"name": "OUTPUT1"}]).answer["outputs"]) == {"OUTPUT1"}


# -- 4.2 -----------------------------------------------------------------------------------------------------------------


def head_and(data: bytes, **more: Any) -> tuple[bytes, int]:
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [item], **more}).encode()
    return head + data, len(head)


TWO = np.array([1, 2], "<f4").tobytes()


def test_b1_the_header_says_where_the_json_ends(house: House) -> None:
    body, length = head_and(TWO)
    assert house.post_infer("echo", body, {LENGTH: str(length)}).answer["outputs"]["y"] == [1.0, 2.0]
    house.post_infer("echo", body).must_be("INVALID_ARGUMENT")


@pytest.mark.parametrize("wrong", ["", "x", "12abc", "-1", "1.0", "0x10", "99999", "2147483648", "9" * 50])
def test_b2_a_length_that_is_none(house: House, wrong: str) -> None:
    body, _ = head_and(TWO)
    house.post_infer("echo", body, {LENGTH: wrong}).must_be("INVALID_ARGUMENT")


@pytest.mark.parametrize("wrong", ["8", 8.5, -8, True, None])
def test_b3_a_size_is_a_whole_number_and_may_be_zero(house: House, wrong: Any) -> None:
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": wrong}}
    head = json.dumps({"inputs": [item]}).encode()
    house.post_infer("echo", head + TWO, {LENGTH: str(len(head))}).must_be("INVALID_ARGUMENT")
    said = binary_http(house, "echo", [0, 2], b"")
    assert said.answer["outputs"]["y"] == []


def test_b4_fewer_bytes_than_the_tensors_need(house: House) -> None:
    said = binary_http(house, "echo", [1, 2], TWO[:4], size=8)
    said.must_be("INVALID_ARGUMENT", "unexpected size for input")


def test_b5_bytes_left_over(house: House) -> None:
    said = binary_http(house, "echo", [1, 2], TWO + b"\0", size=8)
    said.must_be("INVALID_ARGUMENT", "unexpected additional input data")


@pytest.mark.parametrize(
    ("outputs", "default", "is_binary"),
    [
        ([], None, False),
        ([], True, True),
        ([{"name": "y"}], None, False),
        ([{"name": "y"}], True, True),  # QUIRK, B7: JSON in Triton
        ([{"name": "y", "parameters": {"binary_data": False}}], True, False),
        ([{"name": "y", "parameters": {"binary_data": True}}], False, True),
        ([{"name": "y", "parameters": {"binary_data": True}}], None, True),
    ],
)
def test_b6_b7_which_outputs_come_as_bytes(house: House, outputs: Any, default: bool | None, is_binary: bool) -> None:
    body: dict[str, Any] = {"inputs": [PAIR], "outputs": outputs}
    if default is not None:
        body["parameters"] = {"binary_data_output": default}
    reply = house.live.post("/v2/models/echo/infer", json.dumps(body).encode())
    assert (LENGTH.lower() in reply.headers) is is_binary


def test_b8_b9_an_answer_with_bytes_and_one_without(house: House) -> None:
    body = {"inputs": [PAIR], "parameters": {"binary_data_output": True}}
    reply = house.live.post("/v2/models/echo/infer", json.dumps(body).encode())
    length = int(reply.headers[LENGTH.lower()])
    [output] = json.loads(reply.body[:length])["outputs"]
    assert reply.headers["content-type"] == "application/octet-stream"
    assert (output["parameters"], "data" in output, reply.body[length:]) == ({"binary_data_size": 8}, False, TWO)
    body["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [0, 2], "data": []}]
    reply = house.live.post("/v2/models/echo/infer", json.dumps(body).encode())
    assert reply.headers["content-type"] == "application/json"
    assert LENGTH.lower() not in reply.headers


def test_b10_a_raw_body_is_the_only_input(house: House) -> None:
    for model, raw, answer in (("text", b"bare", b"\4\0\0\0bare"), ("wide", TWO, TWO)):
        reply = house.live.post(f"/v2/models/{model}/infer", raw, {LENGTH: "0"})
        assert reply.status == 200, reply.body
        assert reply.body[int(reply.headers[LENGTH.lower()]) :] == answer
    for model, raw in (("simple", bytes(64)), ("of_BYTES", b"bare"), ("wide", b"\0\0\0")):
        house.post_infer(model, raw, {LENGTH: "0"}).must_be("INVALID_ARGUMENT")


# -- 4.3, 6.1 to 6.3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["headers", "triton_x"])
def test_s4_3_reserved_parameters(house: House, name: str) -> None:
    house.infer("http", "echo", PAIR, parameters={name: "1"}).must_be("INVALID_ARGUMENT")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequence_id": 1.5},
        {"sequence_id": -1},
        {"sequence_start": 1},
        {"priority": -1},
        {"priority": "1"},
        {"timeout": -1},
        {"timeout": "1"},
    ],
)
def test_s4_3_g6_reserved_parameters_have_their_types(house: House, wire: WireName, wrong: Any) -> None:
    [name] = wrong
    house.infer(wire, "echo", PAIR, parameters=wrong).must_be("INVALID_ARGUMENT", name)


def test_s6_1_classification(house: House, wire: WireName) -> None:
    scores = tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])

    def asked(classes: int) -> Any:
        return [{"name": "y", "parameters": {"classification": classes}}]

    said = house.infer(wire, "scores", scores, outputs=asked(2))
    assert said.answer["outputs"]["y"] == ["4.000000:1:bee", "3.000000:3:dog", "1.000000:3:dog", "0.000000:0:ant"]
    assert len(house.infer(wire, "scores", scores, outputs=asked(9)).answer["outputs"]["y"]) == 8
    assert house.infer(wire, "echo", PAIR, outputs=asked(1)).answer["outputs"]["y"] == ["2.000000:1"]
    house.infer(wire, "scores", scores, outputs=asked(10_000_000)).must_be(
        "INVALID_ARGUMENT", "classification output tensor too large"
    )
    texts = tensor([["a", "b"]], datatype="BYTES")
    house.infer(wire, "of_BYTES", texts, outputs=asked(1)).must_be("INVALID_ARGUMENT")
    for wrong in (0, -1, "1"):
        if (wire, wrong) != ("http", 0):
            wanted = [{"name": "y", "parameters": {"classification": wrong}}]
            house.infer(wire, "scores", scores, outputs=wanted).must_be("INVALID_ARGUMENT")


POLICY = """
max_batch_size: 1
dynamic_batching {
  priority_levels: 2 default_priority_level: 2
  default_queue_policy { allow_timeout_override: true %s }
}
"""


@pytest.mark.parametrize("default", ["", "default_timeout_microseconds: 60000000"])
def test_s6_2_a_timeout_counts_also_where_the_model_has_none(tmp_path: Path, default: str) -> None:
    gate = Gate(tmp_path / "gate" / "1", "model")
    (tmp_path / "gate" / "config.pbtxt").write_text(POLICY % default)
    with grpc_serving(tmp_path / "gate") as (live, client):
        house = House(live, client)
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        said = house.infer("http", "gate", tensor([[2.0]]), parameters={"timeout": 20_000, "priority": 1})
        said.must_be("UNAVAILABLE", "Request timeout expired")
        low = client.begin([[3.0]])
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 1)
        message = infer_message([[4.0]], "gate")
        message.parameters["priority"].int64_param = 1
        high = client.raw("ModelInfer").future(message.SerializeToString(), timeout=20)
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 2)
        gate.open()
        for call in (first, low, high):
            call.result()
        assert gate.seen() == [1.0, 4.0, 3.0], "the more urgent first"


def test_s6_3_a_sequence_goes_on_by_number_or_text(house: House, wire: WireName) -> None:
    for sequence_id in (4242, 4243):
        said = [
            house.infer(wire, "sum", tensor([[x]]), parameters={"sequence_id": sequence_id, **more})
            for x, more in ((1.0, {"sequence_start": True}), (2.0, {}), (3.0, {"sequence_end": True}))
        ]
        assert [one.answer["outputs"]["y"] for one in said] == [[1.0], [3.0], [6.0]]
        over = house.infer(wire, "sum", tensor([[1.0]]), parameters={"sequence_id": sequence_id})
        over.must_be("INVALID_ARGUMENT", "START flag")


# -- 5 -------------------------------------------------------------------------------------------------------------------


def test_g1_raw_and_typed_contents_exclude_each_other(house: House) -> None:
    request = infer_message([[1.0, 2.0]])
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    house.call_infer(request).must_be("INVALID_ARGUMENT")


def test_g2_raw_contents_are_one_for_each_input(house: House) -> None:
    house.call_infer(raw_grpc("echo", [1, 2])).must_be("INVALID_ARGUMENT", "unable to find data")
    house.call_infer(raw_grpc("echo", [1, 2], TWO, TWO)).must_be("INVALID_ARGUMENT")


def test_g3_the_typed_list_is_that_of_the_datatype(house: House) -> None:
    request = message_class("ModelInferRequest")(
        model_name="echo",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"int_contents": [1, 2]}}],
    )
    house.call_infer(request).must_be("INVALID_ARGUMENT")
    for datatype, value in (("INT8", 128), ("UINT8", 256), ("INT16", -(1 << 15) - 1)):
        house.infer("grpc", f"of_{datatype}", tensor([[0, value]], datatype=datatype)).must_be("INVALID_ARGUMENT")


def test_g4_an_input_with_no_data(house: House) -> None:
    nothing = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    house.infer("grpc", "echo", nothing).must_be("INVALID_ARGUMENT", "unable to find data for input tensor")


def test_g5_answers_are_raw_one_entry_for_each_output(house: House) -> None:
    answer = house.client.ask(
        "ModelInfer",
        model_name="echo",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1.0, 2.0]}}],
    )
    assert list(answer.raw_output_contents) == [TWO]
    assert not answer.outputs[0].HasField("contents")


def test_g7_the_parameter_of_the_empty_final_response_alone_begins_with_triton(house: House) -> None:
    said = house.infer("grpc", "echo", PAIR, parameters={"triton_enable_empty_final_response": True})
    assert said.code == "OK"
    house.infer("grpc", "echo", PAIR, parameters={"triton_enable_empty_final_response": 1}).must_be("INVALID_ARGUMENT")
    house.infer("grpc", "echo", PAIR, parameters={"triton_other": True}).must_be("INVALID_ARGUMENT")


def test_g9_g10_g11_a_stream_answers_in_order_with_errors_in_their_place(house: House) -> None:
    messages = [infer_message([[float(n), 0.0]], "ghost" if n == 1 else "echo") for n in range(3)]
    for number, message in enumerate(messages):
        message.id = str(number)
    answers = Talk(house.client).put(*messages).end().rest()
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert [is_final(answer) for answer in (answers[0], answers[2])] == [True, True]
    strict = Talk(house.client, metadata=[("triton_grpc_error", "true")]).put(*messages).end()
    with pytest.raises(Exception, match="ghost") as ended:
        strict.rest()
    assert ended.value.code().name == "NOT_FOUND"  # type: ignore[attr-defined]


def test_g12_a_deadline_takes_a_request_out_of_the_queue(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path) as (live, client):
        first = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        late = client.begin([[2.0]], timeout=0.05)
        assert late.code().name == "DEADLINE_EXCEEDED"
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 0)
        gate.open()
        first.result()
        assert gate.seen() == [1.0]


def test_g14_answers_are_coded_as_requests_are(house: House) -> None:
    import grpc

    message = infer_message([[1.0, 2.0]] * 500).SerializeToString()
    for coding in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
        data = house.client.raw("ModelInfer")(message, timeout=20, compression=coding)
        assert message_class("ModelInferResponse").FromString(data).raw_output_contents[0] == TWO * 500


def test_traps_two_protos_and_a_message_of_kserves(house: House) -> None:
    _, said = house.call("RepositoryModelLoad", repository_name="echo")
    said.must_be("INVALID_ARGUMENT", "hint:")


# -- 6.10 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key() -> Iterator[str]:
    name = f"farthing-test-{uuid.uuid4().hex}"
    path = Path("/dev/shm") / name  # where POSIX shared memory is
    path.write_bytes(TWO + bytes(8))
    yield f"/{name}"
    path.unlink()


def register(house: House, wire: WireName, name: str, **fields: Any) -> Any:
    if wire == "http":
        return house.http("POST", f"/v2/systemsharedmemory/region/{name}/register", fields)
    return house.call("SystemSharedMemoryRegister", name=name, **fields)[1]


def test_s6_10_regions_are_registered_told_used_and_let_go(house: House, wire: WireName, key: str) -> None:
    name = f"r-{wire}"
    assert register(house, wire, name, key=key, offset=0, byte_size=16).must_be("OK") is None
    register(house, wire, name, key=key, offset=0, byte_size=16).must_be("ALREADY_EXISTS", "already in manager")
    told = {"name": name, "key": key, "offset": 0, "byte_size": 16}
    if wire == "http":
        assert house.http("GET", "/v2/systemsharedmemory/status").answer == [told]
        assert house.http("GET", f"/v2/systemsharedmemory/region/{name}/status").answer == [told]
    else:
        [(_, region)] = house.client.ask("SystemSharedMemoryStatus", name=name).regions.items()
        assert {field: getattr(region, field) for field in told} == told

    def part(offset: int, size: int, region: str = name) -> dict[str, Any]:
        return {
            "shared_memory_region": region,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": size,
        }

    def ask(taken: Any, put: Any) -> Any:
        item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": taken}
        return house.infer(wire, "echo", item, outputs=[{"name": "y", "parameters": put}])

    said = ask(part(0, 8), part(8, 8))
    assert (said.http or 200, said.code or "OK") == (200, "OK"), said.text
    assert (Path("/dev/shm") / key[1:]).read_bytes() == TWO + TWO
    ask(part(0, 8, "none"), part(8, 8)).must_be("NOT_FOUND")
    for wrong in (part(12, 8), part(0, 1 << 40), part(16, 1)):
        ask(wrong, part(8, 8)).must_be("INVALID_ARGUMENT")
    ask(part(0, 8), part(8, 4)).must_be("INVALID_ARGUMENT")  # QUIRK of Triton: INTERNAL
    if wire == "http":
        for _ in range(2):
            assert house.http("POST", f"/v2/systemsharedmemory/region/{name}/unregister").http == 200
    else:
        for _ in range(2):
            house.client.ask("SystemSharedMemoryUnregister", name=name)
    ask(part(0, 8), part(8, 8)).must_be("NOT_FOUND")


def test_s6_10_keys_are_names_of_objects(house: House, wire: WireName) -> None:
    for key in ("/../etc/passwd", "", "/a/b", "/" + "x" * 300):
        register(house, wire, "bad", key=key, offset=0, byte_size=8).must_be("INVALID_ARGUMENT")
    assert os.path.exists("/etc/passwd")  # noqa: PTH110


def test_s6_10_it_is_closed_by_default_and_its_status_works(tmp_path: Path) -> None:
    from tests.serving import small_repository

    with serving(small_repository(tmp_path)) as live:
        assert live.get("/v2/systemsharedmemory/status").json == []
