"""Streams of frames over `ModelStreamInfer`, with grpcio and with Triton's client."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.server.test_grpc import Client, grpc_serving
from tests.server.test_grpc_streams import Talk, asking, is_final, values_of
from tests.serving import Gate, Live, eventually, small_repository

LATEST = (("farthing-stream-policy", "latest"),)
WAIT_S = 20.0


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Live, Client, Gate]]:
    gate = Gate(tmp_path / "gate")
    with grpc_serving(gate.path, small_repository(tmp_path / "models")) as (live, client):
        yield live, client, gate
        gate.open()


def frame(value: float, id: str = "") -> Any:
    return asking([[value]], "gate", id)


def said(answer: Any) -> dict[str, Any]:
    assert not answer.error_message
    parameters = answer.infer_response.parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


def summary_of(talk: Talk, model: str = "gate") -> dict[str, Any]:
    asked = asking([[0]], model)
    del asked.inputs[:]
    asked.parameters["frame_summary"].bool_param = True
    return said(talk.put(asked).get())


def test_dropped_frames_are_answers_in_their_turn_and_no_errors(gated: tuple[Live, Client, Gate]) -> None:
    _, client, gate = gated
    talk = Talk(client, metadata=LATEST).put(frame(1, "a"))
    eventually(lambda: gate.seen() == [1])
    talk.put(frame(2, "b"), frame(3, "c"))
    eventually(lambda: gated[0].metric("farthing_frames_dropped_total", model="gate", reason="superseded") == 1)
    gate.open()
    answers = [talk.get() for _ in range(3)]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]
    assert [said(answer)["frame_status"] for answer in answers] == ["ok", "dropped", "ok"]
    assert [said(answer)["frame"] for answer in answers] == [1, 2, 3]
    assert said(answers[1])["frame_reason"] == "superseded"
    assert not answers[1].infer_response.outputs
    assert all(is_final(answer) for answer in answers)
    assert [values_of(answers[at])[0] for at in (0, 2)] == [1, 3]
    told = summary_of(talk)
    assert (told["frame_received"], told["frame_on_time"], told["frame_dropped_superseded"]) == (3, 2, 1)
    assert talk.end().rest() == []


def test_late_frames_are_dropped_before_they_run(gated: tuple[Live, Client, Gate]) -> None:
    live, client, gate = gated
    metadata = (("farthing-stream-policy", "all"), ("farthing-frame-deadline-ms", "60"))
    talk = Talk(client, metadata=metadata).put(frame(1))
    eventually(lambda: gate.seen() == [1])
    talk.put(frame(2)).end()
    eventually(lambda: live.metric("farthing_frames_dropped_total", model="gate", reason="late") == 1)
    gate.open()
    first, second = (said(answer) for answer in talk.rest())
    assert (first["frame_status"], first["frame_on_time"]) == ("ok", False)
    assert (second["frame_status"], second["frame_reason"]) == ("dropped", "late")
    assert gate.seen() == [1]


def test_one_call_may_stream_to_several_models_and_survives_bad_frames(gated: tuple[Live, Client, Gate]) -> None:
    _, client, _ = gated
    talk = Talk(client, metadata=(("farthing-stream-policy", "all"),))
    talk.put(asking([[1, 2]], "echo"), asking([[1, 2, 3]], "echo"), asking([[1]], "nobody"), asking([[3, 4]], "echo"))
    talk.put(asking([[0.5] * 32], "mlp")).end()
    answers = talk.rest()
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False, False]
    assert [said(answers[at])["frame"] for at in (0, 3, 4)] == [1, 3, 1]


@pytest.mark.parametrize(
    "metadata",
    [
        ("farthing-stream-policy", "best"),
        ("farthing-frame-deadline-ms", "-1"),
        ("farthing-frame-queue-max", "1000"),
    ],
)
def test_bad_metadata_ends_the_call(gated: tuple[Live, Client, Gate], metadata: tuple[str, str]) -> None:
    talk = Talk(gated[1], metadata=(metadata,))
    with pytest.raises(grpc.RpcError) as refused:
        talk.put(frame(1)).get()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_call_that_is_cancelled_takes_its_frames_along(gated: tuple[Live, Client, Gate]) -> None:
    live, client, gate = gated
    talk = Talk(client, metadata=(("farthing-stream-policy", "all"),)).put(frame(1), frame(2))
    eventually(lambda: gate.seen() == [1])
    eventually(lambda: live.metric("farthing_frames_received_total", model="gate") == 2)
    talk.call.cancel()
    eventually(lambda: live.metric("farthing_frames_dropped_total", model="gate", reason="gone") == 2)
    assert live.metric("farthing_frame_streams_open", model="gate") == 0
    assert live.server is not None
    admission = live.server._admission
    eventually(lambda: admission.bytes == 0)


def test_tritons_client_streams_frames(gated: tuple[Live, Client, Gate]) -> None:
    live, _, _ = gated
    assert live.server is not None
    assert live.server.grpc is not None
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with triton.InferenceServerClient(f"127.0.0.1:{live.server.grpc.port}") as client:
        client.start_stream(
            lambda result, error: answers.put(error or result), headers={"farthing-stream-policy": "latest"}
        )
        for number in range(50):
            value = triton.InferInput("x", [1, 2], "FP32")
            value.set_data_from_numpy(np.array([[number, 0]], np.float32))
            client.async_stream_infer("echo", [value], request_id=str(number))
        results = [answers.get(timeout=WAIT_S) for _ in range(50)]
        client.stop_stream()
    assert [result.get_response().id for result in results] == [str(number) for number in range(50)]
    status = [result.get_response().parameters["frame_status"].string_param for result in results]
    assert set(status) <= {"ok", "dropped"}
    for number, result in enumerate(results):
        if status[number] == "ok":
            assert result.as_numpy("y")[0, 0] == number
    assert status[-1] == "ok", "the latest always wins"
