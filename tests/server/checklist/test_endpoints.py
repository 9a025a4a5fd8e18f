"""Section 2 and 6.7 to 6.9, 6.11: every endpoint of the matrix, health, metadata, configuration, statistics, and the
RPCs that stand for them."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models import identity, save
from tests.runtime.shop import times
from tests.server.checklist.house import House, Said, WireName, tensor
from tests.server.test_grpc import grpc_serving
from tests.serving import Gate, eventually, serving, small_repository

from farthing.config.server import LoadOverrides, ModelControl
from farthing.protocols.kserve_grpc import health_message_class, message_class

PAIR = tensor([[1.0, 2.0]])
MATRIX: list[tuple[str, str, Any, str]] = [
    ("GET", "/v2/health/live", None, "ServerLive"),
    ("GET", "/v2/health/ready", None, "ServerReady"),
    ("GET", "/v2/models/echo/ready", None, "ModelReady"),
    ("GET", "/v2/models/echo/versions/1/ready", None, "ModelReady"),
    ("GET", "/v2", None, "ServerMetadata"),
    ("GET", "/v2/models/echo", None, "ModelMetadata"),
    ("GET", "/v2/models/echo/versions/1", None, "ModelMetadata"),
    ("POST", "/v2/models/echo/infer", {"inputs": [PAIR]}, "ModelInfer"),
    ("POST", "/v2/models/echo/versions/1/infer", {"inputs": [PAIR]}, "ModelInfer"),
    ("GET", "/v2/models/echo/config", None, "ModelConfig"),
    ("GET", "/v2/models/echo/versions/1/config", None, "ModelConfig"),
    ("GET", "/v2/models/stats", None, "ModelStatistics"),
    ("GET", "/v2/models/echo/stats", None, "ModelStatistics"),
    ("GET", "/v2/models/echo/versions/1/stats", None, "ModelStatistics"),
    ("POST", "/v2/repository/index", None, "RepositoryIndex"),
    ("POST", "/v2/repository/models/echo/load", {}, "RepositoryModelLoad"),
    ("POST", "/v2/repository/models/spare/unload", {}, "RepositoryModelUnload"),
    ("GET", "/v2/systemsharedmemory/status", None, "SystemSharedMemoryStatus"),
    ("POST", "/v2/systemsharedmemory/unregister", None, "SystemSharedMemoryUnregister"),
    ("POST", "/v2/systemsharedmemory/region/none/unregister", None, "SystemSharedMemoryUnregister"),
    ("GET", "/v2/trace/setting", None, "TraceSetting"),
    ("POST", "/v2/trace/setting", {}, "TraceSetting"),
    ("GET", "/v2/models/echo/trace/setting", None, "TraceSetting"),
    ("GET", "/v2/logging", None, "LogSettings"),
    ("POST", "/v2/logging", {}, "LogSettings"),
    ("GET", "/v2/models", None, ""),
    ("GET", "/metrics", None, ""),
]
"""Section 2's table: what answers 200, and the RPC that says the same."""


@pytest.mark.parametrize(("method", "path", "body", "rpc"), MATRIX)
def test_s2_every_endpoint_is_there_and_so_is_its_rpc(
    house: House, method: str, path: str, body: Any, rpc: str
) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    assert house.live.ask(method, path, data).status == 200
    if rpc:
        fields = house.client.ask
        kind = message_class(f"{rpc}Request")
        named = {field.name for field in kind.DESCRIPTOR.fields}
        arguments: dict[str, Any] = {}
        if "echo" in path:
            arguments[next(name for name in ("model_name", "name") if name in named)] = "echo"
        elif rpc == "RepositoryModelUnload":
            arguments["model_name"] = "spare"
        if rpc == "ModelInfer":
            assert house.infer("grpc", "echo", PAIR).code == "OK"
        else:
            fields(rpc, **arguments)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/ghost", 404),
        ("GET", "/v2/models/ghost/ready", 404),
        ("GET", "/v2/models/ghost/config", 404),
        ("GET", "/v2/models/ghost/stats", 404),
        ("GET", "/v2/models/echo/versions/7", 404),
        ("GET", "/v2/models/echo/versions/7/config", 404),
        ("GET", "/v2/models/echo/versions/7/stats", 404),
        ("POST", "/v2/repository/elsewhere/index", 501),
        ("POST", "/v2/repository/elsewhere/models/echo/load", 501),
        ("POST", "/v2/repository/elsewhere/models/echo/unload", 501),
        ("GET", "/v2/models/echo/versions/1/trace/setting", 404),
        ("GET", "/v2/cudasharedmemory/status", 501),
    ],
)
def test_s2_what_is_not_there_has_its_status(house: House, method: str, path: str, status: int) -> None:
    assert house.http(method, path, {}).http == status


