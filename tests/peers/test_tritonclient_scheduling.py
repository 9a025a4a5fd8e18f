"""Triton's own clients meet the response cache, priorities, the rate limiter and changed instances, on both wires."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from tests.models import save, tiny_mlp
from tests.serving import serve_process

CLIENTS = {"http": pytest.importorskip("tritonclient.http"), "grpc": pytest.importorskip("tritonclient.grpc")}
ClientError = pytest.importorskip("tritonclient.utils").InferenceServerException

LIMITED = """max_batch_size: 8 instance_group {{ count: {count} kind: KIND_CPU
  rate_limiter {{ priority: {priority} resources [ {{ name: "cores" count: 1 }} ] }} }}"""
OPTIONS = ("--rate-limit", "execution_count", "--rate-limit-resource", "cores:2:0", "--cache-config", "local,size=2048")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    configs = {
        "cached_http": "response_cache { enable: true }",
        "cached_grpc": "response_cache { enable: true }",
        "levels": "max_batch_size: 8 dynamic_batching { priority_levels: 2 default_priority_level: 2 "
        "default_queue_policy { default_timeout_microseconds: 10000000 allow_timeout_override: true } }",
        "first": LIMITED.format(count=1, priority=1),
        "second": LIMITED.format(count=2, priority=2),
    }
    for name, config in configs.items():
        save(models / name, tiny_mlp())
        (models / name / "config.pbtxt").write_text(config)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serve_process(folder, models, grpc=("--grpc", "127.0.0.1:0", *explicit, *OPTIONS)):
        yield json.loads((folder / "ready.json").read_text())


class Asker:
    """One of Triton's clients."""

    def __init__(self, wire: str, address: str) -> None:
        self.wire = wire
        self._module = CLIENTS[wire]
        self.client = self._module.InferenceServerClient(address)

    def ask(self, model: str, value: float, **settings: Any) -> Any:
        tensor = self._module.InferInput("x", [1, 32], "FP32")
        tensor.set_data_from_numpy(np.full((1, 32), value, np.float32))
        return self.client.infer(model, [tensor], **settings)

    def stats(self, model: str) -> dict[str, int]:
        if self.wire == "http":
            [one] = self.client.get_inference_statistics(model)["model_stats"]
        else:
            [one] = self.client.get_inference_statistics(model, as_json=True)["model_stats"]
        found = one["inference_stats"]
        counts = {name: int(found.get(name, {}).get("count", 0)) for name in ("cache_hit", "cache_miss", "success")}
        return {**counts, "executions": int(one.get("execution_count", 0))}

    def close(self) -> None:
        self.client.close()


@pytest.fixture(params=["http", "grpc"])
def asker(request: pytest.FixtureRequest, addresses: dict[str, str]) -> Iterator[Asker]:
    with closing(Asker(request.param, addresses[request.param])) as client:
        yield client


def test_an_equal_request_is_a_hit_and_answers_the_same(asker: Asker) -> None:
    model = f"cached_{asker.wire}"
    first, again = asker.ask(model, 1, request_id="a"), asker.ask(model, 1, request_id="b")
    np.testing.assert_array_equal(first.as_numpy("y"), again.as_numpy("y"))
    response = again.get_response()
    assert (response["id"] if asker.wire == "http" else response.id) == "b"
    assert asker.stats(model) == {"cache_hit": 1, "cache_miss": 1, "success": 2, "executions": 1}
    asker.ask(model, 2)
    asker.ask(model, 1)
    asker.ask(model, 2)
    assert asker.stats(model)["cache_hit"] == 1, "there is room for one answer"


def test_the_configuration_shows_the_cache_to_perf_analyzer(asker: Asker) -> None:
    if asker.wire == "http":
        assert asker.client.get_model_config("cached_http")["response_cache"]["enable"] is True
    else:
        assert asker.client.get_model_config("cached_grpc").config.response_cache.enable


def test_priorities_and_timeouts_are_taken(asker: Asker) -> None:
    for priority in (0, 1, 2, 7):
        assert asker.ask("levels", 1, priority=priority, timeout=5_000_000).as_numpy("y").shape == (1, 8)


def test_models_that_share_a_resource_all_get_their_turns(addresses: dict[str, str], asker: Asker) -> None:
    def many(model: str) -> list[float]:
        with closing(Asker(asker.wire, addresses[asker.wire])) as own:
            return [float(own.ask(model, n).as_numpy("y")[0, 0]) for n in range(25)]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(many, ["first", "second"] * 3))
    assert all(one == found[0] for one in found)


def test_instances_change_while_requests_run(addresses: dict[str, str], asker: Asker) -> None:
    runs = asker.stats("second")["executions"]

    def many(number: int) -> int:
        with closing(Asker(asker.wire, addresses[asker.wire])) as own:
            return len([own.ask("second", n) for n in range(40)])

    with ThreadPoolExecutor(3) as pool:
        load = pool.map(many, range(3))
        for count in (4, 1, 3):
            group = {"count": count, "kind": "KIND_CPU"}
            config = {"max_batch_size": 8, "instance_group": [group]}
            asker.client.load_model("second", config=json.dumps(config))
            assert asker.client.is_model_ready("second")
            if asker.wire == "http":
                assert asker.client.get_model_config("second")["instance_group"][0]["count"] == count
        assert list(load) == [40] * 3
    assert asker.stats("second")["executions"] > runs


def test_more_than_there_is_of_a_resource_is_refused(asker: Asker) -> None:
    group = {"rate_limiter": {"resources": [{"name": "cores", "count": 3}]}}
    with pytest.raises(ClientError, match="wants 3 of resource `cores`; there are 2"):
        asker.client.load_model("first", config=json.dumps({"instance_group": [group]}))
    assert asker.ask("first", 1).as_numpy("y").shape == (1, 8)
