"""More models than memory, asked over HTTP and gRPC by clients that know nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.runtime.shop import Shop
from tests.serving import Live, infer_json, serve_process

from farthing.runtime.resting import RESTING

BUDGET = "24MiB"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of three models with room for two."""
    folder = tmp_path_factory.mktemp("crowded")
    shop = Shop(folder / "shop")
    for factor, name in enumerate("abc", 1):
        shop.put_heavy(name, factor, 8)
    with serve_process(folder, shop.folder, "--model-memory", BUDGET, grpc=("--grpc", "127.0.0.1:0")) as live:
        yield live


def resting(live: Live) -> str:
    lines = live.post("/v2/repository/index").json
    [name] = [line["name"] for line in lines if line["state"] == "UNAVAILABLE" and line["reason"] == RESTING]
    assert isinstance(name, str)
    return name


def test_a_resting_model_is_ready_and_describes_itself_and_answers_when_asked(crowded: Live) -> None:
    name = resting(crowded)
    before = crowded.metric("farthing_model_loads", model=name, version="1")
    assert crowded.get("/v2/health/ready").status == 200
    for path in ("", "/ready", "/config", "/stats", "/versions/1"):
        assert crowded.get(f"/v2/models/{name}{path}").status == 200
    assert crowded.metric("farthing_model_loads", model=name, version="1") == before, "looking loads nothing"
    with tritonclient.http.InferenceServerClient(crowded.netloc) as client:
        assert client.is_model_ready(name)
        wanted = tritonclient.http.InferInput("x", [1, 1], "FP32")
        wanted.set_data_from_numpy(np.full((1, 1), 2, np.float32))
        [[value]] = client.infer(name, [wanted]).as_numpy("y")
    assert value == pytest.approx(2 * ("abc".index(name) + 1))
    assert crowded.metric("farthing_model_loads", model=name, version="1") == before + 1
    assert resting(crowded) != name
    assert crowded.metric("farthing_models_memory_budget_bytes") == 24 << 20
    assert 16 << 20 < crowded.metric("farthing_models_memory_bytes") <= 24 << 20
    assert crowded.metric("farthing_model_evictions", model=resting(crowded), version="1") >= 1


def test_a_request_without_the_time_is_told_when_to_come_back_and_then_answered(crowded: Live) -> None:
    name = resting(crowded)
    reply = crowded.infer(name, [[1.0]], parameters={"timeout": 1})
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert crowded.infer(name, [[1.0]]).status == 200


def test_a_request_that_does_not_fit_loads_nothing(crowded: Live) -> None:
    name = resting(crowded)
    assert crowded.infer(name, [["text"]], datatype="BYTES").status == 400
    assert crowded.post(f"/v2/models/{name}/infer", infer_json([[1.0]], name="nobody")).status == 400
    assert resting(crowded) == name


def test_grpc_clients_wake_a_model_by_call_and_by_stream(crowded: Live) -> None:
    address = (crowded.log.parent / "ready.json") if crowded.log else Path()
    import json

    where = json.loads(address.read_text())["grpc"]
    with tritonclient.grpc.InferenceServerClient(where) as client:
        name = resting(crowded)
        assert client.is_model_ready(name)
        wanted = tritonclient.grpc.InferInput("x", [1, 1], "FP32")
        wanted.set_data_from_numpy(np.ones((1, 1), np.float32))
        assert client.infer(name, [wanted]).as_numpy("y")[0, 0] == pytest.approx("abc".index(name) + 1)
        name = resting(crowded)
        answers: list[tuple[object, object]] = []
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer(name, [wanted])
        client.stop_stream()
        [(result, error)] = answers
        assert error is None
        assert result.as_numpy("y")[0, 0] == pytest.approx("abc".index(name) + 1)  # type: ignore[attr-defined]
        name = resting(crowded)
        with pytest.raises(tritonclient.grpc.InferenceServerException) as told:
            client.infer(name, [wanted], client_timeout=0.0005)
        assert told.value.status() == str(grpc.StatusCode.DEADLINE_EXCEEDED)
