"""Triton's own HTTP clients, the blocking one and the asyncio one, work unchanged against a live server.

Everything they can ask of what is served here (docs/reference/kserve-http.md); gRPC has tests of its own.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.models import ONNX_TYPES, identity, save, small_convnet, two_inputs_add_sub
from tests.serving import Gate, Live, eventually, serving

from farthing.config.server import ModelControl
from farthing.types.tensors import NUMPY_DTYPES

gevent = pytest.importorskip("gevent")
http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
ClientError = pytest.importorskip("tritonclient.utils").InferenceServerException

PARAMETERS = """
    from farthing import Tensor

    class Params:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 8

        def infer(self, inputs, requests):
            for request in requests:
                request.response_parameters.update(request.parameters)
                request.response_parameters["saw_id"] = request.id
            return {"y": inputs["x"]}
"""

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    **{name: np.array([[0, 1], [1, 0]]).astype(dtype) for name, dtype in NUMPY_DTYPES.items() if name != "BYTES"},
    "INT64": np.array([[-(2**63), 2**63 - 1]]),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP32": np.array([[np.nan, np.inf], [-np.inf, 1e-45]], np.float32),
    "FP16": np.array([[1.5, np.inf]], np.float16),
    "BYTES": np.array([[b"", b"a\0b"], ["ä€".encode(), b"x" * 70_000]], object),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("repository")
    for datatype in ONNX_TYPES:
        save(folder / f"echo_{datatype}", identity(datatype))
    save(folder / "simple", two_inputs_add_sub())
    save(folder / "late", two_inputs_add_sub())
    save(folder / "labelled", small_convnet())
    (folder / "labelled" / "labels.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    (folder / "labelled" / "config.pbtxt").write_text(
        dedent("""
        max_batch_size: 16
        input [ { name: "image" data_type: TYPE_FP32 dims: [ 3, 16, 16 ] } ]
        output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" } ]
        dynamic_batching { default_queue_policy { max_queue_size: 100 } }
        """)
    )
    python = tmp_path_factory.mktemp("python") / "params.py"
    python.write_text(dedent(PARAMETERS))
    wanted = (*(path.name for path in folder.iterdir() if path.name != "late"), "params")
    with serving(folder, python, model_control=ModelControl.EXPLICIT, load_models=wanted) as server:
        yield server


class Blocking:
    """The asyncio client, used like the other one."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(url))

    @staticmethod
    async def _make(url: str) -> Any:
        return aio.InferenceServerClient(url)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            return self._runner.run(answer) if inspect.isawaitable(answer) else answer

        return call

    def end(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, live: Live) -> Iterator[Any]:
    if request.param == "aio":
        blocking = Blocking(live.netloc)
        yield blocking
        blocking.end()
    else:
        with http.InferenceServerClient(live.netloc, concurrency=8) as one:
            yield one


def given(name: str, tensor: Any, datatype: str, *, is_binary: bool = True) -> Any:
    item = http.InferInput(name, list(tensor.shape), datatype)
    item.set_data_from_numpy(tensor, binary_data=is_binary)
    return item


def simple_inputs(*, is_binary: bool = True) -> list[Any]:
    first = np.arange(16, dtype=np.int32)[None]
    return [
        given("INPUT0", first, "INT32", is_binary=is_binary),
        given("INPUT1", first * 2, "INT32", is_binary=is_binary),
    ]


# -- health and metadata ---------------------------------------------------------------------------------------------


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "2")
    assert not client.is_model_ready("late")
    assert not client.is_model_ready("nobody")