@pytest.mark.parametrize(
    ("rpc", "fields", "code"),
    [
        ("ModelMetadata", {"name": "ghost"}, "NOT_FOUND"),
        ("ModelMetadata", {"name": "echo", "version": "7"}, "NOT_FOUND"),
        ("ModelConfig", {"name": "ghost"}, "NOT_FOUND"),
        ("ModelStatistics", {"name": "ghost"}, "NOT_FOUND"),
        ("RepositoryIndex", {"repository_name": "elsewhere"}, "UNIMPLEMENTED"),
        ("RepositoryModelLoad", {"repository_name": "elsewhere", "model_name": "echo"}, "UNIMPLEMENTED"),
        ("CudaSharedMemoryStatus", {}, "UNIMPLEMENTED"),
        ("CudaSharedMemoryRegister", {"name": "r"}, "UNIMPLEMENTED"),
        ("TraceSetting", {"model_name": "ghost"}, "NOT_FOUND"),
    ],
)
def test_s2_what_is_not_there_has_its_status_over_grpc(house: House, rpc: str, fields: Any, code: str) -> None:
    assert house.call(rpc, **fields)[1].code == code


def test_s2_1_health_is_told_in_the_open_protocols_words_and_never_false(house: House) -> None:
    assert house.http("GET", "/v2/health/live").answer == {"live": True}
    assert house.http("GET", "/v2/health/ready").answer == {"ready": True}
    assert house.http("GET", "/v2/models/echo/ready").answer == {"name": "echo", "ready": True}
    assert house.client.ask("ModelReady", name="echo").ready
    assert not house.client.ask("ModelReady", name="spare").ready


@pytest.mark.parametrize("status", [503, 400])
def test_s2_1_not_ready_is_503_or_tritons_400(tmp_path: Path, status: int) -> None:
    with serving(small_repository(tmp_path), load=False, not_ready_status=status) as live:
        assert live.get("/v2/health/ready").status == status
        assert live.get("/v2/health/live").status == 200


def test_s2_2_a_model_that_is_not_there_turns_readiness_red_unless_it_is_not_strict(tmp_path: Path) -> None:
    folder = small_repository(tmp_path)
    (folder / "echo" / "1" / "model.onnx").write_bytes(b"no model")
    with serving(folder) as live:
        assert live.get("/v2/health/ready").status == 503
    with serving(folder, strict_readiness=False) as live:
        assert live.get("/v2/health/ready").status == 200


def test_s2_2_unloaded_models_do_not_count(house: House) -> None:
    assert house.http("GET", "/v2/models/spare/ready").http in (404, 503)
    assert house.http("GET", "/v2/health/ready").http == 200


