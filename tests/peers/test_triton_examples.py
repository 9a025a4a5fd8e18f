"""What the examples of Triton's clients do, where the other pages here do not already: strings, shared memory,
callbacks, cancelling, timeouts, compression, sequences on a stream, and objects that are used again."""

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import identity, running_sum, save, two_inputs_add_sub
from tests.serving import Gate, eventually, serve_process

triton = pytest.importorskip("tritonclient.utils")
CLIENTS = {"http": pytest.importorskip("tritonclient.http"), "grpc": pytest.importorskip("tritonclient.grpc")}
AIO = {"http": pytest.importorskip("tritonclient.http.aio"), "grpc": pytest.importorskip("tritonclient.grpc.aio")}
shared_memory = pytest.importorskip("tritonclient.utils.shared_memory")

SEQUENCE = """
max_batch_size: 4
sequence_batching {
  oldest { max_candidate_sequences: 8 }
  max_sequence_idle_microseconds: 10000000
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""
A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


class Served:
    """A server in a process of its own, and where it is."""

    def __init__(self, addresses: dict[str, str], gate: Gate) -> None:
        self.addresses = addresses
        self.gate = gate


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    save(models / "simple", two_inputs_add_sub())
    save(models / "simple_string", identity("BYTES", ("batch", 16)))
    for name, kind, words in (("sums", "INT64", "INT64"), ("sums_by_text", "BYTES", "STRING")):
        save(models / name, running_sum(id_datatype=kind))
        (models / name / "config.pbtxt").write_text(SEQUENCE % words)
    gate = Gate(models / "gate" / "1", "model")
    gate.name = "gate"
    arguments = (models, "--model-control-mode", "explicit", "--load-model", "*")
    with serve_process(folder, *arguments, grpc=("--grpc", "127.0.0.1:0")):
        yield Served(json.loads((folder / "ready.json").read_text()), gate)
        gate.open()


@pytest.fixture(params=["http", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(served: Served, wire: str) -> Iterator[Any]:
    with closing(CLIENTS[wire].InferenceServerClient(served.addresses[wire])) as one:
        yield one


@pytest.fixture
def shut(served: Served) -> Iterator[Gate]:
    served.gate.shut()
    yield served.gate
    served.gate.open()


def pair(wire: str) -> list[Any]:
    return [given(wire, "INPUT0", A), given(wire, "INPUT1", B)]


def given(wire: str, name: str, tensor: Any, **more: Any) -> Any:
    kind = triton.np_to_triton_dtype(tensor.dtype)
    item = CLIENTS[wire].InferInput(name, list(tensor.shape), kind)
    item.set_data_from_numpy(tensor, **more)
    return item


def one(wire: str, value: float, name: str = "x") -> Any:
    return given(wire, name, np.full((1, 1), value, np.float32))


def is_right(result: Any) -> bool:
    return bool((result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all())


def test_simple_infer_with_every_way_to_carry_tensors(served: Served) -> None:
    module = CLIENTS["http"]
    with closing(module.InferenceServerClient(served.addresses["http"])) as client:
        for is_in_binary in (True, False):
            for is_out_binary in (True, False):
                inputs = [
                    given("http", name, t, binary_data=is_in_binary) for name, t in (("INPUT0", A), ("INPUT1", B))
                ]
                outputs = [module.InferRequestedOutput(f"OUTPUT{i}", binary_data=is_out_binary) for i in (0, 1)]
                assert is_right(client.infer("simple", inputs, outputs=outputs, query_params={"a": 1}))


def test_reuse_infer_objects(client: Any, wire: str) -> None:
    inputs = pair(wire)
    for _ in range(3):
        assert is_right(client.infer("simple", inputs, request_id="again"))
    inputs[0].set_data_from_numpy(B)
    assert (client.infer("simple", inputs).as_numpy("OUTPUT1") == 0).all()


def test_simple_string(client: Any, wire: str) -> None:
    texts = np.array([[str(number).encode() for number in range(15)] + ["\N{SNOWMAN}".encode()]], object)
    assert (client.infer("simple_string", [given(wire, "x", texts)]).as_numpy("y") == texts).all()


def test_simple_async_infer(client: Any, wire: str) -> None:
    if wire == "http":
        assert all(is_right(client.async_infer("simple", pair(wire)).get_result()) for _ in range(8))
        return
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(8):
        client.async_infer("simple", pair(wire), callback=lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=20)
        assert error is None
        assert is_right(result)
    client.async_infer("nobody", pair(wire), callback=lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=20)
    assert result is None
    assert "unknown model" in str(error)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_simple_infer_compressed(client: Any, wire: str, algorithm: str) -> None:
    if wire == "http":
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    else:
        options = {"compression_algorithm": algorithm}
    assert is_right(client.infer("simple", pair(wire), **options))


def test_simple_grpc_custom_and_keepalive_channels(served: Served) -> None:
    module = CLIENTS["grpc"]
    custom = [("grpc.max_concurrent_streams", 10), ("grpc.lb_policy_name", "pick_first")]
    keepalive = module.KeepAliveOptions(keepalive_time_ms=20, keepalive_timeout_ms=2000, http2_max_pings_without_data=0)
    for more in ({"channel_args": custom}, {"keepalive_options": keepalive}):
        with closing(module.InferenceServerClient(served.addresses["grpc"], **more)) as client:
            assert is_right(client.infer("simple", pair("grpc")))


def test_client_timeouts(served: Served, wire: str, shut: Gate) -> None:
    address = served.addresses[wire]
    if wire == "http":
        client = CLIENTS["http"].InferenceServerClient(address, network_timeout=0.05)
        with closing(client), pytest.raises(Exception, match="timed out"):
            client.infer("gate", [one(wire, 1)])
    else:
        client = CLIENTS["grpc"].InferenceServerClient(address)
        with closing(client), pytest.raises(triton.InferenceServerException, match="Deadline Exceeded"):
            client.infer("gate", [one(wire, 1)], client_timeout=0.05)
    shut.open()
    with closing(CLIENTS[wire].InferenceServerClient(address)) as client:
        assert client.infer("gate", [one(wire, 2)]).as_numpy("y") == 2


def test_simple_grpc_cancel(served: Served, shut: Gate) -> None:
    with closing(CLIENTS["grpc"].InferenceServerClient(served.addresses["grpc"])) as client:
        answers: queue.Queue[Any] = queue.Queue()

        def told(result: Any, error: Any) -> None:
            answers.put((result, error))

        client.async_infer("gate", [one("grpc", 1)], callback=told)
        eventually(lambda: shut.seen() == [1.0])
        client.async_infer("gate", [one("grpc", 2)], callback=told).cancel()
        result, error = answers.get(timeout=20)
        assert result is None
        assert "Locally cancelled" in str(error) or "CANCELLED" in str(error)
        shut.open()
        result, error = answers.get(timeout=20)
        assert (error, result.as_numpy("y")) == (None, 1)
        assert client.infer("gate", [one("grpc", 3)]).as_numpy("y") == 3
        assert 2.0 not in shut.seen()


def test_simple_grpc_stream_cancel(served: Served, shut: Gate) -> None:
    with closing(CLIENTS["grpc"].InferenceServerClient(served.addresses["grpc"])) as client:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer("gate", [one("grpc", 1)])
        eventually(lambda: shut.seen() == [1.0])
        client.async_stream_infer("gate", [one("grpc", 2)])
        client.stop_stream(cancel_requests=True)
        shut.open()
        assert client.infer("gate", [one("grpc", 3)]).as_numpy("y") == 3
        assert 2.0 not in shut.seen()


@pytest.mark.parametrize("model", ["sums", "sums_by_text"])
def test_simple_grpc_sequence_stream(served: Served, model: str) -> None:
    with closing(CLIENTS["grpc"].InferenceServerClient(served.addresses["grpc"])) as client:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        ids: list[Any] = [1007, 1008] if model == "sums" else ["left", "right"]
        values = [11, 7, 5, 3, 2, 0, 1]
        for place, value in enumerate(values):
            for sequence, sign in zip(ids, (1, -1), strict=True):
                client.async_stream_infer(
                    model,
                    [one("grpc", sign * value)],
                    request_id=f"{sequence}_{place}",
                    sequence_id=sequence,
                    sequence_start=place == 0,
                    sequence_end=place == len(values) - 1,
                )
        found: dict[Any, list[float]] = {sequence: [] for sequence in ids}
        for _ in range(2 * len(values)):
            result, error = answers.get(timeout=20)
            assert error is None
            sequence, _, place = result.get_response().id.partition("_")
            key = int(sequence) if model == "sums" else sequence
            assert int(place) == len(found[key]), "in order"
            found[key].append(float(result.as_numpy("y")[0, 0]))
        client.stop_stream()
        sums = np.cumsum(values).tolist()
        assert [found[sequence] for sequence in ids] == [sums, [-total for total in sums]]


@pytest.fixture
def region() -> Iterator[Callable[[str, int], Any]]:
    """Makes regions, which go when the test does."""
    made = []

    def make(name: str, size: int) -> Any:
        handle = shared_memory.create_shared_memory_region(name, f"/test-{name}", size)
        made.append(handle)
        return handle

    yield make
    for handle in made:
        shared_memory.destroy_shared_memory_region(handle)
    assert not list(Path("/dev/shm").glob("test-example-*"))


def test_simple_shared_memory(client: Any, wire: str, region: Callable[[str, int], Any]) -> None:
    module, size = CLIENTS[wire], A.nbytes
    taken, put = f"example-in-{wire}", f"example-out-{wire}"
    handle = region(taken, 2 * size)
    shared_memory.set_shared_memory_region(handle, [A, B])
    answer = region(put, 2 * size)
    for name in (taken, put):
        client.register_system_shared_memory(name, f"/test-{name}", 2 * size)
    inputs, outputs = [], []
    for place in (0, 1):
        item = module.InferInput(f"INPUT{place}", [1, 16], "INT32")
        item.set_shared_memory(taken, size, offset=place * size)
        inputs.append(item)
        wanted = module.InferRequestedOutput(f"OUTPUT{place}")
        wanted.set_shared_memory(put, size, offset=place * size)
        outputs.append(wanted)
    result = client.infer("simple", inputs, outputs=outputs)
    if wire == "http":
        assert not {"data", "parameters"} & set(result.get_output("OUTPUT0"))
    for place, right in ((0, A + B), (1, A - B)):
        found = shared_memory.get_contents_as_numpy(answer, np.int32, [1, 16], offset=place * size)
        assert (found == right).all()
    client.unregister_system_shared_memory(taken)
    with pytest.raises(triton.InferenceServerException, match="Unable to find shared memory region"):
        client.infer("simple", inputs, outputs=outputs)
    client.unregister_system_shared_memory()


def test_simple_shared_memory_strings(client: Any, wire: str, region: Callable[[str, int], Any]) -> None:
    module = CLIENTS[wire]
    texts = np.array([[str(number).encode() for number in range(16)]], object)
    packed = triton.serialize_byte_tensor(texts)
    size = triton.serialized_byte_size(packed)
    name = f"example-text-{wire}"
    handle = region(name, 2 * size)
    shared_memory.set_shared_memory_region(handle, [packed])
    client.register_system_shared_memory(name, f"/test-{name}", 2 * size)
    item = module.InferInput("x", [1, 16], "BYTES")
    item.set_shared_memory(name, size)
    wanted = module.InferRequestedOutput("y")
    wanted.set_shared_memory(name, size, offset=size)
    client.infer("simple_string", [item], outputs=[wanted])
    assert (shared_memory.get_contents_as_numpy(handle, np.object_, [1, 16], offset=size) == texts).all()
    client.unregister_system_shared_memory(name)


def test_simple_model_control(client: Any, wire: str) -> None:
    client.unload_model("simple")
    eventually(lambda: not client.is_model_ready("simple"))
    with pytest.raises(triton.InferenceServerException):
        client.infer("simple", pair(wire))
    client.load_model("simple", config='{"max_batch_size": 2}')
    told = client.get_model_config("simple")
    assert (told if wire == "http" else told.config and {"max_batch_size": told.config.max_batch_size})[
        "max_batch_size"
    ] == 2
    client.load_model("simple")
    assert is_right(client.infer("simple", pair(wire)))


async def test_simple_aio_infer_many_at_once(served: Served, wire: str) -> None:
    async with AIO[wire].InferenceServerClient(served.addresses[wire]) as client:
        assert await client.is_server_live()
        results = await asyncio.gather(*[client.infer("simple", pair(wire)) for _ in range(32)])
        assert all(map(is_right, results))
        with pytest.raises(triton.InferenceServerException, match="unknown model"):
            await client.infer("nobody", pair(wire))


async def test_simple_grpc_aio_sequence_stream_and_its_cancelling(served: Served, shut: Gate) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for place, value in enumerate((1, 2, 3)):
            yield {
                "model_name": "sums",
                "inputs": [one("grpc", value)],
                "sequence_id": 2001,
                "sequence_start": place == 0,
                "sequence_end": place == 2,
            }

    async def gated() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "gate", "inputs": [one("grpc", 11)]}
        await asyncio.to_thread(eventually, lambda: shut.seen() == [11.0])
        yield {"model_name": "gate", "inputs": [one("grpc", 12)]}

    async with AIO["grpc"].InferenceServerClient(served.addresses["grpc"]) as client:
        found = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found.append(float(result.as_numpy("y")[0, 0]))
        assert found == [1, 3, 6]
        stream = client.stream_infer(gated())
        task = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(eventually, lambda: shut.seen() == [11.0])
        stream.cancel()
        with pytest.raises((asyncio.CancelledError, triton.InferenceServerException)):
            await task
        shut.open()
        assert (await client.infer("gate", [one("grpc", 13)])).as_numpy("y") == 13
        assert 12.0 not in shut.seen()