def test_metadata_and_configuration(client: Any) -> None:
    assert client.get_server_metadata()["name"] == "farthing"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("simple", "1")
    assert (metadata["name"], metadata["versions"]) == ("simple", ["1"])
    assert metadata["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    config = client.get_model_config("labelled")
    assert config["max_batch_size"] == 16
    assert config["output"][0]["label_filename"] == "labels.txt"
    assert config["input"][0]["dims"] == [3, 16, 16]
    assert config["backend"] == "onnxruntime"
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 100


def test_statistics(client: Any) -> None:
    before = client.get_inference_statistics("simple")["model_stats"][0]
    client.infer("simple", simple_inputs())
    after = client.get_inference_statistics("simple", "1")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert all(isinstance(one["batch_size"], int) for one in after["batch_stats"])
    names = [one["name"] for one in client.get_inference_statistics()["model_stats"]]
    assert "simple" in names
    assert "late" not in names


# -- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", TENSORS)
@pytest.mark.parametrize(
    ("is_binary_in", "is_binary_out"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_every_datatype_goes_there_and_back(
    client: Any, datatype: str, is_binary_in: bool, is_binary_out: bool
) -> None:
    tensor = TENSORS[datatype]
    if datatype == "BYTES" and not (is_binary_in and is_binary_out):
        tensor = np.array([[b"", b"text"]], object)  # JSON holds text
    model = f"echo_{datatype}"
    outputs = [http.InferRequestedOutput("y", binary_data=is_binary_out)]
    if datatype in ("FP16", "BF16") and not (is_binary_in and is_binary_out):
        if is_binary_in:
            with pytest.raises(ClientError, match=datatype):
                client.infer(model, [given("x", tensor, datatype)], outputs=outputs)
        return  # the client itself refuses to put them into JSON
    answer = client.infer(model, [given("x", tensor, datatype, is_binary=is_binary_in)], outputs=outputs)
    found = answer.as_numpy("y")
    assert answer.get_output("y")["datatype"] == datatype
    assert found.shape == tensor.shape
    if datatype == "BYTES" and not is_binary_out:  # the client leaves JSON's strings as they are
        found = np.array([text.encode() for text in found.ravel()], object).reshape(found.shape)
    np.testing.assert_array_equal(found.astype(tensor.dtype), tensor)


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_zero_rows_go_there_and_back(client: Any, datatype: str, is_binary: bool) -> None:
    tensor = np.empty((0, 2), NUMPY_DTYPES[datatype])
    outputs = [http.InferRequestedOutput("y", binary_data=is_binary)]
    answer = client.infer(f"echo_{datatype}", [given("x", tensor, datatype, is_binary=is_binary)], outputs=outputs)
    assert answer.get_output("y")["shape"] == [0, 2]
    found = answer.as_numpy("y")
    assert found is None or found.size == 0


def test_outputs_may_be_chosen_or_left_open(client: Any) -> None:
    first = np.arange(16)
    everything = client.infer("simple", simple_inputs(), request_id="mine")
    assert everything.get_response()["id"] == "mine"
    assert everything.get_response()["model_version"] == "1"
    np.testing.assert_array_equal(everything.as_numpy("OUTPUT0")[0], first * 3)
    np.testing.assert_array_equal(everything.as_numpy("OUTPUT1")[0], -first)
    one = client.infer("simple", simple_inputs(is_binary=False), outputs=[http.InferRequestedOutput("OUTPUT1")])
    np.testing.assert_array_equal(one.as_numpy("OUTPUT1")[0], -first)
    assert one.as_numpy("OUTPUT0") is None


@pytest.mark.parametrize("rows", [1, 3])
def test_classes_come_with_their_labels(client: Any, rows: int) -> None:
    images = np.random.default_rng(1).random((rows, 3, 16, 16), np.float32)
    logits = client.infer("labelled", [given("image", images, "FP32")]).as_numpy("logits")
    outputs = [http.InferRequestedOutput("logits", class_count=3)]
    answer = client.infer("labelled", [given("image", images, "FP32")], outputs=outputs)
    assert answer.get_output("logits")["datatype"] == "BYTES"
    classes = answer.as_numpy("logits")
    assert classes.shape == (rows, 3)
    for row, found in zip(logits, classes, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert [text.decode() for text in found] == [f"{row[i]:.6f}:{i}:class {i}" for i in best]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed_both_ways(client: Any, algorithm: str) -> None:
    tensor = np.zeros((500, 2), np.float32) + 3
    answer = client.infer(
        "echo_FP32",
        [given("x", tensor, "FP32")],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), tensor)


def test_parameters_reach_the_model_and_come_back(client: Any) -> None:
    parameters = {"text": "ä", "flag": True, "count": 7, "share": 0.5}
    tensor = np.ones((1, 1), np.float32)
    answer = client.infer("params", [given("x", tensor, "FP32")], request_id="r1", parameters=parameters)
    assert answer.get_response()["parameters"] == {**parameters, "saw_id": "r1"}


def test_headers_and_query_parameters_are_taken(client: Any) -> None:
    answer = client.infer(
        "simple", simple_inputs(), headers={"X-Request-Id": "h"}, query_params={"a": "1", "b": ["2", "3"]}
    )
    assert answer.as_numpy("OUTPUT0") is not None
    assert client.is_server_live(query_params={"x": "y"})


def test_priorities_and_generous_timeouts_are_taken(client: Any) -> None:
    answer = client.infer("simple", simple_inputs(), priority=1, timeout=10_000_000)
    assert answer.as_numpy("OUTPUT0") is not None


def test_requests_may_be_many_at_once(live: Live) -> None:
    tensors = [np.full((1, 2), i, np.float32) for i in range(64)]
    with http.InferenceServerClient(live.netloc, concurrency=8) as client:
        asked = [client.async_infer("echo_FP32", [given("x", tensor, "FP32")]) for tensor in tensors]
        for tensor, answer in zip(tensors, asked, strict=True):
            np.testing.assert_array_equal(answer.get_result(timeout=20).as_numpy("y"), tensor)

    async def together() -> list[Any]:
        async with aio.InferenceServerClient(live.netloc) as client:
            return await asyncio.gather(
                *(client.infer("echo_FP32", [given("x", tensor, "FP32")]) for tensor in tensors)
            )

    for tensor, answer in zip(tensors, asyncio.run(together()), strict=True):
        np.testing.assert_array_equal(answer.as_numpy("y"), tensor)


def test_bodies_can_be_made_and_read_without_a_connection(live: Live) -> None:
    body, length = http.InferenceServerClient.generate_request_body(simple_inputs())
    reply = live.post("/v2/models/simple/infer", bytes(body), {"Inference-Header-Content-Length": str(length)})
    size = reply.headers.get("inference-header-content-length")
    answer = http.InferenceServerClient.parse_response_body(reply.body, header_length=size and int(size))
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0")[0], np.arange(16) * 3)


# -- errors ----------------------------------------------------------------------------------------------------------


def fails(client: Any, match: str, status: str, model: str, inputs: list[Any], **more: Any) -> None:
    with pytest.raises(ClientError, match=match) as caught:
        client.infer(model, inputs, **more)
    # The asyncio client keeps the bare number.
    assert caught.value.status() in (status, None, f"HTTP {status}", int(status))


def test_errors_are_the_servers_own_words(client: Any) -> None:
    wrong = np.ones((1, 3), np.float32)
    right = given("x", np.ones((1, 2), np.float32), "FP32")
    fails(client, "Request for unknown model: 'nobody' is not found", "404", "nobody", simple_inputs())
    fails(client, "version 7 is not found; versions found: 1", "404", "simple", simple_inputs(), model_version="7")
    fails(
        client,
        r"unexpected shape for input 'x'.*Expected \[-1,2\], got \[1,3\]",
        "400",
        "echo_FP32",
        [given("x", wrong, "FP32")],
    )
    fails(client, "data-type is 'FP32', but model 'echo_INT8'", "400", "echo_INT8", [right])
    fails(client, "expected 2 inputs but got 1 inputs for model 'simple'", "400", "simple", simple_inputs()[:1])
    fails(client, "unexpected inference input 'x'", "400", "simple", [*simple_inputs(), right])
    outputs = [http.InferRequestedOutput("nothing")]
    fails(client, "unexpected inference output 'nothing'", "400", "simple", simple_inputs(), outputs=outputs)
    # All of them left the connection as it should be.
    assert client.infer("simple", simple_inputs()).as_numpy("OUTPUT0") is not None


def test_a_timeout_in_the_queue_is_told(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    tensor = np.ones((1, 1), np.float32)
    with serving(gate.path) as live, http.InferenceServerClient(live.netloc, concurrency=2) as client:
        first = client.async_infer("gate", [given("x", tensor, "FP32")])
        eventually(lambda: gevent.sleep(0) or gate.seen())  # the client sends while its greenlets have a turn
        fails(client, "Request timeout expired", "503", "gate", [given("x", tensor, "FP32")], timeout=20_000)
        gate.open()
        assert first.get_result(timeout=20).as_numpy("y") == [[1]]


# -- the repository --------------------------------------------------------------------------------------------------


def test_models_are_loaded_and_unloaded(client: Any) -> None:
    def state() -> Any:
        return {line["name"]: line.get("state") for line in client.get_model_repository_index()}["late"]

    assert state() != "READY"
    client.load_model("late")
    assert state() == "READY"
    assert client.infer("late", simple_inputs()).as_numpy("OUTPUT0") is not None
    client.load_model("late", config=json.dumps({"max_batch_size": 4}))
    assert client.get_model_config("late")["max_batch_size"] == 4
    client.unload_model("late")
    eventually(lambda: state() == "UNAVAILABLE")
    client.unload_model("late", unload_dependents=True)
    assert not client.is_model_ready("late")
    with pytest.raises(ClientError, match="no model `nobody`"):
        client.load_model("nobody")
    with pytest.raises(ClientError, match="max_batch_size"):
        client.load_model("late", config='{"max_batch_size": -3}')


def test_a_model_has_trace_settings_of_its_own(client: Any) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    client.update_trace_settings("simple", {"trace_rate": "2"})
    assert client.get_trace_settings("simple")["trace_rate"] == "2"
    client.update_trace_settings("simple", {"trace_rate": None})
    assert client.get_trace_settings("simple")["trace_rate"] == client.get_trace_settings()["trace_rate"]


def test_what_is_not_served_says_so(client: Any) -> None:
    with pytest.raises(ClientError, match="CUDA shared memory is not offered"):
        client.get_cuda_shared_memory_status()
    assert client.get_system_shared_memory_status() == []
    shared = http.InferInput("x", [1, 2], "FP32")
    shared.set_shared_memory("region", 8)
    with pytest.raises(ClientError, match="shared memory"):
        client.infer("echo_FP32", [shared])
