"""Section 6.12: what clients see of scheduling, warm-up and reloading. How it is decided has its tests in `batching`."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.models import identity, save
from tests.server.checklist.house import House, WireName, tensor
from tests.server.test_grpc import Client, grpc_serving
from tests.serving import Gate, Live, eventually, infer_json, serving

from farthing.config.server import ModelControl, RateLimit, SchedulingSettings
from farthing.protocols.kserve_grpc import message_class


def runs(live: Live, model: str) -> tuple[int, int]:
    """Rows and runs so far."""
    [told] = live.get(f"/v2/models/{model}/stats").json["model_stats"]
    return told["inference_count"], told["execution_count"]


def together(client: Client, model: str, requests: int) -> None:
    calls = [client.begin([[float(n), 0.0]], model) for n in range(requests)]
    for call in calls:
        call.result()


def test_s6_12_a_batch_leaves_at_a_preferred_size(tmp_path: Path) -> None:
    save(tmp_path / "patient", identity())
    (tmp_path / "patient" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 20000000 }"
    )
    with grpc_serving(tmp_path / "patient") as (live, client):
        together(client, "patient", 4)
        assert runs(live, "patient") == (4, 1)


def test_s6_12_a_lonely_request_leaves_after_its_delay(tmp_path: Path) -> None:
    save(tmp_path / "patient", identity())
    (tmp_path / "patient" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 30000 }"
    )
    with serving(tmp_path / "patient") as live:
        reply = live.infer("patient", [[1.0, 2.0]])
        waited_ms = float(reply.headers["server-timing"].split("queue;dur=")[1].split(",")[0])
        assert waited_ms >= 29.0
        assert runs(live, "patient") == (1, 1)


def test_s6_12_requests_of_other_shapes_are_not_joined(tmp_path: Path) -> None:
    save(tmp_path / "wide", identity(shape=("batch", "width")))
    (tmp_path / "wide" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 50000 }"
    )
    with grpc_serving(tmp_path / "wide") as (live, client):
        calls = [client.begin([row], "wide") for row in ([1.0], [1.0, 2.0], [3.0, 4.0])]
        for call in calls:
            call.result()
        assert runs(live, "wide") == (3, 2)


def test_s6_12_a_model_without_dynamic_batching_batches_where_that_pays(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate" / "1", "model")
    (tmp_path / "gate" / "config.pbtxt").write_text("max_batch_size: 4")
    with grpc_serving(tmp_path / "gate") as (live, client):
        calls = [client.begin([[1.0]])]
        eventually(lambda: gate.seen() == [1.0])
        calls += [client.begin([[float(n)]]) for n in (2, 3, 4)]
        eventually(lambda: live.metric("nv_inference_pending_request_count") == 3)
        gate.open()
        for call in calls:
            call.result()
        rows, executions = runs(live, "gate")
        assert rows == 4
        assert executions < 4


def test_s6_12_a_model_that_must_not_batch_does_not(tmp_path: Path) -> None:
    save(tmp_path / "alone", identity())
    (tmp_path / "alone" / "config.pbtxt").write_text("max_batch_size: 1")
    with grpc_serving(tmp_path / "alone") as (live, client):
        together(client, "alone", 3)
        assert runs(live, "alone") == (3, 3)


LIMITED = """
max_batch_size: 4
instance_group { kind: KIND_CPU rate_limiter { resources [ { name: "licence" global: true count: 1 } ] } }
"""


@pytest.mark.parametrize("rate_limit", [RateLimit.EXECUTION_COUNT, RateLimit.OFF])
def test_s6_12_an_instance_runs_only_when_its_resources_are_free(
    tmp_path: Path, wire: WireName, rate_limit: RateLimit
) -> None:
    gate = Gate(tmp_path / "gate" / "1", "model")
    save(tmp_path / "echo", identity())
    for name in ("gate", "echo"):
        (tmp_path / name / "config.pbtxt").write_text(LIMITED)
    with grpc_serving(tmp_path, scheduling=SchedulingSettings(rate_limit=rate_limit)) as (live, client):
        house = House(live, client)
        holder = client.begin([[1.0]])
        eventually(lambda: gate.seen() == [1.0])
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(house.infer, wire, "echo", tensor([[1.0, 2.0]]))
            if rate_limit is RateLimit.OFF:
                assert other.result(20).answer["outputs"]["y"] == [1.0, 2.0]
            else:
                eventually(lambda: live.metric("nv_inference_pending_request_count", model="echo") == 1)
                assert runs(live, "echo") == (0, 0)
            gate.open()
            assert holder.result()
            assert other.result(20).answer["outputs"]["y"] == [1.0, 2.0]
        assert runs(live, "echo") == (1, 1)


REPEAT = """
    import numpy as np
    from farthing import Tensor

    class Repeat:
        inputs = [Tensor("IN", "INT32", [-1])]
        outputs = [Tensor("OUT", "INT32", [1]), Tensor("IDX", "UINT32", [1])]

        def infer(self, inputs):
            for index, value in enumerate(inputs["IN"]):
                yield {"OUT": np.array([value], np.int32), "IDX": np.array([index], np.uint32)}
