"""Triton's own gRPC client, sync and aio, unchanged, against a real server: everything it offers that we do."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from queue import Queue
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.models import ONNX_TYPES, identity, save, tiny_mlp, two_inputs_add_sub
from tests.serving import serve_process

from farthing.types.tensors import NUMPY_DTYPES

tritongrpc = pytest.importorskip("tritonclient.grpc")
tritonaio = pytest.importorskip("tritonclient.grpc.aio")
triton = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where gRPC is of a server whose models clients may load: `mlp`, `simple`, and an echo of each datatype."""
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    save(models / "mlp", tiny_mlp())
    save(models / "simple", two_inputs_add_sub())
    for datatype in ONNX_TYPES:
        save(models / f"echo_{datatype.lower()}", identity(datatype))
    arguments = (models, "--model-control-mode", "explicit", "--load-model", "*")
    with serve_process(folder, *arguments, grpc=("--grpc", "127.0.0.1:0")):
        yield json.loads((folder / "ready.json").read_text())["grpc"]


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with closing(tritongrpc.InferenceServerClient(address)) as client:
        yield client


def tensor_in(name: str, tensor: Any, datatype: str = "") -> Any:
    """A client's input with its values."""
    item = tritongrpc.InferInput(name, list(tensor.shape), datatype or triton.np_to_triton_dtype(tensor.dtype))
    item.set_data_from_numpy(tensor)
    return item


def failed(client: Any, method: str, *args: Any, **more: Any) -> Any:
    with pytest.raises(triton.InferenceServerException) as refused:
        getattr(client, method)(*args, **more)
    return refused.value


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("mlp", "2")
    assert not client.is_model_ready("nobody")


def test_metadata(client: Any) -> None:
    server = client.get_server_metadata()
    assert server.name == "farthing"
    assert "statistics" in server.extensions
    model = client.get_model_metadata("simple")
    assert list(model.versions) == ["1"]
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    assert client.get_model_metadata("simple", "1", as_json=True)["platform"] == "onnxruntime_onnx"


def test_configuration(client: Any) -> None:
    config = client.get_model_config("mlp").config
    assert config.name == "mlp"
    assert config.max_batch_size > 0
    assert [(i.name, list(i.dims)) for i in config.input] == [("x", [32])]


def test_inference(client: Any) -> None:
    left, right = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    result = client.infer(
        "simple",
        [tensor_in("INPUT0", left), tensor_in("INPUT1", right)],
        outputs=[tritongrpc.InferRequestedOutput("OUTPUT1"), tritongrpc.InferRequestedOutput("OUTPUT0")],
        request_id="r1",
        model_version="1",
        priority=1,
        timeout=5_000_000,
        client_timeout=20,
        parameters={"mine": "value", "count": 3, "flag": True},
        headers={"x-any": "thing"},
        compression_algorithm="gzip",
    )
    assert (result.as_numpy("OUTPUT0") == left + right).all()
    assert (result.as_numpy("OUTPUT1") == left - right).all()
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("r1", "simple", "1")


@pytest.mark.parametrize("datatype", [name for name in ONNX_TYPES if name not in ("BYTES", "BF16")])
def test_every_datatype_comes_back_as_it_went(client: Any, datatype: str) -> None:
    tensor = np.array([[1, 0], [0, 1], [1, 1]], NUMPY_DTYPES[datatype])
    found = client.infer(f"echo_{datatype.lower()}", [tensor_in("x", tensor)]).as_numpy("y")
    assert found.dtype == tensor.dtype
    assert (found == tensor).all()


def test_bfloat16_comes_back_as_it_went(client: Any) -> None:
    tensor = np.array([[1.5, -2.25]], ml_dtypes.bfloat16)
    found = client.infer("echo_bf16", [tensor_in("x", tensor, "BF16")]).as_numpy("y")
    assert found.astype(np.float32).tolist() == [[1.5, -2.25]]


def test_bytes_come_back_as_they_went(client: Any) -> None:
    tensor = np.array([["h\xe9llo".encode(), b"\xc3\xa9"]], object)
    assert client.infer("echo_bytes", [tensor_in("x", tensor)]).as_numpy("y").tolist() == tensor.tolist()


