import asyncio

import grpc
import numpy as np
import pytest
from tests.models import identity, save
from tests.serving import serving, small_repository

from farthing.bench.endpoint import model_inputs, parse_endpoint
from farthing.bench.grpc_call import call
from farthing.bench.load import Load
from farthing.bench.records import GRPC
from farthing.bench.workload import infer_work
from farthing.config.server import Address
from farthing.types.errors import EngineFailed, Unavailable

native = pytest.importorskip("farthing.bench.native_driver", reason="no epoll here")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    folder = small_repository(tmp_path_factory.mktemp("r"))
    save(folder / "large", identity(shape=(1, "any")))
    with serving(folder, grpc=Address("127.0.0.1", 0)) as live:
        live.run(live.server.listen_grpc())
        yield parse_endpoint(f"127.0.0.1:{live.server.grpc.port}", "grpc")


def run(endpoint, model, inputs, **load):
    work = infer_work(endpoint, {model: [inputs]}, {model: 1}, is_json=False)
    return native.NativeDriver(
        endpoint.host, endpoint.port, work, Load(**{"connections": 3, "duration_s": 20, **load})
    ).run()


def test_our_own_server_is_asked_what_a_model_takes_and_loaded(endpoint):
    (spec,) = model_inputs(endpoint, "mlp")
    assert (spec.name, spec.shape) == ("x", (-1, 32))
    found = run(endpoint, "mlp", {"x": np.zeros((1, 32), np.float32)}, requests_max=300)
    assert found.is_answered.sum() == 300
    assert found.connections_opened <= 3


def test_messages_larger_than_every_window_arrive(endpoint):
    found = run(endpoint, "large", {"x": np.ones((1, 400_000), np.float32)}, requests_max=12)
    assert found.status.tolist() == [200] * 12


def test_a_refusal_has_its_status(endpoint):
    found = run(endpoint, "mlp", {"x": np.zeros((1, 3), np.float32)}, requests_max=2)
    assert found.status.tolist() == [GRPC - grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 2
    with pytest.raises(EngineFailed, match="nobody"):
        model_inputs(endpoint, "nobody")


def test_grpcs_own_server_is_understood():
    """Its headers are in Huffman's code, its settings are its own."""

    async def scenario():
        async def infer(request, context):
            if b"refuse" in request:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
            return request * 1000

        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        there = parse_endpoint(f"127.0.0.1:{port}", "grpc")
        try:
            good = await asyncio.to_thread(run, there, "m", {"x": np.zeros((400, 9), np.float32)}, requests_max=40)
            refused = await asyncio.to_thread(run, there, "refuse", {"x": np.zeros((1, 9), np.float32)}, requests_max=2)
            echoed = await asyncio.to_thread(call, there, "ModelInfer", b"abc")
        finally:
            await server.stop(0)
        return good, refused, echoed

    good, refused, echoed = asyncio.run(scenario())
    assert good.is_answered.sum() == 40
    assert refused.status.tolist() == [GRPC - 8] * 2
    assert echoed == b"abc" * 1000


def test_nobody_there_is_said():
    with pytest.raises(Unavailable, match="cannot be reached"):
        call(parse_endpoint("127.0.0.1:1", "grpc"), "ModelInfer", b"")
