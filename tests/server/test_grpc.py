"""gRPC over real sockets: health, statuses, deadlines, keys, limits, TLS, and the end."""

import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.test_tls import Authority
from tests.serving import Gate, Live, eventually, infer_json, serve_process, serving, small_repository

from farthing.config.server import Address, AdmissionLimits, HttpLimits, ModelControl, ServerConfig, Tls
from farthing.protocols.kserve_grpc import health_message_class, message_class
from farthing.repository import Repository
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Role, new_key
from farthing.server.grpc_service import GrpcService
from farthing.server.server import Server
from farthing.types.errors import CannotListen

WAIT_S = 20.0
Code = grpc.StatusCode
ANY_PORT = Address("127.0.0.1", 0)


class Client:
    """The far end of one gRPC connection: messages by name."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def raw(self, method: str, service: str = "inference.GRPCInferenceService") -> Any:
        """A unary call of bytes."""
        return self.channel.unary_unary(f"/{service}/{method}")

    def ask(self, method: str, **fields: Any) -> Any:
        """One call, answered as a message. Raises `grpc.RpcError`."""
        request = message_class(f"{method}Request")(**fields)
        answer = self.raw(method)(request.SerializeToString(), timeout=WAIT_S)
        return message_class(f"{method}Response").FromString(answer)

    def begin(self, values: list[list[float]], model: str = "gate", timeout: float = WAIT_S, **more: Any) -> Any:
        """An inference request under way."""
        return self.raw("ModelInfer").future(infer_message(values, model).SerializeToString(), timeout=timeout, **more)

    def fails(self, method: str, data: bytes = b"", **more: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
        """The status, its text and the trailers of a call that must fail."""
        with pytest.raises(grpc.RpcError) as refused:
            self.raw(method)(data, timeout=WAIT_S, **more)
        return failure(refused.value)


def failure(error: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    return error.code(), error.details(), dict(error.trailing_metadata() or ())


def infer_message(values: list[list[float]], model: str = "echo") -> Any:
    tensor = np.array(values, "<f4")
    return message_class("ModelInferRequest")(
        model_name=model,
        inputs=[{"name": "x", "datatype": "FP32", "shape": tensor.shape}],
        raw_input_contents=[tensor.tobytes()],
    )


@contextmanager
def grpc_serving(*paths: Path, **settings_: Any) -> Iterator[tuple[Live, Client]]:
    """A server with a gRPC port, and a client of it."""
    with serving(*paths, grpc=ANY_PORT, **settings_) as live:
        assert live.server is not None
        live.run(live.server.listen_grpc())
        with grpc.insecure_channel(str(live.server.grpc)) as channel:
            yield live, Client(channel)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    with grpc_serving(small_repository(tmp_path_factory.mktemp("repository"))) as pair:
        yield pair


@pytest.fixture
def client(both: tuple[Live, Client]) -> Client:
    return both[1]


# -- answers -------------------------------------------------------------------------------------------------------------


def test_a_request_is_answered_as_over_http(both: tuple[Live, Client]) -> None:
    live, client = both
    answer = client.ask("ModelInfer", model_name="mlp", id="7", **mlp_input())
    assert (answer.model_name, answer.model_version, answer.id) == ("mlp", "1", "7")
    found = np.frombuffer(answer.raw_output_contents[0], "<f4")
    assert found.tolist() == pytest.approx(live.infer("mlp", [[0.5] * 32]).json["outputs"][0]["data"])


def mlp_input() -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 32], "contents": {"fp32_contents": [0.5] * 32}}]}


def test_health_is_told_by_both_services(client: Client) -> None:
    assert client.ask("ServerLive").live
    assert client.ask("ServerReady").ready
    assert client.ask("ModelReady", name="echo", version="1").ready
    assert health(client, "") == health(client, "inference.GRPCInferenceService") == 1
    with pytest.raises(grpc.RpcError) as refused:
        health(client, "other.Service")
    assert failure(refused.value)[0] is Code.NOT_FOUND


def health(client: Client, service: str) -> int:
    request = health_message_class("HealthCheckRequest")(service=service).SerializeToString()
    answer = client.raw("Check", "grpc.health.v1.Health")(request, timeout=WAIT_S)
    status: int = health_message_class("HealthCheckResponse").FromString(answer).status
    return status


def test_a_server_that_still_loads_is_live_and_not_ready(tmp_path: Path) -> None:
    with grpc_serving(tmp_path, load=False) as (_, client):
        assert client.ask("ServerLive").live
        assert not client.ask("ServerReady").ready
        assert health(client, "") == 2


def test_rpcs_that_are_not_offered_say_so(client: Client) -> None:
    for verb in ("Status", "Register", "Unregister"):
        code, details, _ = client.fails(f"CudaSharedMemory{verb}")
        assert code is Code.UNIMPLEMENTED
        assert "CUDA shared memory is not offered" in details
    assert client.fails("NoSuchMethod")[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"model_name": "nobody"}, Code.NOT_FOUND, "unknown model"),
        ({"model_name": "echo", "model_version": "9"}, Code.NOT_FOUND, "versions found: 1"),
        ({"model_name": "echo", "model_version": "one"}, Code.INVALID_ARGUMENT, "not a whole number"),
        ({"model_name": "echo"}, Code.INVALID_ARGUMENT, "expected 1 inputs but got 0"),
        ({"model_name": "echo", "outputs": [{"name": "z"}]}, Code.INVALID_ARGUMENT, "unexpected inference output"),
    ],
)
def test_errors_have_the_status_of_their_kind_and_a_hint(
    client: Client, fields: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    found, details, _ = client.fails("ModelInfer", message_class("ModelInferRequest")(**fields).SerializeToString())
    assert found is code
    assert text in details


def test_our_own_mistakes_are_internal_and_leave_nothing_of_ours_in_the_answer(
    both: tuple[Live, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(Runtime, "statistics", broken)
    code, details, _ = both[1].fails("ModelStatistics")
    assert code is Code.INTERNAL
    assert "secret" not in details


def test_answers_are_counted(both: tuple[Live, Client]) -> None:
    live, client = both
    before = live.metric("farthing_grpc_requests_total", route="health", code="OK")
    missing = live.metric("farthing_grpc_requests_total", route="infer", code="NOT_FOUND")
    client.ask("ServerLive")
    client.fails("ModelInfer")
    assert live.metric("farthing_grpc_requests_total", route="health", code="OK") == before + 1
    assert live.metric("farthing_grpc_requests_total", route="infer", code="NOT_FOUND") == missing + 1
    assert live.metric("farthing_grpc_requests_in_flight") == 0


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_strangers_bytes_get_an_answer_and_the_server_lives(both: tuple[Live, Client], data: bytes) -> None:
    code, _, _ = both[1].fails("ModelInfer", data)
    assert code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED)


def test_compressed_messages_are_inflated(client: Client) -> None:
    data = infer_message([[1, 2]] * 1000).SerializeToString()
    answer = client.raw("ModelInfer")(data, timeout=WAIT_S, compression=grpc.Compression.Gzip)
    outputs = message_class("ModelInferResponse").FromString(answer).raw_output_contents
    assert np.frombuffer(outputs[0], "<f4").tolist() == [1, 2] * 1000


# -- deadlines and clients that leave ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_whoever_gave_up_waiting_is_not_run(tmp_path: Path, way: str) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path) as (live, client):
        first = client.begin([[1]])
        eventually(gate.seen)
        second = client.begin([[2]], timeout=0.3 if way == "deadline" else WAIT_S)
        if way == "cancel":
            eventually(lambda: live.metric("farthing_pending_rows") == 1)
            second.cancel()
        else:
            assert second.code() is Code.DEADLINE_EXCEEDED
        eventually(lambda: live.metric("farthing_pending_rows") == 0)
        third = client.begin([[3]])
        gate.open()
        assert first.result(WAIT_S)
        assert third.result(WAIT_S)
        assert gate.seen() == [1, 3]


class Noting:
    """A runtime with one model that only notes what it is asked."""

    spec: Any = None
    regions = None

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def resolve(self, name: str, version: str) -> "Noting":
        return self

    def check(self, request: Any) -> tuple[int, str]:
        return 1, ""

    def submit(self, request: Any, *_: object) -> None:
        self.asked.append(request)


class Caller:
    """A call whose message is here."""

    tenant = "shop"
    received_ns = 0
    is_done = False
    on_gone = None

    def __init__(self, timeout_us: int) -> None:
        self.timeout_us = timeout_us


@pytest.mark.parametrize(("parameter", "deadline", "found"), [(0, 0, 0), (0, 7, 7), (5, 0, 5), (5, 7, 5), (9, 7, 7)])
def test_the_shorter_of_parameter_and_deadline_is_the_timeout(parameter: int, deadline: int, found: int) -> None:
    runtime: Any = Noting()
    caller: Any = Caller(deadline)
    message = infer_message([[1, 2]])
    if parameter:
        message.parameters["timeout"].int64_param = parameter
    GrpcService(runtime, 1 << 20).infer(message, caller)
    assert runtime.asked[0].timeout_us == found
    assert runtime.asked[0].tenant == "shop"


# -- who may -------------------------------------------------------------------------------------------------------------


def test_keys_open_the_same_doors_as_over_http(tmp_path: Path) -> None:
    user, user_entry = new_key("user", (Role.INFERENCE,))
    chief, chief_entry = new_key("chief", (Role.INFERENCE, Role.CONTROL))
    keys = tmp_path / "keys.toml"
    keys.write_text(user_entry + chief_entry)
    echo = infer_message([[1, 2]]).SerializeToString()
    load = message_class("RepositoryModelLoadRequest")(model_name="echo").SerializeToString()
    models = small_repository(tmp_path / "models")
    with grpc_serving(models, keys=keys, model_control=ModelControl.EXPLICIT, load_models=("echo",)) as (_, client):
        assert client.ask("ServerReady").ready
        assert client.fails("ModelInfer", echo)[0] is Code.UNAUTHENTICATED
        assert client.fails("ModelInfer", echo, metadata=[("x-api-key", "wrong")])[0] is Code.UNAUTHENTICATED
        assert client.fails("ServerMetadata")[0] is Code.UNAUTHENTICATED
        for metadata in ([("x-api-key", user)], [("authorization", f"Bearer {user}")]):
            assert client.raw("ModelInfer")(echo, metadata=metadata, timeout=WAIT_S)
            code, details, _ = client.fails("RepositoryModelLoad", load, metadata=metadata)
            assert code is Code.PERMISSION_DENIED
            assert "`user` does not open this" in details
        assert client.raw("RepositoryModelLoad")(load, metadata=[("x-api-key", chief)], timeout=WAIT_S) == b""


def test_a_tenant_over_its_share_is_told_when_to_come_back(tmp_path: Path) -> None:
    key, entry = new_key("shop", (Role.INFERENCE,))
    keys = tmp_path / "keys.toml"
    keys.write_text(entry + "inflight_max = 1\n")
    gate = Gate(tmp_path / "model")
    with grpc_serving(gate.path, keys=keys) as (_, client):
        metadata = (("x-api-key", key),)
        first = client.begin([[1]], metadata=metadata)
        eventually(gate.seen)
        code, _, trailers = failure(client.begin([[2]], metadata=metadata).exception(WAIT_S))
        assert (code, trailers["retry-after"]) == (Code.RESOURCE_EXHAUSTED, "1")
        gate.open()
        assert first.result(WAIT_S)
        assert client.begin([[3]], metadata=metadata).result(WAIT_S)


def test_settings_are_told_and_changed_only_where_control_is_open(tmp_path: Path) -> None:
    level = logging.getLogger("farthing").level
    try:
        with grpc_serving(small_repository(tmp_path)) as (_, client):
            assert client.ask("LogSettings").settings["log_error"].bool_param
            assert client.ask("TraceSetting", model_name="echo").settings["trace_level"].value == ["OFF"]
            change = message_class("LogSettingsRequest")()
            change.settings["log_verbose_level"].uint32_param = 2
            assert client.fails("LogSettings", change.SerializeToString())[0] is Code.PERMISSION_DENIED
            assert client.fails("TraceSetting", b"\x12\x01x")[0] is Code.NOT_FOUND
        control = {"model_control": ModelControl.EXPLICIT, "load_models": ("echo",)}
        with grpc_serving(tmp_path, **control) as (_, client):
            answer = client.raw("LogSettings")(change.SerializeToString(), timeout=WAIT_S)
            assert (
                message_class("LogSettingsResponse").FromString(answer).settings["log_verbose_level"].uint32_param == 2
            )
            assert logging.getLogger("farthing").level == logging.DEBUG
            trace = message_class("TraceSettingRequest")()
            trace.settings["trace_rate"].value.append("5")
            answer = client.raw("TraceSetting")(trace.SerializeToString(), timeout=WAIT_S)
            assert message_class("TraceSettingResponse").FromString(answer).settings["trace_rate"].value == ["5"]
            trace.model_name = "echo"
            answer = client.raw("TraceSetting")(trace.SerializeToString(), timeout=WAIT_S)
            assert message_class("TraceSettingResponse").FromString(answer).settings["trace_rate"].value == ["5"]
    finally:
        logging.getLogger("farthing").setLevel(level)


# -- limits --------------------------------------------------------------------------------------------------------------


def test_bytes_of_both_protocols_share_one_limit(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    size = len(infer_message([[1]], "gate").SerializeToString())
    with grpc_serving(gate.path, admission=AdmissionLimits(inflight_bytes_max=size + 10)) as (live, client):
        first = client.begin([[1]])
        eventually(gate.seen)
        code, details, trailers = failure(client.begin([[2]]).exception(WAIT_S))
        assert (code, trailers["retry-after"]) == (Code.UNAVAILABLE, "1")
        assert f"hold {size} bytes" in details
        assert live.post("/v2/models/gate/infer", infer_json([[2.0]])).status == 503
        gate.open()
        assert first.result(WAIT_S)
        assert client.begin([[3]]).result(WAIT_S)


def test_messages_over_the_limit_are_refused(tmp_path: Path) -> None:
    with grpc_serving(small_repository(tmp_path), limits=HttpLimits(body_bytes_max=1000)) as (_, client):
        code, details, _ = client.fails("ModelInfer", infer_message([[1, 2]] * 200).SerializeToString())
        assert code is Code.INVALID_ARGUMENT
        assert "exceeds the maximum allowed" in details
        assert client.fails("ModelInfer", bytes(2 << 20))[0] is Code.RESOURCE_EXHAUSTED
        assert client.begin([[1, 2]], "echo").result(WAIT_S)


def test_connections_over_the_limit_and_idle_ones_are_not_kept(tmp_path: Path) -> None:
    limits = HttpLimits(connections_max=1, idle_timeout_s=0.3)
    with grpc_serving(small_repository(tmp_path), limits=limits) as (live, client):
        states: list[Any] = []
        client.channel.subscribe(states.append)
        assert client.ask("ServerLive").live
        assert live.server is not None
        # Channels of one process with equal options would share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(str(live.server.grpc), options) as second:
            assert Client(second).fails("ServerLive")[0] is Code.UNAVAILABLE
        eventually(lambda: states and states[-1] is grpc.ChannelConnectivity.IDLE)
        assert client.ask("ServerLive").live


# -- the socket ----------------------------------------------------------------------------------------------------------


def test_requests_go_through_tls_and_strangers_do_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "ours")
    pair, known = authority.issue("server"), authority.issue("client")
    tls = Tls(certificate=pair.certificate, key=pair.key, client_ca=authority.certificate)
    with serving(small_repository(tmp_path / "models"), tls=tls, grpc=ANY_PORT) as live:
        assert live.server is not None
        live.run(live.server.listen_grpc())
        target = f"localhost:{live.server.grpc.port}" if live.server.grpc else ""
        root = authority.certificate.read_bytes()
        credentials = grpc.ssl_channel_credentials(root, known.key.read_bytes(), known.certificate.read_bytes())
        with grpc.secure_channel(target, credentials) as channel:
            assert Client(channel).ask("ServerReady").ready
        with grpc.secure_channel(target, grpc.ssl_channel_credentials(root)) as channel:
            assert Client(channel).fails("ServerReady")[0] is Code.UNAVAILABLE


def test_a_port_that_is_taken_is_named_with_the_reason(both: tuple[Live, Client]) -> None:
    live, _ = both
    assert live.server is not None
    assert live.server.grpc is not None
    other = Server(ServerConfig(grpc=live.server.grpc), Repository([]))
    with pytest.raises(CannotListen, match=f"cannot listen on {live.server.grpc}: Address already in use"):
        live.run(other.listen_grpc())


# -- the end -------------------------------------------------------------------------------------------------------------


def drained(live: Live) -> tuple[threading.Thread, list[bool]]:
    """Starts to drain in the background; the list then has whether all was answered."""
    answers: list[bool] = []

    def drain() -> None:
        assert live.server is not None
        answers.append(live.run(live.server.drain()))

    thread = threading.Thread(target=drain)
    thread.start()
    return thread, answers


def test_what_is_under_way_is_answered_before_the_end_and_new_calls_are_refused(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path) as (_live, client):
        first = client.begin([[1]])
        eventually(gate.seen)
        thread, answers = drained(_live)
        eventually(lambda: client.begin([[2]], timeout=0.5).code() is Code.UNAVAILABLE)
        code, details, _ = failure(client.begin([[2]]).exception(WAIT_S))
        assert (code, details) == (Code.UNAVAILABLE, "Server is stopping")
        gate.open()
        assert first.result(WAIT_S)
        thread.join()
        assert answers == [True]


def test_a_drain_that_takes_too_long_ends_and_says_so(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with grpc_serving(gate.path, exit_timeout_s=0.1) as (live, client):
        first = client.begin([[1]])
        eventually(gate.seen)
        thread, answers = drained(live)
        thread.join()
        assert answers == [False]
        assert first.code() in (Code.UNAVAILABLE, Code.CANCELLED)
        gate.open()


def test_no_request_is_lost_on_sigterm_under_load(tmp_path: Path) -> None:
    small_repository(tmp_path / "models")
    with serve_process(tmp_path, tmp_path / "models", grpc=("--grpc", "127.0.0.1:0")) as live:
        assert live.process is not None
        address = json.loads((tmp_path / "ready.json").read_text())["grpc"]
        codes: list[list[grpc.StatusCode | None]] = [[] for _ in range(4)]

        def load(seen: list[grpc.StatusCode | None]) -> None:
            with grpc.insecure_channel(address) as channel:
                call = Client(channel).raw("ModelInfer")
                while not seen or seen[-1] is None:
                    try:
                        call(infer_message([[1, 2]]).SerializeToString(), timeout=WAIT_S)
                        seen.append(None)
                    except grpc.RpcError as error:
                        seen.append(failure(error)[0])

        threads = [threading.Thread(target=load, args=(seen,)) for seen in codes]
        for thread in threads:
            thread.start()
        eventually(lambda: all(len(seen) > 50 for seen in codes))
        live.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(WAIT_S)
        # Every client was served until it was told that the server stops, and none met anything else.
        assert [seen[-1] for seen in codes] == [Code.UNAVAILABLE] * 4
        assert live.process.wait(WAIT_S) == 0


# -- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_says_where_grpc_is_or_that_it_is_not(tmp_path: Path) -> None:
    for name, arguments in {"yes": ("--grpc", "127.0.0.1:0"), "no": ("--no-grpc",)}.items():
        folder = tmp_path / name
        folder.mkdir()
        with serve_process(folder, grpc=arguments) as live:
            assert live.log is not None
            address = json.loads((folder / "ready.json").read_text()).get("grpc", "")
            words = live.log.read_text()
            assert (f"gRPC on {address}" in words) == (name == "yes")
            if address:
                with grpc.insecure_channel(address) as channel:
                    assert Client(channel).ask("ServerReady").ready


def test_the_default_port_may_be_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8001))
            taken.listen()
        except OSError:
            pass  # by someone else: as good
        with serve_process(tmp_path, grpc=()) as live:
            assert live.log is not None
            assert "HTTP only: cannot listen on 127.0.0.1:8001" in live.log.read_text()
            assert json.loads((tmp_path / "ready.json").read_text()).keys() == {"http"}


def test_a_port_that_was_asked_for_must_be_had(tmp_path: Path, both: tuple[Live, Client]) -> None:
    assert both[0].server is not None
    with (
        pytest.raises(AssertionError, match="error: cannot listen on"),
        serve_process(tmp_path, grpc=("--grpc", str(both[0].server.grpc))),
    ):
        pass