def test_tensors_without_rows_are_tensors(client: Any) -> None:
    found = client.infer("echo_fp32", [tensor_in("x", np.zeros((0, 2), np.float32))]).as_numpy("y")
    assert found.shape == (0, 2)


def test_classification(client: Any) -> None:
    wanted = [tritongrpc.InferRequestedOutput("y", class_count=1)]
    result = client.infer("echo_fp32", [tensor_in("x", np.array([[0.25, 0.75]], np.float32))], outputs=wanted)
    assert result.as_numpy("y").tolist() == [[b"0.750000:1"]]


def test_asynchronous_inference_by_callback(client: Any) -> None:
    answers: Queue[Any] = Queue()
    call = client.async_infer(
        "echo_fp32",
        [tensor_in("x", np.ones((1, 2), np.float32))],
        callback=lambda result, error: answers.put((result, error)),
    )
    result, error = answers.get(timeout=20)
    assert call is not None
    assert error is None
    assert result.as_numpy("y").tolist() == [[1, 1]]


def test_errors_are_understood(client: Any) -> None:
    one = tensor_in("x", np.ones((1, 2), np.float32))
    for args, status, words in (
        (("nobody", [one]), "NOT_FOUND", "unknown model"),
        (("echo_fp32", [one], "7"), "NOT_FOUND", "versions found: 1"),
        (("echo_fp32", [one], "seven"), "INVALID_ARGUMENT", "not a whole number"),
        (("echo_fp32", []), "INVALID_ARGUMENT", "expected 1 inputs but got 0"),
        (("echo_fp32", [one, one]), "ALREADY_EXISTS", "already exists in request"),
        (("echo_fp64", [one]), "INVALID_ARGUMENT", "data-type"),
        (("mlp", [one]), "INVALID_ARGUMENT", "unexpected shape for input 'x'"),
    ):
        error = failed(client, "infer", *args)
        assert error.status() == f"StatusCode.{status}"
        assert words in error.message()
    assert failed(client, "is_model_ready", "mlp", "one").status() == "StatusCode.INVALID_ARGUMENT"


def test_statistics_count_what_was_served(client: Any) -> None:
    before = client.get_inference_statistics("mlp").model_stats[0]
    for rows in (1, 2):
        client.infer("mlp", [tensor_in("x", np.zeros((rows, 32), np.float32))])
    after = client.get_inference_statistics("mlp", "1").model_stats[0]
    assert after.inference_count - before.inference_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert {of_size.batch_size for of_size in after.batch_stats} >= {1, 2}
    assert len(client.get_inference_statistics().model_stats) == len(client.get_model_repository_index().models)
    assert failed(client, "get_inference_statistics", "nobody").status() == "StatusCode.NOT_FOUND"


def test_models_come_and_go(client: Any) -> None:
    def states() -> dict[str, str]:
        return {line.name: line.state for line in client.get_model_repository_index().models}

    assert states()["echo_int8"] == "READY"
    client.unload_model("echo_int8")
    assert states()["echo_int8"] != "READY"
    assert not client.is_model_ready("echo_int8")
    client.load_model("echo_int8", config=json.dumps({"max_batch_size": 2}))
    assert client.get_model_config("echo_int8").config.max_batch_size == 2
    client.load_model("echo_int8")
    assert states()["echo_int8"] == "READY"
    error = failed(client, "load_model", "nobody")
    assert "nobody" in error.message()
    refused = failed(client, "load_model", "mlp", config="{}", files={"file:1/model.onnx": b"x"})
    assert refused.status() == "StatusCode.PERMISSION_DENIED"
    client.unload_model("nobody")


def test_what_is_not_offered_is_said_clearly(client: Any) -> None:
    error = failed(client, "get_cuda_shared_memory_status")
    assert error.status() == "StatusCode.UNIMPLEMENTED"
    assert "CUDA shared memory is not offered" in error.message()


