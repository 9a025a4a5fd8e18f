"""Models of one name in two repositories: who is asked, by clients, ensembles, pipelines and Python models."""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import grpc
import pytest
import tritonclient.grpc.service_pb2 as theirs_pb2
from tests.models import save
from tests.runtime.shop import Shop, times
from tests.server.test_grpc import Client, grpc_serving
from tests.serving import Live, eventually, serve_process, serving

from farthing.config.server import LoadOverrides, ModelControl

ENSEMBLE = """
platform: "ensemble"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1, 1 ] }} ]
ensemble_scheduling {{ step [ {{ model_name: "net" model_version: -1 {more}
  input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }} }} ] }}
"""
PIPELINE = """
inputs = ["x"]
outputs = ["y"]
[[step]]
model = "net"
inputs = { x = "x" }
outputs = { y = "y" }
"""
FAR = """
from farthing import Pipeline

p = Pipeline()
p.output("y", p.step("net", x=p.input("x"), namespace="{folder}")["y"])
"""
ASKER = """
    from farthing import Tensor

    class Asker:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]

        def load(self, context):
            self.net = context.models["net"]

        def infer(self, inputs):
            return {"y": self.net({"x": inputs["x"]})["y"]}
"""


class Pair:
    """Repositories `a`, where `net` doubles, and `b`, where it triples; each has models that ask `net`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.a, self.b = Shop(folder / "a"), Shop(folder / "b")
        self.a.put("net", 2)
        self.b.put("net", 3)
        self.a.put("only", 7)
        self.a.configure("ensemble_a", ENSEMBLE.format(more=""))
        self.b.configure("ensemble_b", ENSEMBLE.format(more=""))
        self.b.configure("abroad", ENSEMBLE.format(more=f'model_namespace: "{self.a.folder}"'))
        (self.b.folder / "far").mkdir()
        (self.b.folder / "far" / "pipeline.py").write_text(FAR.format(folder=self.a.folder))
        (self.b.folder / "chain").mkdir()
        (self.b.folder / "chain" / "pipeline.toml").write_text(PIPELINE)

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.a.folder, self.b.folder


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Live, Client]]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    (pair.b.folder / "asker" / "1").mkdir(parents=True)
    (pair.b.folder / "asker" / "1" / "model.py").write_text(dedent(ASKER))
    with grpc_serving(*pair.folders, has_namespaces=True) as (live, client):
        yield pair, live, client


def value(live: Live, name: str) -> float:
    reply = live.infer(name, [[1.0]])
    assert reply.status == 200, reply.error
    return float(reply.json["outputs"][0]["data"][0])


@pytest.mark.parametrize(
    ("model", "factor"),
    [("only", 7), ("ensemble_a", 2), ("ensemble_b", 3), ("abroad", 2), ("chain", 3), ("far", 2), ("asker", 3)],
)
def test_a_model_s_neighbour_is_asked_first(shared: tuple[Pair, Live, Client], model: str, factor: float) -> None:
    _, live, client = shared
    assert value(live, model) == factor
    assert client.begin([[1.0]], model).result()


def test_a_client_is_told_where_a_name_is(shared: tuple[Pair, Live, Client]) -> None:
    pair, live, client = shared
    replies = [
        live.infer("net", [[1.0]]),
        *(live.get(f"/v2/models/net{rest}") for rest in ("", "/ready", "/config", "/stats", "/versions/1")),
    ]
    for reply in replies:
        assert reply.status == 400
        assert all(str(folder) in reply.error for folder in pair.folders), reply.error
    for method, fields in (("ModelMetadata", "name"), ("ModelConfig", "name"), ("ModelStatistics", "name")):
        with pytest.raises(grpc.RpcError) as refused:
            client.ask(method, **{fields: "net"})
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_index_statistics_and_metrics_know_both(shared: tuple[Pair, Live, Client]) -> None:
    pair, live, client = shared
    lines = [line for line in live.post("/v2/repository/index").json if line["name"] == "net"]
    assert [line["namespace"] for line in lines] == sorted(map(str, pair.folders))
    assert {line["state"] for line in lines} == {"READY"}
    assert _namespaces(client.ask("RepositoryIndex").models) == sorted(map(str, pair.folders))
    before = [live.metric("nv_inference_count", model="net", namespace=str(folder)) for folder in pair.folders]
    value(live, "ensemble_b")
    after = [live.metric("nv_inference_count", model="net", namespace=str(folder)) for folder in pair.folders]
    assert [now - then for now, then in zip(after, before, strict=True)] == [0, 1]
    counts = {
        one["namespace"]: one["inference_count"]
        for one in live.get("/v2/models/stats").json["model_stats"]
        if one["name"] == "net"
    }
    assert [counts[str(folder)] for folder in pair.folders] == after
    lines = client.ask("ModelStatistics").model_stats
    assert {one.namespace: one.inference_count for one in lines if one.name == "net"} == counts
    theirs = theirs_pb2.ModelStatisticsResponse.FromString(client.ask("ModelStatistics").SerializeToString())
    assert [one.name for one in theirs.model_stats].count("net") == 2, "Triton's client passes over our field"


def _namespaces(lines: Any) -> list[str]:
    return sorted(line.namespace for line in lines if line.name == "net")


def test_without_the_flag_both_are_unavailable(pair: Pair) -> None:
    with serving(*pair.folders) as live:
        assert live.get("/v2/models/net/ready").status == 503
        assert "two models are called `net`" in live.get("/v2/models/net/ready").error
        assert value(live, "only") == 7
        lines = live.post("/v2/repository/index").json
        assert not any("namespace" in line for line in lines)
        assert "namespace=" not in live.get("/metrics").body.decode()


def test_a_name_that_is_no_longer_in_two_repositories_is_clear_again(pair: Pair) -> None:
    with serving(*pair.folders, has_namespaces=True, model_control=ModelControl.POLL, poll_s=3600) as live:
        assert live.server is not None
        assert live.infer("net", [[1.0]]).status == 400
        (pair.b.folder / "net" / "1" / "model.onnx").unlink()
        (pair.b.folder / "net" / "1").rmdir()
        (pair.b.folder / "net").rmdir()
        live.run(live.server.runtime.look_again())
        eventually(lambda: live.infer("net", [[1.0]]).status == 200)
        assert value(live, "net") == 2
        assert value(live, "ensemble_b") == 2, "there is but one left"
        pair.b.put("net", 5)
        live.run(live.server.runtime.look_again())
        assert live.infer("net", [[1.0]]).status == 400
        assert (value(live, "ensemble_a"), value(live, "ensemble_b")) == (2, 5)


def test_explicit_loads_and_unloads_are_of_all_that_have_the_name(pair: Pair) -> None:
    explicit = {"model_control": ModelControl.EXPLICIT, "load_overrides": LoadOverrides.FILES}
    with serving(*pair.folders, has_namespaces=True, load_models=("ensemble_b",), **explicit) as live:

        def control(name: str, verb: str, **parameters: str) -> int:
            body = json.dumps({"parameters": parameters}).encode()
            return live.post(f"/v2/repository/models/{name}/{verb}", body).status

        def states() -> dict[str, str]:
            lines = live.post("/v2/repository/index").json
            return {line["namespace"]: line.get("state", "") for line in lines if line["name"] == "net"}

        a, b = map(str, pair.folders)
        assert states() == {a: "", b: "READY"}, "what an ensemble needs is loaded, not its namesake"
        assert value(live, "ensemble_b") == 3
        assert control("ensemble_a", "load") == 200
        assert states() == {a: "READY", b: "READY"}
        assert control("net", "unload") == 200
        eventually(lambda: states() == {a: "UNAVAILABLE", b: "UNAVAILABLE"})
        assert control("net", "load") == 200
        assert states() == {a: "READY", b: "READY"}
        assert control("net", "load", config="{}") == 400, "whose?"
        assert control("only", "load", config='{"max_batch_size": 2}') == 200
        assert live.get("/v2/models/only/config").json["max_batch_size"] == 2


def test_a_circle_through_a_namesake_is_none(pair: Pair) -> None:
    """In `c`, `net` is an ensemble that asks the `net` of `a`."""
    c = Shop(pair.a.folder.parent / "c")
    c.configure("net", ENSEMBLE.format(more=f'model_namespace: "{pair.a.folder}"'))
    c.configure("outer", ENSEMBLE.format(more=""))
    with serving(pair.a.folder, c.folder, has_namespaces=True) as live:
        assert value(live, "outer") == 2


def test_a_step_in_no_such_repository_is_told_at_load(pair: Pair) -> None:
    pair.b.configure("lost", ENSEMBLE.format(more='model_namespace: "/nowhere"'))
    with serving(*pair.folders, has_namespaces=True) as live:
        assert "'net' is not found in /nowhere" in live.get("/v2/models/lost/ready").error


def test_models_of_one_name_make_room_for_each_other(pair: Pair) -> None:
    for shop, factor in ((pair.a, 2.0), (pair.b, 3.0)):
        shop.put_heavy("net", factor, 8)
    with serving(*pair.folders, has_namespaces=True, model_memory_bytes=14 << 20) as live:
        values = [value(live, name) for name in ("ensemble_a", "ensemble_b", "ensemble_a")]
        assert values == pytest.approx([2, 3, 2], rel=1e-5)
        lines = live.post("/v2/repository/index").json
        assert sorted(line["state"] for line in lines if line["name"] == "net") == ["READY", "UNAVAILABLE"]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder, factor in (("a", 2), ("b", 3)):
        save(tmp_path / folder, times(factor))
    with serving(*(tmp_path / one / "1" / "model.onnx" for one in "ab"), has_namespaces=True) as live:
        assert (value(live, "a"), value(live, "b")) == (2, 3)


def test_the_command_line_opens_it_and_says_which_is_which(pair: Pair) -> None:
    a, b = pair.folders
    folder = a.parent
    with serve_process(folder, "--repository", a, "--repository", b, "--model-namespacing") as live:
        assert (value(live, "ensemble_a"), value(live, "ensemble_b")) == (2, 3)
        assert live.infer("net", [[1.0]]).status == 400
        assert live.log is not None
        words = live.log
        eventually(lambda: "try it:" in words.read_text())
        told = words.read_text()
        assert f"{a}/net v1" in told
        assert f"{b}/net v1" in told
        assert "/v2/models/net/infer" not in told.partition("try it:")[2], "a call that works"
