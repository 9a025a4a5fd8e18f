"""Calls of many messages: `ModelStreamInfer`, the health check's `Watch`, reflection."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.models import identity, save
from tests.server.http2_wire import END, Http2Wire
from tests.server.test_grpc import WAIT_S, Client, drained, grpc_serving, infer_message
from tests.serving import Gate, Live, eventually, small_repository

from farthing.protocols.grpc_wire import prefixed
from farthing.protocols.http2.frames import FrameType, Setting, frame, window_update
from farthing.protocols.http2.limits import STREAM_WINDOW_BYTES
from farthing.protocols.kserve_grpc import (
    REFLECTION_SERVICES,
    health_message_class,
    message_class,
    reflection_message_class,
)
from farthing.server import grpc_health
from farthing.server.auth import Role, new_key
from farthing.server.grpc_streams import REQUESTS_MAX

Code = grpc.StatusCode
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Talk:
    """A stream under way: what is put goes out, answers are read one by one."""

    def __init__(self, client: Client, path: str = STREAM, answer: Any = None, **more: Any) -> None:
        self._to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._kind = answer or message_class("ModelStreamInferResponse")
        self.call = client.channel.stream_stream(path)(iter(self._to_send.get, None), timeout=WAIT_S, **more)

    def put(self, *messages: Any) -> "Talk":
        for message in messages:
            self._to_send.put(message.SerializeToString())
        return self

    def end(self) -> "Talk":
        self._to_send.put(None)
        return self

    def get(self) -> Any:
        return self._kind.FromString(next(self.call))

    def rest(self) -> list[Any]:
        return [self._kind.FromString(data) for data in self.call]


def asking(values: list[list[float]], model: str = "echo", id: str = "") -> Any:
    message = infer_message(values, model)
    message.id = id
    return message


def values_of(answer: Any) -> list[float]:
    assert not answer.error_message
    found: list[float] = np.frombuffer(answer.infer_response.raw_output_contents[0], "<f4").tolist()
    return found


def is_final(answer: Any) -> bool:
    flag: bool = answer.infer_response.parameters["triton_final_response"].bool_param
    return flag


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    folder = small_repository(tmp_path_factory.mktemp("repository"))
    save(folder / "wide", identity(shape=("batch", "width")))
    with grpc_serving(folder) as pair:
        yield pair


@pytest.fixture
def client(both: tuple[Live, Client]) -> Client:
    return both[1]


# -- tensors -------------------------------------------------------------------------------------------------------------


def test_requests_are_answered_in_their_order_and_the_stream_ends_well(client: Client) -> None:
    talk = Talk(client).put(*(asking([[i, i + 1]], id=str(i)) for i in range(1000))).end()
    answers = talk.rest()
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(1000)]
    assert [values_of(answer) for answer in answers] == [[i, i + 1] for i in range(1000)]
    assert all(is_final(answer) for answer in answers)
    assert talk.call.code() is Code.OK


def test_a_stream_without_requests_ends_well(client: Client) -> None:
    talk = Talk(client).end()
    assert talk.rest() == []
    assert talk.call.code() is Code.OK


def test_an_error_is_an_answer_in_its_place_and_the_stream_goes_on(client: Client) -> None:
    talk = Talk(client)
    talk.put(asking([[1, 2]], id="a"), asking([[1, 2]], "nobody", id="b"), asking([[1, 2, 3]], id="c"))
    talk.put(message_class("ModelInferRequest")(model_name="echo", id="d"), asking([[3, 4]], id="e")).end()
    answers = talk.rest()
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d", "e"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, True, False]
    assert "unknown model" in answers[1].error_message
    assert "expected 1 inputs but got 0" in answers[3].error_message
    assert values_of(answers[4]) == [3, 4]
    assert talk.call.code() is Code.OK


def test_bytes_that_are_no_message_are_an_error_and_the_stream_goes_on(client: Client) -> None:
    talk = Talk(client)
    talk._to_send.put(b"\xff\xff")
    talk.put(asking([[1, 2]])).end()
    first, second = talk.rest()
    assert "are no ModelInferRequest" in first.error_message
    assert values_of(second) == [1, 2]


def test_a_caller_may_ask_that_the_first_error_end_the_stream(client: Client) -> None:
    talk = Talk(client, metadata=[("triton_grpc_error", "true")])
    assert values_of(talk.put(asking([[1, 2]])).get()) == [1, 2]
    talk.put(asking([[1, 2]], "nobody"))
    with pytest.raises(grpc.RpcError):
        talk.get()
    assert talk.call.code() is Code.NOT_FOUND
    talk.end()


def test_large_messages_and_many_more_than_are_taken_at_once_pass(client: Client) -> None:
    row = [float(i) for i in range(400_000)]  # more than the stream's window
    assert len(row) * 4 > STREAM_WINDOW_BYTES
    talk = Talk(client).put(asking([row], "wide"), *(asking([[i, 1]], "wide") for i in range(3 * REQUESTS_MAX))).end()
    first, *others = talk.rest()
    assert values_of(first) == row
    assert [values_of(answer)[0] for answer in others] == list(range(3 * REQUESTS_MAX))


def test_compressed_streams_are_inflated(client: Client) -> None:
    row = [1.0] * 50_000
    talk = Talk(client, compression=grpc.Compression.Gzip).put(asking([row], "wide"), asking([[1, 2]])).end()
    assert [len(values_of(answer)) for answer in talk.rest()] == [50_000, 2]


def test_a_client_that_leaves_takes_its_queued_requests_along(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path) as (live, client):
        first = Talk(client).put(asking([[1]], "gate"))
        eventually(gate.seen)
        second = Talk(client).put(asking([[2]], "gate"), asking([[3]], "gate"))
        eventually(lambda: live.metric("farthing_pending_rows") == 2)
        second.call.cancel()
        eventually(lambda: live.metric("farthing_pending_rows") == 0)
        gate.open()
        assert values_of(first.get()) == [1]
        first.end()
        assert gate.seen() == [1]
        eventually(lambda: live.metric("farthing_grpc_requests_in_flight") == 0)
        assert live.server is not None
        assert live.server._admission.bytes == 0


def test_a_deadline_ends_a_stream_and_its_requests(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path) as (live, client):
        first = Talk(client).put(asking([[1]], "gate"))
        eventually(gate.seen)
        with Http2Wire(live.server.grpc) as wire:  # type: ignore[union-attr, arg-type]
            body = prefixed(asking([[2]], "gate").SerializeToString())
            wire.send(wire.headers(1, STREAM, grpc_timeout="200m"), frame(FrameType.DATA, 0, 1, body))
            eventually(lambda: live.metric("farthing_pending_rows") == 1)
            assert wire.status(1) == Code.DEADLINE_EXCEEDED.value[0]
        eventually(lambda: live.metric("farthing_pending_rows") == 0)
        gate.open()
        assert values_of(first.get()) == [1]
        first.end()


def test_a_tenant_s_share_counts_the_requests_of_a_stream(tmp_path: Path) -> None:
    key, entry = new_key("shop", (Role.INFERENCE,))
    keys = tmp_path / "keys.toml"
    keys.write_text(entry + "inflight_max = 2\n")
    gate = Gate(tmp_path / "model")
    with grpc_serving(gate.path, keys=keys) as (_, client):
        with pytest.raises(grpc.RpcError):
            Talk(client).end().get()
        talk = Talk(client, metadata=[("x-api-key", key)])
        talk.put(*(asking([[i]], "gate", id=str(i)) for i in range(1, 4)))
        eventually(gate.seen)
        gate.open()
        answers = [talk.get() for _ in range(3)]
        assert [bool(answer.error_message) for answer in answers] == [False, False, True]
        assert "`shop` has 2 requests under way" in answers[2].error_message
        assert values_of(talk.put(asking([[5]], "gate")).get()) == [5]
        assert talk.end().rest() == []


def test_a_client_that_does_not_read_is_not_read_from_and_costs_no_more_than_its_window(tmp_path: Path) -> None:
    folder = tmp_path
    save(folder / "wide", identity(shape=("batch", "width")))
    body = prefixed(asking([[1.0] * 4000], "wide").SerializeToString())  # 16 KB
    with grpc_serving(folder) as (live, _):
        address: Any = live.server.grpc  # type: ignore[union-attr]
        with Http2Wire(address, values={Setting.INITIAL_WINDOW_SIZE: 0}) as wire:
            wire.send(wire.headers(1, STREAM))
            sent, window = 0, STREAM_WINDOW_BYTES
            while sent < 400:  # a client that keeps to its windows and sends as long as it may
                if window < len(body):
                    wire.socket.settimeout(0.3)
                    try:
                        found = wire.read_frame()
                    except TimeoutError:
                        break
                    if found is not None and found.kind == FrameType.WINDOW_UPDATE and found.stream:
                        window += int.from_bytes(found.payload, "big")
                    continue
                for at in range(0, len(body), 16_000):
                    wire.send(frame(FrameType.DATA, 0, 1, body[at : at + 16_000]))
                window -= len(body)
                sent += 1
            assert sent < 400, "it was read from although it reads nothing"
            assert live.server is not None
            held = live.server._admission.bytes
            assert held <= 2 * STREAM_WINDOW_BYTES + 2 * 1024 * 1024 + REQUESTS_MAX * len(body)
            wire.socket.settimeout(WAIT_S)
            wire.send(window_update(1, 1 << 30), window_update(0, 1 << 30), frame(FrameType.DATA, END, 1))
            assert wire.status(1) == 0
            assert len(wire.bodies[1]) > sent * 16_000
        eventually(lambda: live.server is not None and live.server._admission.bytes == 0)


def test_at_the_end_what_came_is_answered_and_the_stream_told(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path) as (live, client):
        talk = Talk(client).put(asking([[1]], "gate"), asking([[2]], "gate"))
        eventually(gate.seen)
        eventually(lambda: live.metric("farthing_pending_rows") == 1)
        thread, answers = drained(live)
        gate.open()
        assert [values_of(talk.get()) for _ in range(2)] == [[1], [2]]
        with pytest.raises(grpc.RpcError):
            talk.get()
        assert talk.call.code() is Code.UNAVAILABLE
        talk.end()
        thread.join(WAIT_S)
        assert answers == [True]


# -- health and reflection -------------------------------------------------------------------------------------------------


def test_watchers_hear_of_a_change_and_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "WATCH_S", 0.02)
    kind = health_message_class("HealthCheckResponse")
    with grpc_serving(small_repository(tmp_path), load=False) as (live, client):
        watch = Talk(client, "/grpc.health.v1.Health/Watch", kind).put(health_message_class("HealthCheckRequest")())
        assert watch.get().status == kind.NOT_SERVING
        assert live.server is not None
        live.run(live.server.load())
        assert watch.get().status == kind.SERVING
        stranger = Talk(client, "/grpc.health.v1.Health/Watch", kind)
        assert (
            stranger.put(health_message_class("HealthCheckRequest")(service="x")).get().status == kind.SERVICE_UNKNOWN
        )
        thread, answers = drained(live)
        assert watch.get().status == kind.NOT_SERVING
        with pytest.raises(grpc.RpcError):
            watch.get()
        assert watch.call.code() is Code.UNAVAILABLE
        thread.join(WAIT_S)
        assert answers == [True]
        for talk in (watch, stranger):
            talk.end()


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
def test_reflection_tells_the_services_and_their_files(client: Client, service: str) -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool

    request = reflection_message_class(service, "ServerReflectionRequest")
    answer = reflection_message_class(service, "ServerReflectionResponse")
    talk = Talk(client, f"/{service}/ServerReflectionInfo", answer)
    names = [found.name for found in talk.put(request(list_services="")).get().list_services_response.service]
    assert names == ["inference.GRPCInferenceService", "grpc.health.v1.Health", *REFLECTION_SERVICES]
    theirs = descriptor_pool.DescriptorPool()
    for name in names:
        files = talk.put(request(file_containing_symbol=name)).get().file_descriptor_response.file_descriptor_proto
        for data in reversed(files):
            theirs.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
        assert theirs.FindServiceByName(name).methods
    assert "ModelStreamInfer" in theirs.FindServiceByName(names[0]).methods_by_name
    by_name = talk.put(request(file_by_filename="grpc_service.proto")).get()
    assert by_name.file_descriptor_response.file_descriptor_proto
    assert talk.put(request(file_containing_symbol="no.Such")).get().error_response.error_code == 5
    assert (
        talk.put(request(all_extension_numbers_of_type="inference.ModelInferRequest"))
        .get()
        .HasField("all_extension_numbers_response")
    )
    assert talk.put(request()).get().error_response.error_code == 12
    assert talk.end().rest() == []