"""


@pytest.mark.parametrize("values", [[4, 2, 0, 1], [], [7]])
def test_s6_12_a_model_that_repeats_answers_once_for_each_element(
    tmp_path: Path, wire: WireName, values: list[int]
) -> None:
    (tmp_path / "repeat" / "1").mkdir(parents=True)
    (tmp_path / "repeat" / "1" / "model.py").write_text(dedent(REPEAT))
    with grpc_serving(tmp_path) as (live, client):
        assert live.get("/v2/models/repeat/config").json["model_transaction_policy"]["decoupled"] is True
        repeat = repeat_over_http if wire == "http" else repeat_over_grpc
        assert repeat(live, client, values) == list(enumerate(values))


def repeat_over_http(live: Live, _: Client, values: list[int]) -> list[tuple[int, int]]:
    reply = live.post("/v2/models/repeat/generate_stream", json.dumps({"IN": values}).encode())
    assert reply.status == 200
    events = [json.loads(line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    return [(event["IDX"], event["OUT"]) for event in events]


def repeat_over_grpc(_: Live, client: Client, values: list[int]) -> list[tuple[int, int]]:
    message = message_class("ModelInferRequest")(
        model_name="repeat",
        parameters={"triton_enable_empty_final_response": {"bool_param": True}},
        inputs=[{"name": "IN", "datatype": "INT32", "shape": [len(values)]}],
        raw_input_contents=[np.array(values, "<i4").tobytes()],
    )
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    found: list[tuple[int, int]] = []
    for data in stream(iter([message.SerializeToString()]), timeout=20):
        told = message_class("ModelStreamInferResponse").FromString(data)
        assert not told.error_message
        if raw := told.infer_response.raw_output_contents:
            [value], [index] = np.frombuffer(raw[0], "<i4"), np.frombuffer(raw[1], "<u4")
            found.append((int(index), int(value)))
        if told.infer_response.parameters["triton_final_response"].bool_param:
            break
    return found


SLOW_TO_WARM = """
    import time
    from pathlib import Path

    from farthing import Tensor

    class Slow:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 4

        def infer(self, inputs):
            while not (Path(__file__).parent / "warm").exists():
                time.sleep(0.002)
            return {"y": inputs["x"]}
"""


def test_s6_12_a_model_is_not_ready_before_it_is_warm(tmp_path: Path, wire: WireName) -> None:
    folder = tmp_path / "slow"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(dedent(SLOW_TO_WARM))
    (folder / "config.pbtxt").write_text(
        'model_warmup [ { name: "w" batch_size: 1 '
        'inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } } } ]'
    )
    with grpc_serving(folder, model_control=ModelControl.EXPLICIT) as (live, client):
        house = House(live, client)
        post = live.connect().send(
            b"POST /v2/repository/models/slow/load HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        )

        def state() -> Any:
            lines: Any = house.http("POST", "/v2/repository/index").answer
            return lines[0].get("state")

        eventually(lambda: state() == "LOADING")
        house.infer(wire, "slow", tensor([[1.0]])).must_be("UNAVAILABLE")
        assert not client.ask("ModelReady", name="slow").ready
        (folder / "1" / "warm").touch()
        assert post.read_reply().status == 200
        assert house.infer(wire, "slow", tensor([[1.0]])).answer["outputs"]["y"] == [1.0]


def test_s6_12_while_a_model_is_loaded_again_the_old_one_answers_and_a_failure_leaves_it(tmp_path: Path) -> None:
    save(tmp_path / "echo", identity())
    with serving(tmp_path, model_control=ModelControl.EXPLICIT, load_models=("echo",)) as live:
        (tmp_path / "echo" / "1" / "model.onnx").write_bytes(b"no model")
        reply = live.post("/v2/repository/models/echo/load", json.dumps({}).encode())
        assert reply.status >= 400
        assert live.post("/v2/models/echo/infer", infer_json([[1.0, 2.0]])).status == 200