def test_s2_3_metadata(house: House) -> None:
    server = house.http("GET", "/v2").answer
    assert server["name"] == "farthing"
    assert isinstance(server["version"], str)
    assert {"binary_tensor_data", "statistics", "classification", "sequence"} <= set(server["extensions"])
    told = house.client.ask("ServerMetadata")
    assert (told.name, told.version, list(told.extensions)) == tuple(server.values())
    model = house.http("GET", "/v2/models/twice").answer
    assert model == {
        "name": "twice",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    told = house.client.ask("ModelMetadata", name="twice")
    assert (told.name, list(told.versions), told.platform) == ("twice", ["1", "2"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [("x", "FP32", [-1, 2])]


def test_s6_7_configuration_has_what_perf_analyzer_reads(house: House) -> None:
    config = house.http("GET", "/v2/models/echo/config").answer
    assert (config["name"], config["platform"], config["max_batch_size"] > 0) == ("echo", "onnxruntime_onnx", True)
    assert config["model_transaction_policy"]["decoupled"] is False
    assert (config["input"][0]["name"], config["input"][0]["optional"]) == ("x", False)
    assert config["input"][0]["is_shape_tensor"] is False
    assert "dynamic_batching" in config
    assert "sequence_batching" in house.http("GET", "/v2/models/sum/config").answer
    told = house.client.ask("ModelConfig", name="sum").config
    assert (told.name, told.max_batch_size, told.HasField("sequence_batching")) == ("sum", 4, True)
    assert told.sequence_batching.oldest.max_candidate_sequences == 16


def test_s6_8_the_index(house: House) -> None:
    lines = house.http("POST", "/v2/repository/index").answer
    by_name = {(line["name"], line.get("version")): line.get("state") for line in lines}  # type: ignore[attr-defined]
    assert by_name["twice", "1"] == by_name["twice", "2"] == "READY"
    assert ("spare", None) in by_name, "never loaded: its name alone"
    ready = house.http("POST", "/v2/repository/index", {"ready": True}).answer
    assert {line["state"] for line in ready} == {"READY"}  # type: ignore[index]
    assert house.http("POST", "/v2/repository/index", {"ready": "yes"}).http == 400
    told = house.client.ask("RepositoryIndex", ready=True)
    assert len(told.models) == len(ready)


def test_s6_8_load_reload_and_unload(house: House, wire: WireName) -> None:
    def load(**parameters: Any) -> None:
        if wire == "http":
            assert house.http("POST", "/v2/repository/models/spare/load", {"parameters": parameters}).http == 200
        else:
            given = {name: {"string_param": value} for name, value in parameters.items()}
            house.client.ask("RepositoryModelLoad", model_name="spare", parameters=given)

    load()
    load(config='{"max_batch_size": 3}')
    assert house.http("GET", "/v2/models/spare/config").answer["max_batch_size"] == 3
    assert house.infer(wire, "spare", PAIR).answer["outputs"]["y"] == [1.0, 2.0]
    for _ in range(2):  # a second one is answered likewise
        if wire == "http":
            body = {"parameters": {"unload_dependents": False}}
            assert house.http("POST", "/v2/repository/models/spare/unload", body).http == 200
        else:
            house.client.ask("RepositoryModelUnload", model_name="spare")
        eventually(lambda: house.infer(wire, "spare", PAIR).http != 200)
    assert house.call("RepositoryModelUnload", model_name="never")[1].code == "OK"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"other": "1"}, "no such parameter"),
        ({"file:1/model.onnx": "AA=="}, "must bring their configuration"),
        ({"config": "no JSON"}, "JSON"),
        ({"config": "{}", f"file:1/{'a' * 256}": "AA=="}, "over 255 bytes"),
        ({"config": "{}", "file:../../etc/x": "AA=="}, "not a path inside"),
    ],
)
def test_s6_8_a_load_with_a_mistake_changes_nothing(house: House, parameters: Any, words: str) -> None:
    said = house.http("POST", "/v2/repository/models/echo/load", {"parameters": parameters})
    assert (said.http, words in said.text) == (400, True), said.text
    assert house.infer("http", "echo", PAIR).http == 200


def test_s6_8_unload_dependents_is_a_boolean(house: House) -> None:
    body = {"parameters": {"unload_dependents": "yes"}}
    assert house.http("POST", "/v2/repository/models/echo/unload", body).http == 400
    wrong = {"unload_dependents": {"string_param": "yes"}}
    assert house.call("RepositoryModelUnload", model_name="echo", parameters=wrong)[1].code == "INVALID_ARGUMENT"
    assert house.infer("http", "echo", PAIR).http == 200