def test_settings_are_told_and_changed(client: Any) -> None:
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]
    changed = client.update_trace_settings(settings={"trace_rate": "7", "trace_count": None}, as_json=True)["settings"]
    assert (changed["trace_rate"]["value"], changed["trace_count"]["value"]) == (["7"], ["-1"])
    client.update_log_settings({"log_info": False})
    assert client.get_log_settings().settings["log_info"].bool_param is False
    assert client.get_log_settings().settings["log_error"].bool_param is True


def test_a_stream_answers_in_order_and_survives_errors(client: Any) -> None:
    answers: Queue[Any] = Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(20):
        name = "nobody" if number == 7 else "echo_fp32"
        row = np.array([[number, 1]], np.float32)
        client.async_stream_infer(name, [tensor_in("x", row)], request_id=str(number))
    for number in range(20):
        result, error = answers.get(timeout=20)
        if number == 7:
            assert "unknown model" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(number)
        assert result.as_numpy("y").tolist() == [[number, 1]]
        assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def test_tensors_travel_in_shared_memory(client: Any) -> None:
    shared = pytest.importorskip("tritonclient.utils.shared_memory")
    rows = np.array([[1, 2], [3, 4]], np.float32)
    handle = shared.create_shared_memory_region("both", "/test-tritonclient", 2 * rows.nbytes)
    try:
        shared.set_shared_memory_region(handle, [rows])
        client.register_system_shared_memory("both", "/test-tritonclient", 2 * rows.nbytes)
        assert set(client.get_system_shared_memory_status().regions) == {"both"}
        item = tritongrpc.InferInput("x", [2, 2], "FP32")
        item.set_shared_memory("both", rows.nbytes)
        asked = tritongrpc.InferRequestedOutput("y")
        asked.set_shared_memory("both", rows.nbytes, offset=rows.nbytes)
        result = client.infer("echo_fp32", [item], outputs=[asked])
        assert list(result.get_response().raw_output_contents) == [b""]
        assert (shared.get_contents_as_numpy(handle, np.float32, [2, 2], offset=rows.nbytes) == rows).all()
        client.unregister_system_shared_memory("both")
        assert not client.get_system_shared_memory_status().regions
    finally:
        shared.destroy_shared_memory_region(handle)


async def test_the_aio_client_streams_too(address: str) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            row = np.array([[number, 1]], np.float32)
            yield {"model_name": "echo_fp32", "inputs": [tensor_in("x", row)], "request_id": str(number)}

    async with tritonaio.InferenceServerClient(address) as client:
        found = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found.append(result.as_numpy("y")[0, 0])
        assert found == [0, 1, 2, 3, 4]


async def test_the_aio_client_does_all_of_this_too(address: str) -> None:
    async with tritonaio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("mlp")
        assert (await client.get_server_metadata()).name == "farthing"
        assert (await client.get_model_metadata("mlp")).inputs[0].name == "x"
        assert (await client.get_model_config("mlp", as_json=True))["config"]["name"] == "mlp"
        rows = np.ones((2, 2), np.float32)
        result = await client.infer("echo_fp32", [tensor_in("x", rows)], request_id="7", client_timeout=20)
        assert (result.as_numpy("y") == rows).all()
        assert (await client.get_inference_statistics("echo_fp32")).model_stats[0].inference_count >= 2
        assert "mlp" in {line.name for line in (await client.get_model_repository_index()).models}
        await client.unload_model("echo_uint8")
        assert not await client.is_model_ready("echo_uint8")
        await client.load_model("echo_uint8")
        assert await client.is_model_ready("echo_uint8")
        with pytest.raises(triton.InferenceServerException, match="unknown model"):
            await client.infer("nobody", [tensor_in("x", rows)])


def test_ours_and_theirs_live_in_one_process() -> None:
    from farthing.protocols.kserve_grpc import message_class

    theirs = tritongrpc.service_pb2.ModelInferRequest(model_name="m", id="1")
    ours = message_class("ModelInferRequest").FromString(theirs.SerializeToString())
    assert ours.id == "1"
    assert type(ours) is not type(theirs)
