"""Triton's own clients ask models that run a request again and again, and models of sequences that answer often."""

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import dedent
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from tests.serving import WAIT_S, serve_process

grpc_client = pytest.importorskip("tritonclient.grpc")
http_client = pytest.importorskip("tritonclient.http")
ClientError = pytest.importorskip("tritonclient.utils").InferenceServerException

COUNTDOWN = '''
"""IN tells how many responses there are; each says how many are left, and how many requests shared its run."""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        for request in requests:
            number = request.correlation_id()
            if not number:  # a slot without a request, of the direct strategy
                continue
            if request.flags() == pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.left[number] = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
            assert bool(pb_utils.get_input_tensor_by_name(request, "START").as_numpy().item()) == bool(request.flags())
            left = self.left[number] = self.left[number] - 1
            said = pb_utils.InferenceResponse([
                pb_utils.Tensor("LEFT", np.array([[left]], np.int32)),
                pb_utils.Tensor("TOGETHER", np.array([[len(requests)]], np.int32)),
            ])
            if left > 0:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                request.get_response_sender().send(said)
            else:
                del self.left[number]
                request.get_response_sender().send(said, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''

ONCE = '''
"""Runs as often as IN says, and answers then: with the number of its runs."""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.runs = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            if not pb_utils.get_input_tensor_by_name(request, "READY").as_numpy().item():
                responses.append(pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, np.zeros((1, 1), np.int32)) for name in ("LEFT", "TOGETHER")]
                ))
                continue
            wanted = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
            if wanted < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("less than nothing")))
                continue
            number = request.correlation_id()
            runs = self.runs[number] = self.runs.get(number, 0) + 1
            if runs < wanted:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
            else:
                del self.runs[number]
                responses.append(pb_utils.InferenceResponse([
                    pb_utils.Tensor("LEFT", np.array([[runs]], np.int32)),
                    pb_utils.Tensor("TOGETHER", np.array([[len(requests)]], np.int32)),
                ]))
        return responses
'''

POWER = '''
"""2 to the IN, one doubling a run; all it knows is in the states."""
import numpy as np
from farthing import Tensor

class Power:
    inputs = [Tensor("IN", "INT32", [-1, 1])]
    outputs = [
        Tensor("LEFT", "INT32", [-1, 1]), Tensor("TOGETHER", "INT32", [-1, 1]),
        Tensor("product_out", "INT32", [-1, 1]), Tensor("runs_out", "INT32", [-1, 1]),
    ]
    max_batch_size = 4

    def infer(self, inputs, requests):
        product = np.maximum(inputs["product"], 1) * 2
        runs = inputs["runs"] + 1
        for request, done, wanted in zip(requests, runs.ravel(), inputs["IN"].ravel()):
            if done < wanted:
                request.again()
        return {"LEFT": product, "TOGETHER": np.full_like(runs, len(requests)), "product_out": product, "runs_out": runs}