def test_s6_8_a_model_that_is_not_in_the_repository(house: House) -> None:
    assert house.http("POST", "/v2/repository/models/ghost/load", {}).http == 404
    assert house.call("RepositoryModelLoad", model_name="ghost")[1].code == "NOT_FOUND"


@pytest.mark.parametrize("mode", [ModelControl.NONE, ModelControl.POLL])
def test_s6_8_control_is_closed_unless_explicit(tmp_path: Path, mode: ModelControl) -> None:
    with grpc_serving(small_repository(tmp_path), model_control=mode) as (live, client):
        house = House(live, client)
        for verb in ("load", "unload"):
            assert house.http("POST", f"/v2/repository/models/echo/{verb}", {}).http == 503
        for rpc in ("RepositoryModelLoad", "RepositoryModelUnload"):
            assert house.call(rpc, model_name="echo")[1].code == "UNAVAILABLE"
        for path in ("/v2/logging", "/v2/trace/setting"):
            assert house.http("POST", path, {"log_info": True} if "log" in path else {"trace_rate": "1"}).http == 403
        body = {"key": "/none", "offset": 0, "byte_size": 8}
        assert house.http("POST", "/v2/systemsharedmemory/region/r/register", body).http in (403, 501)


DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def test_s6_9_statistics_count_requests_rows_and_runs(wire: WireName, tmp_path: Path) -> None:
    save(tmp_path / "wide", identity(shape=("batch", "width")))
    with grpc_serving(tmp_path / "wide") as (live, client):
        house = House(live, client)
        house.infer(wire, "wide", tensor([[1.0, 2.0]] * 3))
        house.infer(wire, "wide", tensor([[1.0]], name="z"))
        [told] = house.http("GET", "/v2/models/wide/stats").answer["model_stats"]
        [over_grpc] = client.ask("ModelStatistics", name="wide").model_stats
    assert (told["name"], told["version"]) == ("wide", "1")
    assert (told["inference_count"], told["execution_count"]) == (3, 1)
    assert told["last_inference"] > 1_600_000_000_000
    for name in DURATIONS:
        assert set(told["inference_stats"][name]) == {"count", "ns"}, "also zeros, also as numbers"
        assert isinstance(told["inference_stats"][name]["ns"], int)
    assert told["inference_stats"]["success"]["count"] == told["inference_stats"]["fail"]["count"] == 1
    assert [one["batch_size"] for one in told["batch_stats"]] == [3]
    assert over_grpc.inference_stats.success.ns == told["inference_stats"]["success"]["ns"]
    assert over_grpc.batch_stats[0].compute_infer.ns == told["batch_stats"][0]["compute_infer"]["ns"]


def test_s6_9_cache_hits_and_misses_are_counted(wire: WireName, tmp_path: Path) -> None:
    save(tmp_path / "kept", identity())
    (tmp_path / "kept" / "config.pbtxt").write_text("max_batch_size: 4 response_cache { enable: true }")
    with grpc_serving(tmp_path / "kept") as (live, client):
        house = House(live, client)
        for values in ([[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]], [[3.0, 4.0]]):
            assert house.infer(wire, "kept", tensor(values)).answer["outputs"]["y"] == values[0]
        [told] = house.http("GET", "/v2/models/kept/stats").answer["model_stats"]
        counts = {name: told["inference_stats"][name]["count"] for name in DURATIONS}
        assert (counts["cache_hit"], counts["cache_miss"]) == (2, 2)
        assert counts["success"] == 4, "hits are successes"
        assert counts["compute_infer"] == counts["queue"] == 2, "and are computed by nobody"
        assert (told["inference_count"], told["execution_count"]) == (2, 2)
        assert told["inference_stats"]["cache_hit"]["ns"] > 0
        [over_grpc] = client.ask("ModelStatistics", name="kept").model_stats
        assert (over_grpc.inference_stats.cache_hit.count, over_grpc.inference_stats.cache_miss.count) == (2, 2)
        assert over_grpc.inference_stats.cache_hit.ns == told["inference_stats"]["cache_hit"]["ns"]


