"""Models that answer zero, one or many times, over gRPC streams and server-sent events, with Triton's own client."""

import asyncio
import json
import queue
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import grpc
import httpx2 as httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tests.models import identity, save
from tests.server.test_frame_sockets import HANDSHAKE
from tests.server.test_grpc import Client, drained, failure, grpc_serving
from tests.server.test_grpc_streams import Talk
from tests.serving import WAIT_S, Live, eventually, infer_json, request

from farthing.protocols.kserve_grpc import message_class
from farthing.protocols.sse import Reader

FINAL = "triton_final_response"

REPEAT = '''
"""Answers each element of IN after its DELAY (ms) from a thread; `execute` returns after WAIT (ms)."""
import threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        import json
        assert pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))

    def execute(self, requests):
        for request in requests:
            values, delays, wait = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT")
            )
            thread = threading.Thread(target=self.answer, args=(request.get_response_sender(), values, delays))
            thread.daemon = True
            thread.start()
            time.sleep(int(wait[0]) / 1000)

    def answer(self, sender, values, delays):
        for index, (value, delay) in enumerate(zip(values, delays)):
            time.sleep(int(delay) / 1000)
            out = pb_utils.Tensor("OUT", np.array([value], np.int32))
            sender.send(pb_utils.InferenceResponse([out, pb_utils.Tensor("IDX", np.array([index], np.uint32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''
REPEAT_CONFIG = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] } ]
"""
SQUARE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            [[n]] = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            for _ in range(n):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[n]], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SQUARE_CONFIG = """
backend: "python"
max_batch_size: 8
dynamic_batching { max_queue_delay_microseconds: 20000 }
model_transaction_policy { decoupled: true }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
model_warmup [ { name: "three" batch_size: 1 inputs { key: "IN" value { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } } } ]
"""
TALE = """
import asyncio, os
from pathlib import Path
import numpy as np
from farthing import Tensor
from farthing.types.errors import InvalidInput

class Tale:
    inputs = [Tensor("kind", "BYTES", [1]), Tensor("n", "INT32", [1], optional=True)]
    outputs = [Tensor("word", "BYTES", [1]), Tensor("data", "UINT8", [-1])]

    async def infer(self, inputs, request):
        kind = inputs["kind"][0].decode()
        n = int(inputs.get("n", [0])[0])
        if kind == "bad":
            raise InvalidInput("no such tale")
        yield {"word": [kind]}
        if kind == "fails":
            raise RuntimeError("the tale broke off")
        if kind == "crashes":
            os._exit(7)
        if kind == "large":
            for i in range(n):
                yield {"word": [str(i)], "data": np.zeros(1 << 18, np.uint8)}
                Path(__file__).with_name("made").write_text(str(i))
        if kind == "endless":
            try:
                await asyncio.sleep(3600)
            finally:
                with Path(__file__).with_name("closed").open("a") as file:
                    file.write("x")
"""


def repository(folder: Path) -> Path:
    for name, code, config in (
        ("repeat", REPEAT, REPEAT_CONFIG),
        ("square", SQUARE, SQUARE_CONFIG),
        ("tale", TALE, ""),
    ):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(dedent(code))
        if config:
            (folder / name / "config.pbtxt").write_text(config)
    save(folder / "echo", identity())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("decoupled"))


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[tuple[Live, Client]]:
    with grpc_serving(folder) as pair:
        yield pair


@pytest.fixture
def live(both: tuple[Live, Client]) -> Live:
    return both[0]


@pytest.fixture
def client(both: tuple[Live, Client]) -> Client:
    return both[1]


def events(live: Live, model: str, **members: Any) -> list[Any]:
    reply = live.post(f"/v2/models/{model}/generate_stream", json.dumps(members).encode())
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return [json.loads(event) for event in Reader().feed(reply.body)]


def statistics(live: Live, model: str) -> Any:
    [stats] = live.get(f"/v2/models/{model}/stats").json["model_stats"]
    return stats


def asking(model: str, request_id: str = "", empty_final: bool = False, **inputs: Any) -> Any:
    message = message_class("ModelInferRequest")(model_name=model, id=request_id)
    for name, value in inputs.items():
        array = np.asarray(value)
        kind = "BYTES" if array.dtype.kind == "S" else {"i": "INT32", "u": "UINT32"}[array.dtype.kind]
        message.inputs.add(name=name, datatype=kind, shape=array.shape)
        data = b"".join(len(e).to_bytes(4, "little") + e for e in array.ravel().tolist()) if kind == "BYTES" else b""
        message.raw_input_contents.append(data or array.tobytes())
    if empty_final:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def repeat(values: list[int], delays: list[int], wait: int = 0, **more: Any) -> Any:
    return asking(
        "repeat",
        IN=np.array(values, np.int32),
        DELAY=np.array(delays, np.uint32),
        WAIT=np.array([wait], np.uint32),
        **more,
    )


# -- gRPC ------------------------------------------------------------------------------------------------------------------


def triton_inputs(values: list[int], delays: list[int], wait: int) -> list[Any]:
    inputs = []
    for name, array, kind in (("IN", values, np.int32), ("DELAY", delays, np.uint32), ("WAIT", [wait], np.uint32)):
        tensor = np.array(array, kind)
        inputs.append(tritonclient.grpc.InferInput(name, tensor.shape, "INT32" if kind is np.int32 else "UINT32"))
        inputs[-1].set_data_from_numpy(tensor)
    return inputs


def test_repeat_answers_triton_s_client_as_often_as_it_likes(live: Live) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    address = str(live.server.grpc)  # type: ignore[union-attr]
    with tritonclient.grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "repeat", triton_inputs([4, 2, 0, 1], [1, 2, 3, 4], 5), request_id="a", enable_empty_final_response=True
        )
        client.async_stream_infer("repeat", triton_inputs([], [], 0), request_id="b", enable_empty_final_response=True)
        got: dict[str, list[Any]] = {"a": [], "b": []}
        for _ in range(6):
            result, error = answers.get(timeout=WAIT_S)
            assert error is None
            response = result.get_response()
            out = result.as_numpy("OUT")
            got[response.id].append((None if out is None else int(out[0]), response.parameters[FINAL].bool_param))
        client.stop_stream()
    assert got["a"] == [(4, False), (2, False), (0, False), (1, False), (None, True)]
    assert got["b"] == [(None, True)]


def test_repeat_answers_the_aio_client_too(live: Live) -> None:
    async def talk() -> list[int]:
        async def asked() -> Any:
            yield {
                "model_name": "repeat",
                "inputs": triton_inputs([7, 8], [1, 1], 0),
                "enable_empty_final_response": True,
            }

        found = []
        address = str(live.server.grpc)  # type: ignore[union-attr]
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            stream = client.stream_infer(asked())
            async for result, error in stream:
                assert error is None
                if result.get_response().parameters[FINAL].bool_param:
                    break
                found.append(int(result.as_numpy("OUT")[0]))
        return found

    assert asyncio.run(talk()) == [7, 8]


def test_an_end_is_told_only_to_those_who_ask(client: Client) -> None:
    talk = Talk(client).put(repeat([1], [0], request_id="a"), repeat([], [], request_id="b")).end()
    answers = talk.rest()
    assert [(a.infer_response.id, a.infer_response.parameters[FINAL].bool_param) for a in answers] == [("a", False)]
    assert talk.call.code() is grpc.StatusCode.OK


def test_square_shares_batches_and_counts_each_request_once(live: Live, client: Client) -> None:
    before = statistics(live, "square")
    talk = Talk(client)
    numbers = [3, 0, 1, 2, 3, 0, 5, 1]
    talk.put(*(asking("square", str(i), True, IN=np.array([[n]], np.int32)) for i, n in enumerate(numbers)))
    answers = talk.end().rest()
    for i, n in enumerate(numbers):
        mine = [a.infer_response for a in answers if a.infer_response.id == str(i)]
        assert [np.frombuffer(r.raw_output_contents[0], "<i4").tolist() for r in mine[:-1]] == [[n]] * n
        assert [r.parameters[FINAL].bool_param for r in mine] == [False] * n + [True]
        assert not mine[-1].outputs
    after = statistics(live, "square")
    grown = {
        key: after["inference_stats"][key]["count"] - before["inference_stats"][key]["count"]
        for key in ("success", "fail", "queue", "compute_infer")
    }
    assert grown == {"success": len(numbers), "fail": 0, "queue": len(numbers), "compute_infer": len(numbers)}
    assert after["inference_count"] - before["inference_count"] == len(numbers)
    assert after["execution_count"] - before["execution_count"] < len(numbers)
    responses = after["response_stats"]
    for index in range(6):
        known = before["response_stats"].get(str(index), {})

        def count(kind: str, index: int = index, known: Any = known) -> int:
            return responses[str(index)][kind]["count"] - (known[kind]["count"] if known else 0)

        assert count("success") == count("compute_infer") == sum(n > index for n in numbers)
        assert count("empty_response") == sum(n == index for n in numbers)
        assert count("fail") == count("cancel") == 0


def test_a_decoupled_model_is_not_for_one_answer(live: Live, client: Client) -> None:
    code, text, _ = client.fails("ModelInfer", repeat([1], [0]).SerializeToString())
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelInfer RPC doesn't support models with decoupled transaction policy" in text
    reply = live.post("/v2/models/square/infer", infer_json([[1]], name="IN", datatype="INT32"))
    assert reply.status == 501
    assert "doesn't support models with decoupled transaction policy" in reply.error
    assert live.get("/v2/models/tale/config").json["model_transaction_policy"] == {"decoupled": True}
    with live.connect() as wire:
        reply = wire.send(request("GET", "/v2/models/square/stream", **HANDSHAKE)).read_reply()
    assert reply.status == 501
    assert "decoupled" in reply.error


def test_errors_before_and_in_the_middle_come_with_the_request_s_id(client: Client) -> None:
    talk = Talk(client)
    talk.put(asking("tale", "a", kind=np.array([b"bad"])), asking("tale", "b", kind=np.array([b"fails"])))
    talk.put(asking("square", "c"), asking("square", "d", IN=np.array([[1]], np.int32))).end()
    answers = {(a.infer_response.id, bool(a.error_message)): a for a in talk.rest()}
    assert set(answers) == {("a", True), ("b", False), ("b", True), ("c", True), ("d", False)}
    assert "no such tale" in answers["a", True].error_message
    assert "the tale broke off" in answers["b", True].error_message
    assert "expected 1 inputs but got 0" in answers["c", True].error_message
    strict = Talk(client, metadata=[("triton_grpc_error", "true")]).put(asking("tale", kind=np.array([b"fails"])))
    assert not strict.get().error_message
    with pytest.raises(grpc.RpcError) as refused:
        strict.get()
    assert failure(refused.value)[0] is grpc.StatusCode.INTERNAL
    strict.end()


def test_a_caller_that_leaves_ends_what_the_model_does(live: Live, client: Client, folder: Path) -> None:
    closed = folder / "tale" / "1" / "closed"
    before = closed.read_text() if closed.exists() else ""
    failed = statistics(live, "tale")["inference_stats"]["fail"]["count"]
    talk = Talk(client).put(asking("tale", kind=np.array([b"endless"])))
    assert not talk.get().error_message
    talk.call.cancel()
    eventually(lambda: closed.exists() and closed.read_text() == before + "x")
    stats = statistics(live, "tale")
    assert stats["inference_stats"]["fail"]["count"] == failed + 1
    assert stats["response_stats"]["1"]["cancel"]["count"] >= 1


def test_who_reads_slowly_over_grpc_gets_all_of_it_and_the_model_waits(client: Client, folder: Path) -> None:
    talk = Talk(client).put(asking("tale", kind=np.array([b"large"]), n=np.array([40], np.int32)))
    assert not talk.get().error_message
    made = folder / "tale" / "1" / "made"
    eventually(made.exists)
    sizes = [len(talk.get().infer_response.raw_output_contents[1]) for _ in range(40)]
    assert sizes == [1 << 18] * 40
    talk.end().rest()
    made.unlink()


# -- server-sent events ----------------------------------------------------------------------------------------------------


def test_generate_stream_sends_an_event_a_response(live: Live) -> None:
    told = events(live, "repeat", IN=[4, 5, 6], DELAY=[1, 1, 1], WAIT=1, id="a")
    head = {"id": "a", "model_name": "repeat", "model_version": "1"}
    assert told == [{**head, "OUT": 4 + i, "IDX": i} for i in range(3)]
    assert events(live, "square", IN=0) == []
    assert events(live, "echo", x=[1, 2]) == [{"model_name": "echo", "model_version": "1", "y": [1, 2]}]


def test_generate_takes_exactly_one_response(live: Live) -> None:
    for model, members, expected in (
        ("square", {"IN": 1}, {"OUT": 1}),
        ("echo", {"x": [1, 2], "id": "b"}, {"y": [1, 2], "id": "b"}),
        ("tale", {"kind": "short"}, {"word": "short"}),
    ):
        reply = live.post(f"/v2/models/{model}/generate", json.dumps(members).encode())
        assert reply.status == 200, reply.body
        assert reply.json == {"model_name": model, "model_version": "1", **expected}
    for n in (0, 2, 100):
        reply = live.post("/v2/models/square/generate", json.dumps({"IN": n}).encode())
        assert reply.status == 500
        assert "use generate stream" in reply.error


def test_an_error_before_the_first_event_has_its_status_and_later_is_an_event(live: Live) -> None:
    for path in ("generate", "generate_stream"):
        for members, status, told in (
            ({"kind": "bad"}, 400, "no such tale"),
            ({"kind": None}, 400, "`kind` is null"),
            ({}, 400, "expected 2 inputs but got 0"),
        ):
            reply = live.post(f"/v2/models/tale/{path}", json.dumps(members).encode())
            assert (reply.status, told in reply.error) == (status, True), reply.body
        assert live.post(f"/v2/models/nobody/{path}", b"{}").status == 404
    first, second = events(live, "tale", kind="fails")
    assert first["word"] == "fails"
    assert "the tale broke off" in second["error"]


def test_a_browser_s_way_to_read_is_httpx_s_and_curl_s(live: Live) -> None:
    url = f"{live.url}/v2/models/repeat/generate_stream"
    asked = {"IN": [1, 2], "DELAY": [1, 1], "WAIT": 0}
    with httpx.stream("POST", url, json=asked, timeout=WAIT_S) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert [json.loads(line.removeprefix("data: "))["OUT"] for line in lines] == [1, 2]
    if shutil.which("curl"):
        done = subprocess.run(
            ["curl", "-sN", url, "-d", json.dumps(asked)],
            capture_output=True,
            timeout=WAIT_S,
            check=True,
        )
        assert done.stdout.count(b"data: ") == 2


def test_a_reader_that_leaves_closes_the_generator(live: Live, folder: Path) -> None:
    closed = folder / "tale" / "1" / "closed"
    before = closed.read_text() if closed.exists() else ""
    with httpx.stream("POST", f"{live.url}/v2/models/tale/generate_stream", json={"kind": "endless"}) as answer:
        assert "endless" in next(answer.iter_lines())
    eventually(lambda: closed.exists() and closed.read_text() == before + "x")


def test_who_reads_slowly_gets_all_of_it_and_the_model_waits(live: Live, folder: Path) -> None:
    made = folder / "tale" / "1" / "made"
    body = json.dumps({"kind": "large", "n": 60}).encode()
    wire = live.connect(receive_buffer=1 << 14)
    wire.send(
        b"POST /v2/models/tale/generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )
    eventually(made.exists)
    seen: list[str] = []

    def has_stopped() -> bool:
        seen.append(made.read_text())
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    eventually(has_stopped)
    assert int(seen[-1] or 0) < 55
    received = bytearray()
    while data := wire.socket.recv(1 << 20):
        received += data
    assert received.count(b"data: ") == 61
    assert received.endswith(b"0\r\n\r\n")
    made.unlink()


# -- ends ------------------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_in_mid_stream_is_told_as_an_event(live: Live) -> None:
    first, second = events(live, "tale", kind="crashes")
    assert first["word"] == "crashes"
    assert "exited with status 7" in second["error"]
    eventually(lambda: live.get("/v2/models/tale/ready").status == 200)
    assert [event["word"] for event in events(live, "tale", kind="again")] == ["again"]


def test_unloading_waits_for_streams_and_a_drain_ends_them_in_time(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    with grpc_serving(folder, exit_timeout_s=0.5) as (live, client):
        long = Talk(client).put(repeat([1, 2], [0, 200], empty_final=True))
        endless = Talk(client).put(asking("tale", kind=np.array([b"endless"])))
        assert not endless.get().error_message
        assert not long.get().error_message
        thread, answers = drained(live)
        assert not long.get().error_message
        assert long.get().infer_response.parameters[FINAL].bool_param
        with pytest.raises(grpc.RpcError):
            endless.rest()
        for talk in (long, endless):
            talk.end()
        thread.join(WAIT_S)
        assert answers
    assert (folder / "tale" / "1" / "closed").exists()


def test_an_ensemble_answers_as_often_as_its_decoupled_step(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    (folder / "both" / "1").mkdir(parents=True)
    (folder / "both" / "config.pbtxt").write_text("""
platform: "ensemble"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "square" model_version: -1
  input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" }
} ] }
""")
    with grpc_serving(folder) as (live, _):
        assert live.get("/v2/models/both/config").json["model_transaction_policy"]["decoupled"]
        assert live.infer("both", [[3]], name="IN", datatype="INT32").status == 501
        reply = live.post("/v2/models/both/generate_stream", json.dumps({"IN": 3}).encode())
        assert [json.loads(line[6:])["OUT"] for line in reply.body.decode().splitlines() if line] == [3, 3, 3]
        said: queue.Queue[Any] = queue.Queue()
        assert live.server is not None
        with tritonclient.grpc.InferenceServerClient(str(live.server.grpc)) as client:
            client.start_stream(lambda result, error: said.put(error or result))
            tensor = tritonclient.grpc.InferInput("IN", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[4]], np.int32))
            client.async_stream_infer("both", [tensor], enable_empty_final_response=True)
            answers = [said.get(timeout=WAIT_S) for _ in range(5)]
        assert [int(answer.as_numpy("OUT").item()) for answer in answers[:4]] == [4, 4, 4, 4]
        assert [answer.get_response().parameters[FINAL].bool_param for answer in answers] == [False] * 4 + [True]