'''

FIBONACCI = '''
"""IN numbers of Fibonacci's, one response a run; all it knows is in the states."""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            wanted, one, two, runs = (
                int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().item())
                for name in ("IN", "one", "two", "runs")
            )
            one, two = (1, 1) if runs == 0 else (two, one + two)
            told = {"LEFT": one, "TOGETHER": len(requests), "one_out": one, "two_out": two, "runs_out": runs + 1}
            said = pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.array([[value]], np.int32)) for name, value in told.items()]
            )
            sender = request.get_response_sender()
            if runs + 1 < wanted:
                sender.send(said)
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            else:
                sender.send(said, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''

LISTENER = '''
"""Answers a sequence's first request with the sum so far, whenever another comes, from its one sender; ends with END."""
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    def initialize(self, args):
        self.open = {}

    def execute(self, requests):
        for request in requests:
            flags, number, sender = request.flags(), request.correlation_id(), request.get_response_sender()
            x = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().item())
            if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.open[number] = [sender, 0]
            else:
                sender.send(flags=FINAL)
            self.open[number][1] += x
            first, total = self.open[number]
            values = {"LEFT": total, "TOGETHER": len(requests)}
            first.send(pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.array([[value]], np.int32)) for name, value in values.items()]
            ))
            if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                first.send(flags=FINAL)
                del self.open[number]
'''

RUNNING = '''
"""Says the sum so far after each of IN's ones; the sum is a state."""
from farthing import Tensor

class Running:
    inputs = [Tensor("IN", "INT32", [-1, 1])]
    outputs = [Tensor(name, "INT32", [-1, 1]) for name in ("LEFT", "TOGETHER", "sum_out")]
    max_batch_size = 4

    def infer(self, inputs):
        total = inputs["sum"]
        for _ in range(int(inputs["IN"].item())):
            total = total + 1
            yield {"LEFT": total, "TOGETHER": total, "sum_out": total}
'''

CONFIG = """
backend: "python"
max_batch_size: 4
%s
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "LEFT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "TOGETHER" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching { %s }
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"
START = (
    'control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START bool_false_true: [ false, true ] } ] } ]'
)
READY = (
    'control_input [ { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } ] } ]'
)


def state(name: str) -> str:
    return f'state [ {{ input_name: "{name}" output_name: "{name}_out" data_type: TYPE_INT32 dims: [ 1 ] }} ]'


MODELS = {
    "countdown": (COUNTDOWN, DECOUPLED, f"iterative_sequence: true oldest {{ max_candidate_sequences: 8 }} {START}"),
    "direct": (COUNTDOWN, DECOUPLED, f"iterative_sequence: true direct {{ }} {START}"),
    "alone": (COUNTDOWN, DECOUPLED, f"iterative_sequence: true oldest {{ max_candidate_sequences: 1 }} {START}"),
    "plain": (COUNTDOWN, DECOUPLED, f"oldest {{ }} {START}"),
    "once": (ONCE, "", f"iterative_sequence: true oldest {{ }} {READY}"),
    "once_direct": (ONCE, "", f"iterative_sequence: true direct {{ }} {READY}"),
    "once_plain": (ONCE, "", f"oldest {{ }} {READY}"),
    "power": (POWER, "", f"iterative_sequence: true oldest {{ }} {state('product')} {state('runs')}"),
    "fibonacci": (
        FIBONACCI,
        DECOUPLED,
        f"iterative_sequence: true oldest {{ }} {state('one')} {state('two')} {state('runs')}",
    ),
    "listener": (LISTENER, DECOUPLED, "oldest { }"),
    "running": (RUNNING, DECOUPLED, f"oldest {{ preserve_ordering: true }} {state('sum')}"),
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("served")
    for name, (code, policy, batching) in MODELS.items():
        version = folder / "models" / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(dedent(code))
        (version.parent / "config.pbtxt").write_text(CONFIG % (policy, batching))
    with serve_process(folder, folder / "models", grpc=("--grpc", "127.0.0.1:0")) as live:
        yield {**json.loads((folder / "ready.json").read_text()), "log": str(live.log)}


def tensor(module: Any, x: int) -> Any:
    made = module.InferInput("IN", [1, 1], "INT32")
    made.set_data_from_numpy(np.full((1, 1), x, np.int32))
    return made


class Stream:
    """One of Triton's gRPC streams."""

    def __init__(self, address: str) -> None:
        self.client = grpc_client.InferenceServerClient(address)
        self.said: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self.said.put((result, error)))

    def ask(self, model: str, x: int, *, id: str = "", **more: Any) -> None:
        self.client.async_stream_infer(
            model, [tensor(grpc_client, x)], request_id=id, enable_empty_final_response=True, **more
        )

    def next(self) -> tuple[str, int | None, int, bool]:
        """Of the next response: its request, LEFT (None for none), TOGETHER, and whether it is the last."""
        result, error = self.said.get(timeout=WAIT_S)
        if error is not None:
            raise error
        response = result.get_response()
        is_last = response.parameters["triton_final_response"].bool_param
        left = result.as_numpy("LEFT")
        if left is None:
            return response.id, None, 0, is_last
        return response.id, int(left.item()), int(result.as_numpy("TOGETHER").item()), is_last

    def error(self) -> ClientError:
        """The first error, after whatever responses."""
        while True:
            try:
                self.next()
            except ClientError as error:
                return error

    def all(self, requests: int = 1) -> dict[str, list[int]]:
        """LEFT of every response until so many requests have their last."""
        told: dict[str, list[int]] = {}
        while requests:
            name, left, _, is_last = self.next()
            if left is not None:
                told.setdefault(name, []).append(left)
            requests -= is_last
        return told