@pytest.mark.parametrize("allowed", [LoadOverrides.CONFIG, LoadOverrides.FILES])
def test_s6_8_files_in_a_load(wire: WireName, tmp_path: Path, allowed: LoadOverrides) -> None:
    def load(path: str, content: bytes) -> Said:
        if wire == "http":
            body = {"parameters": {"config": "{}", f"file:{path}": b64encode(content).decode()}}
            return house.http("POST", "/v2/repository/models/net/load", body)
        parameters = {"config": {"string_param": "{}"}, f"file:{path}": {"bytes_param": content}}
        return house.call("RepositoryModelLoad", model_name="net", parameters=parameters)[1]

    def factor() -> Any:
        return house.infer(wire, "net", tensor([[1.0]])).answer["outputs"]["y"]

    save(tmp_path / "net", times(2))
    settings: Any = {"model_control": ModelControl.EXPLICIT, "load_models": ("*",), "load_overrides": allowed}
    with grpc_serving(tmp_path, **settings) as (live, client):
        house = House(live, client)
        if allowed is LoadOverrides.CONFIG:
            load("1/model.onnx", times(7)).must_be("PERMISSION_DENIED", "closed", http=403)
            assert factor() == [2.0]
            return
        load("1/model.onnx", times(7)).must_be("OK")
        assert factor() == [7.0]
        load("1/model.onnx", b"no model").must_be("INVALID_ARGUMENT", "model.onnx")
        load("../model.onnx", b"").must_be("INVALID_ARGUMENT", "not a path inside")
        load("1/model.py", b"raise SystemExit").must_be("PERMISSION_DENIED", "might hold code", http=403)
        assert factor() == [7.0], "what served still does"


def test_s6_11_parameters_reach_the_model_and_come_back(house: House, wire: WireName) -> None:
    values = {"a": 1, "b": "text", "c": True, "d": 1.5, "e": -(1 << 63)}
    said = house.infer(wire, "mirror", tensor([[1.0]]), parameters=values)
    assert said.answer["parameters"] == values
    if wire == "http":
        for wrong in ({"a": {"b": 1}}, {"a": None}, {"a": [1]}):
            house.infer(wire, "mirror", tensor([[1.0]]), parameters=wrong).must_be("INVALID_ARGUMENT")


def test_g15_the_standard_health_check_says_what_server_ready_says(tmp_path: Path) -> None:
    asked = health_message_class("HealthCheckRequest")().SerializeToString()
    kind = health_message_class("HealthCheckResponse")
    for load, status in ((True, 1), (False, 2)):
        with grpc_serving(small_repository(tmp_path), load=load) as (_, client):
            answer = client.raw("Check", "grpc.health.v1.Health")(asked, timeout=20)
            assert kind.FromString(answer).status == status
            assert client.ask("ServerReady").ready is load


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[House, Gate]]:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path, model_control=ModelControl.EXPLICIT, load_models=("gate",)) as (live, client):
        yield House(live, client), gate
        gate.open()


def test_s6_8_unload_returns_at_once_and_what_is_under_way_is_answered(gated: tuple[House, Gate]) -> None:
    house, gate = gated
    call = house.client.begin([[1.0]])
    eventually(lambda: gate.seen() == [1.0])
    assert house.http("POST", "/v2/repository/models/gate/unload", {}).http == 200
    lines: Any = house.http("POST", "/v2/repository/index").answer
    assert [line["state"] for line in lines] == ["UNLOADING"]
    gate.open()
    assert call.result()
    eventually(lambda: house.live.post("/v2/repository/index").json[0].get("state") == "UNAVAILABLE")