@contextmanager
def streaming(addresses: dict[str, str]) -> Iterator[Stream]:
    stream = Stream(addresses["grpc"])
    try:
        yield stream
    finally:
        stream.client.stop_stream(cancel_requests=True)
        stream.client.close()


@pytest.mark.parametrize("model", ["countdown", "direct"])
def test_a_request_runs_until_its_model_is_through_and_is_answered_each_time(
    addresses: dict[str, str], model: str
) -> None:
    with streaming(addresses) as stream:
        for number in range(6):
            stream.ask(model, number + 1, id=str(number))
        told = stream.all(6)
        assert told == {str(number): list(range(number, -1, -1)) for number in range(6)}
        stream.ask(model, 2, sequence_id=7, sequence_start=True)
        assert stream.all() == {"": [1, 0]}


def test_new_requests_join_those_that_run(addresses: dict[str, str]) -> None:
    """Continuous batching: nobody waits for those before to be through."""
    with streaming(addresses) as stream:
        stream.ask("countdown", 400, id="long")
        while stream.next()[1] != 395:
            pass
        for number in range(3):
            stream.ask("countdown", 3, id=f"short {number}")
        together, left, ended = 0, 395, 0
        while ended < 3:
            name, rest, mates, is_last = stream.next()
            if name == "long":
                assert rest is not None
                left = rest
            else:
                together, ended = max(together, mates), ended + is_last
        assert together >= 2
        assert left > 100, "they waited for the long one"


def test_more_requests_than_slots_all_end(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        for number in range(30):
            stream.ask("countdown", 5, id=str(number))
        assert stream.all(30) == {str(number): [4, 3, 2, 1, 0] for number in range(30)}


def test_generate_stream_needs_no_sequence(addresses: dict[str, str]) -> None:
    url = f"http://{addresses['http']}/v2/models/countdown/generate_stream"
    lines = httpx.post(url, json={"IN": 2}).text.splitlines()
    assert [json.loads(line[6:])["LEFT"] for line in lines if line] == [1, 0]


@pytest.mark.parametrize("model", ["once", "once_direct", "power"])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_one_answer_comes_when_all_runs_are_done(addresses: dict[str, str], model: str, wire: str) -> None:
    module = {"http": http_client, "grpc": grpc_client}[wire]
    client = module.InferenceServerClient(addresses[wire], **({"concurrency": 8} if wire == "http" else {}))
    wanted = [1, 2, 5, 9, 3, 3]
    if wire == "http":
        calls = [client.async_infer(model, [tensor(module, x)]) for x in wanted]
        results: list[Any] = [call.get_result() for call in calls]
    else:
        said: queue.Queue[Any] = queue.Queue()

        def hear(place: int) -> Callable[[Any, Any], None]:
            return lambda result, error: said.put((place, error or result))

        for place, x in enumerate(wanted):
            client.async_infer(model, [tensor(module, x)], callback=hear(place))
        results = [result for _, result in sorted((said.get(timeout=WAIT_S) for _ in wanted), key=lambda one: one[0])]
    told = [int(result.as_numpy("LEFT").item()) for result in results]
    assert told == ([2**x for x in wanted] if model == "power" else wanted)
    client.close()


def test_states_are_the_servers_and_each_request_has_its_own(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        for number in (3, 7, 5):
            stream.ask("fibonacci", number, id=str(number))
        numbers = [1, 1, 2, 3, 5, 8, 13]
        assert stream.all(3) == {str(number): numbers[:number] for number in (3, 7, 5)}


def test_a_run_that_fails_ends_its_request_alone(addresses: dict[str, str]) -> None:
    with http_client.InferenceServerClient(addresses["http"], concurrency=4) as client:
        calls = {x: client.async_infer("once", [tensor(http_client, x)]) for x in (40, -1, 3)}
        with pytest.raises(ClientError, match="less than nothing"):
            calls[-1].get_result()
        assert [int(calls[x].get_result().as_numpy("LEFT").item()) for x in (40, 3)] == [40, 3]


def test_a_client_that_leaves_gives_its_slot_to_the_next(addresses: dict[str, str]) -> None:
    with streaming(addresses) as leaver:
        leaver.ask("alone", 1_000_000)
        assert [leaver.next()[1] for _ in range(3)] == [999_999, 999_998, 999_997]
    with streaming(addresses) as stream:
        stream.ask("alone", 2)
        assert stream.all() == {"": [1, 0]}


def test_time_runs_out_between_runs_too(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        stream.ask("alone", 1_000_000, timeout=100_000)
        assert "Request timeout expired" in str(stream.error())
        stream.ask("alone", 1)
        assert stream.all() == {"": [0]}


@pytest.mark.parametrize("model", ["plain", "once_plain"])
def test_only_iterative_sequences_run_again(addresses: dict[str, str], model: str) -> None:
    words = "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE"
    with streaming(addresses) as stream:
        stream.ask(model, 2)
        assert "must specify a non-zero or non-empty correlation ID" in str(stream.error())
        stream.ask(model, 2, sequence_id=1, sequence_start=True)
        assert words in str(stream.error())


def test_an_id_without_a_start_is_refused(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        stream.ask("countdown", 2, sequence_id=5)
        assert "must specify the START flag on the first request of the sequence" in str(stream.error())


def test_an_early_request_of_a_sequence_may_be_answered_while_later_ones_run(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        for number, x in enumerate((5, 6, 7)):
            flags = {"sequence_start": number == 0, "sequence_end": number == 2}
            stream.ask("listener", x, id=str(number), sequence_id=9, **flags)
        assert stream.all(3) == {"0": [5, 11, 18]}


def test_where_states_are_the_servers_the_next_request_waits_for_the_last_response(addresses: dict[str, str]) -> None:
    with streaming(addresses) as stream:
        for sequence in (1, 2):
            for number, x in enumerate((2, 0, 3)):
                flags = {"sequence_start": number == 0, "sequence_end": number == 2}
                stream.ask("running", x, id=f"{sequence}/{number}", sequence_id=sequence, **flags)
        assert stream.all(6) == {"1/0": [1, 2], "1/2": [3, 4, 5], "2/0": [1, 2], "2/2": [3, 4, 5]}


def test_runs_are_counted_and_each_request_once(addresses: dict[str, str]) -> None:
    with http_client.InferenceServerClient(addresses["http"]) as client:
        before = client.get_inference_statistics("power")["model_stats"][0]
        client.infer("power", [tensor(http_client, 7)])
        after = client.get_inference_statistics("power")["model_stats"][0]
    assert after["execution_count"] - before["execution_count"] == 7
    assert after["inference_count"] - before["inference_count"] == 1
    queued, took = after["inference_stats"]["queue"], after["inference_stats"]["success"]
    assert took["count"] - before["inference_stats"]["success"]["count"] == 1
    assert queued["ns"] < took["ns"]
