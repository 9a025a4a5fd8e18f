"""Streams of frames over WebSocket: real sockets, two clients that are not ours, and clients of every temper."""

import asyncio
import json
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.test_tls import Authority
from tests.serving import Gate, Live, Wire, eventually, infer_json, serving, small_repository
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from farthing.config.server import AdmissionLimits, HttpLimits, Tls
from farthing.server import websocket
from farthing.server.auth import Role, new_key
from farthing.server.frame_sockets import UNDER_WAY_MAX

WAIT_S = 20.0


def talk(live: Live, path: str, **more: Any) -> ClientConnection:
    """A stream under way; `path` is what follows /v2/models/."""
    scheme = "wss" if live.tls else "ws"
    if live.tls:
        more["ssl"] = live.tls
    host = "localhost" if live.tls else live.address[0]
    return connect(
        f"{scheme}://{host}:{live.address[1]}/v2/models/{path}",
        compression=None,
        max_size=None,
        open_timeout=WAIT_S,
        **more,
    )


def hear(socket: ClientConnection) -> Any:
    data = socket.recv(WAIT_S)
    assert isinstance(data, str), data
    return json.loads(data)


def fate(answer: Any) -> str:
    said = answer["parameters"]
    return str(said.get("frame_reason", said["frame_status"]))


def echo(*values: float, **more: Any) -> str:
    return infer_json([list(values)], **more).decode()


def gate_frame(value: float, **more: Any) -> str:
    return infer_json([[value]], **more).decode()


def binary(tensor: np.ndarray[Any, Any], **more: Any) -> bytes:
    described = {"name": "x", "datatype": "FP32", "shape": list(tensor.shape)}
    described["parameters"] = {"binary_data_size": tensor.nbytes}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}, **more}).encode()
    return struct.pack("<I", len(head)) + head + tensor.tobytes()


def read_binary(data: str | bytes) -> tuple[Any, np.ndarray[Any, Any]]:
    assert isinstance(data, bytes)
    size = int.from_bytes(data[:4], "little")
    said = json.loads(data[4 : 4 + size])
    return said, np.frombuffer(data[4 + size :], "<f4").reshape(said["outputs"][0]["shape"])


def sums_up(summary: Any) -> bool:
    told = summary["on_time"] + summary["late"] + summary["failed"] + sum(summary["dropped"].values())
    return bool(summary["received"] == told)


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Live, Gate]]:
    gate = Gate(tmp_path / "gate")
    with serving(gate.path, small_repository(tmp_path / "models")) as live:
        yield live, gate
        gate.open()


# -- forms -------------------------------------------------------------------------------------------------------


def test_frames_in_json_are_answered_in_json_with_what_became_of_them(live: Live) -> None:
    with talk(live, "echo/stream?policy=all&deadline_ms=5000") as socket:
        for number in range(3):
            socket.send(echo(number, 1, id=f"f{number}"))
        for number in range(3):
            answer = hear(socket)
            assert answer["id"] == f"f{number}"
            assert answer["outputs"][0]["data"] == [number, 1]
            said = answer["parameters"]
            assert (said["frame"], said["frame_status"], said["frame_on_time"]) == (number + 1, "ok", True)
            assert said["frame_latency_ms"] >= said["frame_queue_ms"] >= 0


def test_binary_frames_are_answered_in_binary(live: Live) -> None:
    with talk(live, "mlp/versions/1/stream") as socket:
        rows = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
        socket.send(binary(rows, id="one"))
        said, named = read_binary(socket.recv(WAIT_S))
        assert said["id"] == "one"
        socket.send(struct.pack("<I", 0) + rows.tobytes())
        said, raw = read_binary(socket.recv(WAIT_S))
        assert said["parameters"]["frame"] == 2
        np.testing.assert_array_equal(named, raw)
        direct = live.infer("mlp", rows.tolist()).json["outputs"][0]["data"]
        np.testing.assert_allclose(named[0], direct, rtol=1e-5)


def test_outputs_may_be_named_once_for_all_frames(live: Live) -> None:
    frame = {
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16))}
            for name in ("INPUT0", "INPUT1")
        ]
    }
    with talk(live, "simple/stream?outputs=OUTPUT1") as socket:
        socket.send(json.dumps(frame))
        assert [output["name"] for output in hear(socket)["outputs"]] == ["OUTPUT1"]
        socket.send(json.dumps({**frame, "outputs": [{"name": "OUTPUT0"}]}))
        assert [output["name"] for output in hear(socket)["outputs"]] == ["OUTPUT0"]


def test_a_message_in_fragments_is_one_frame(live: Live) -> None:
    with talk(live, "echo/stream") as socket:
        text = echo(1, 2)
        socket.send([text[:10], text[10:40], text[40:]])
        assert hear(socket)["outputs"][0]["data"] == [1, 2]


def test_a_bad_frame_is_answered_in_its_turn_and_the_stream_goes_on(live: Live) -> None:
    with talk(live, "echo/stream?policy=all") as socket:
        for frame in ("{}", echo(1, 2, 3), b"\x01", b"\xff\xff\xff\xff{}", echo(7, 8)):
            socket.send(frame)
        answers = [hear(socket) for _ in range(5)]
        assert [fate(answer) for answer in answers] == ["error"] * 4 + ["ok"]
        assert [answer["parameters"]["frame"] for answer in answers] == [1, 2, 3, 4, 5]
        assert all("error" in answer for answer in answers[:4])
        socket.send('{"command":"end"}')
        summary = hear(socket)["summary"]
        assert (summary["received"], summary["failed"], summary["on_time"]) == (5, 4, 1)


def test_another_client_library_can_stream_too(live: Live) -> None:
    async def stream() -> list[Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{live.url}/v2/models/echo/stream") as socket,
        ):
            await socket.ping()
            answers = []
            for number in range(20):
                await socket.send_str(echo(number, 0))
                answers.append(json.loads((await socket.receive(WAIT_S)).data))
            await socket.close()
            assert socket.close_code == 1000
            return answers

    answers = asyncio.run(stream())
    assert [answer["outputs"][0]["data"][0] for answer in answers] == list(range(20))


# -- policies ----------------------------------------------------------------------------------------------------


def test_the_latest_wins_and_results_are_in_order(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    with talk(live, "gate/stream?policy=latest") as socket:
        socket.send(gate_frame(1))
        eventually(lambda: gate.seen() == [1])
        for value in (2, 3, 4):
            socket.send(gate_frame(value))
        socket.send('{"command":"summary"}')
        assert hear(socket)["summary"]["dropped"]["superseded"] == 2, (
            "two were dropped, and wait for their turn to say so"
        )
        gate.open()
        answers = [hear(socket) for _ in range(4)]
        assert [fate(answer) for answer in answers] == ["ok", "superseded", "superseded", "ok"]
        assert [answer["parameters"]["frame"] for answer in answers] == [1, 2, 3, 4]
        assert gate.seen() == [1, 4]


def test_what_comes_too_late_is_dropped_before_it_runs(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    with talk(live, "gate/stream?policy=all&deadline_ms=60") as socket:
        socket.send(gate_frame(1))
        eventually(lambda: gate.seen() == [1])
        socket.send(gate_frame(2))
        dropped = live.metric
        eventually(lambda: dropped("farthing_frames_dropped_total", model="gate", reason="late") == 1)
        gate.open()
        first, second = hear(socket), hear(socket)
        assert fate(first) == "ok"
        assert first["parameters"]["frame_on_time"] is False
        assert fate(second) == "late"
        assert gate.seen() == [1]
        socket.send('{"command":"end"}')
        summary = hear(socket)["summary"]
        assert sums_up(summary)
        assert (summary["late"], summary["dropped"]["late"]) == (1, 1)


def test_a_keep_all_stream_has_a_bound(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    with talk(live, "gate/stream?policy=all&queue_max=2") as socket:
        socket.send(gate_frame(1))
        eventually(lambda: gate.seen() == [1])
        for value in (2, 3, 4):
            socket.send(gate_frame(value))
        eventually(lambda: live.metric("farthing_frames_dropped_total", model="gate", reason="overload") == 1)
        gate.open()
        assert [fate(hear(socket)) for _ in range(4)] == ["ok", "ok", "ok", "overload"]


def test_a_frame_may_bring_its_own_deadline(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    with talk(live, "gate/stream?policy=all&deadline_ms=10000") as socket:
        socket.send(gate_frame(1))
        eventually(lambda: gate.seen() == [1])
        socket.send(gate_frame(2, parameters={"timeout": 30_000}))
        eventually(lambda: live.metric("farthing_frames_dropped_total", model="gate", reason="late") == 1)
        gate.open()
        assert [fate(hear(socket)) for _ in range(2)] == ["ok", "late"]


def test_many_fast_streams_and_ordinary_requests_share_a_model(live: Live) -> None:
    """Counts alone: every frame of each stream is answered in order, and nobody gets another's."""
    wrong: list[Any] = []

    def camera(number: int) -> None:
        with talk(live, f"echo/stream?policy={'latest' if number % 2 else 'all'}&queue_max=256") as socket:
            for at in range(200):
                socket.send(echo(number, at))
            socket.send('{"command":"end"}')
            for at in range(200):
                answer = hear(socket)
                if answer["parameters"]["frame"] != at + 1:
                    wrong.append(answer)
                if fate(answer) == "ok" and answer["outputs"][0]["data"] != [number, at]:
                    wrong.append(answer)
            summary = hear(socket)["summary"]
            if not sums_up(summary) or summary["received"] != 200:
                wrong.append(summary)

    threads = [threading.Thread(target=camera, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for value in range(50):
        assert live.infer("echo", [[value, 0]]).json["outputs"][0]["data"] == [value, 0]
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong


def test_a_stream_follows_its_model_through_a_reload(tmp_path: Path) -> None:
    from farthing.config.server import ModelControl

    settings = {"model_control": ModelControl.EXPLICIT, "load_models": ("*",)}
    with serving(small_repository(tmp_path), **settings) as live, talk(live, "echo/stream?policy=all") as socket:
        socket.send(echo(1, 2))
        assert fate(hear(socket)) == "ok"
        assert live.post("/v2/repository/models/echo/load", b"{}").status == 200
        socket.send(echo(3, 4))
        assert hear(socket)["outputs"][0]["data"] == [3, 4]
        assert live.post("/v2/repository/models/echo/unload", b"{}").status == 200
        socket.send(echo(5, 6))
        assert "error" in hear(socket)


# -- the door ----------------------------------------------------------------------------------------------------

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec_WebSocket_Version": "13",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nobody/stream", 404),
        ("echo/versions/9/stream", 404),
        ("echo/stream?policy=best", 400),
        ("echo/stream?deadline_ms=soon", 400),
        ("echo/stream?deadline_ms=1e3", 400),
        ("echo/stream?queue_max=0", 400),
        ("echo/stream?queue_max=257", 400),
        ("echo/stream?policy=all&policy=latest", 400),
        ("echo/stream?fps=25", 400),
        ("echo/stream?policy", 400),
    ],
)
def test_what_cannot_be_opened_is_told_in_http(live: Live, path: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        talk(live, path)
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["error"]


def test_a_handshake_must_be_one(live: Live) -> None:
    wire = live.connect()
    path = "/v2/models/echo/stream"
    assert wire.ask("GET", path).headers["upgrade"] == "websocket"
    assert wire.ask("GET", path, **{**HANDSHAKE, "Sec_WebSocket_Version": "8"}).status == 400
    assert wire.ask("GET", path, **{**HANDSHAKE, "Sec_WebSocket_Key": "short"}).status == 400
    assert wire.ask("GET", path, **HANDSHAKE, Origin="http://evil.example").status == 403
    assert wire.ask("GET", "/v2/health/live", **HANDSHAKE).status == 200, "elsewhere the wish is declined"
    assert wire.ask("POST", path, **HANDSHAKE).status == 405
    answer = wire.ask("GET", path, **HANDSHAKE, Origin="http://test", X_Request_Id="mine")
    assert answer.status == 101
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer.headers["x-request-id"] == "mine"


def test_requests_may_come_before_the_handshake_but_none_behind_it(live: Live) -> None:
    from tests.serving import request

    wire = live.connect()
    handshake = request("GET", "/v2/models/echo/stream", **HANDSHAKE)
    wire.send(request("GET", "/v2/health/live") + handshake)
    assert [wire.read_reply().status, wire.read_reply().status] == [200, 101]


def test_a_stream_may_follow_a_large_request_on_its_connection(live: Live) -> None:
    wire = live.connect()
    rows = np.zeros((40_000, 2), np.float32)
    head = binary(rows)[4:]
    size = len(head) - rows.nbytes
    reply = wire.ask("POST", "/v2/models/echo/infer", head, Inference_Header_Content_Length=str(size))
    assert reply.status in (200, 400)
    assert wire.ask("GET", "/v2/models/echo/stream", **HANDSHAKE).status == 101
    wire.send(frame_bytes(1, echo(1, 2).encode()))
    wire.socket.settimeout(5)
    assert b'"frame_status":"ok"' in wire.socket.recv(1 << 16)


def test_keys_open_streams_and_bound_a_tenant(tmp_path: Path) -> None:
    key, entry = new_key("shop", (Role.INFERENCE,))
    (tmp_path / "keys.toml").write_text(entry + "inflight_max = 2\n")
    gate = Gate(tmp_path / "gate")
    with serving(gate.path, keys=tmp_path / "keys.toml") as live:
        with pytest.raises(InvalidStatus) as refused:
            talk(live, "gate/stream")
        assert refused.value.response.status_code == 401
        with talk(live, "gate/stream?policy=all", additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            socket.send(gate_frame(1))
            eventually(lambda: gate.seen() == [1])
            for value in (2, 3):
                socket.send(gate_frame(value))
            assert live.server is not None
            counts = live.server.runtime.resolve("gate").statistics
            eventually(lambda: counts.frames is not None and counts.frames.dropped["overload"] == 1)
            gate.open()
            assert [fate(hear(socket)) for _ in range(3)] == ["ok", "ok", "overload"]
        headers = {"Authorization": f"Bearer {key}"}
        body = infer_json([[1]])
        assert live.post("/v2/models/gate/infer", body, headers).status == 200, "the tenant's share is free again"
        admission = live.server._admission
        eventually(lambda: not admission._inflight_of and not admission.bytes)


def test_frames_travel_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "us")
    pair = authority.issue("localhost")
    client = ssl.create_default_context(cafile=authority.certificate)
    models = small_repository(tmp_path / "models")
    tls = Tls(certificate=pair.certificate, key=pair.key)
    with serving(models, client_tls=client, tls=tls) as live, talk(live, "echo/stream?policy=all") as socket:
        for value in range(10):
            socket.send(echo(value, 0))
        assert [hear(socket)["outputs"][0]["data"][0] for _ in range(10)] == list(range(10))
        socket.send('{"command":"end"}')
        assert hear(socket)["summary"]["received"] == 10
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(WAIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


# -- ends --------------------------------------------------------------------------------------------------------


def test_the_end_of_the_server_answers_what_came_and_says_goodbye(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with serving(gate.path) as live, talk(live, "gate/stream?policy=all") as socket, talk(live, "gate/stream") as idle:
        socket.send(gate_frame(1))
        eventually(lambda: gate.seen() == [1])
        socket.send(gate_frame(2))
        eventually(lambda: live.metric("farthing_frames_received_total", model="gate") == 2)
        assert live.server is not None
        assert live.loop is not None
        drain = asyncio.run_coroutine_threadsafe(live.server.drain(), live.loop)
        assert hear(idle)["summary"]["received"] == 0
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(WAIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        gate.open()
        assert [fate(hear(socket)) for _ in range(2)] == ["ok", "ok"]
        assert hear(socket)["summary"]["on_time"] == 2
        with pytest.raises(ConnectionClosed):
            socket.recv(WAIT_S)
        assert drain.result(WAIT_S), "everything accepted was answered"


def test_a_client_that_vanishes_takes_its_frames_along(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    wire = opened(live, "/v2/models/gate/stream?policy=all")
    wire.send(frame_bytes(1, gate_frame(1).encode()))
    eventually(lambda: gate.seen() == [1])
    for value in (2, 3):
        wire.send(frame_bytes(1, gate_frame(value).encode()))
    eventually(lambda: live.metric("farthing_frames_received_total", model="gate") == 3)
    wire.socket.close()
    eventually(lambda: live.metric("farthing_frames_dropped_total", model="gate", reason="gone") == 3)
    assert live.metric("farthing_frame_streams_open", model="gate") == 0
    gate.open()
    assert live.infer("gate", [[9]]).status == 200
    assert gate.seen() == [1, 9]
    assert live.server is not None
    assert live.server._admission.bytes == 0


def opened(live: Live, path: str = "/v2/models/echo/stream?policy=all", **more: Any) -> Wire:
    wire = live.connect(**more)
    assert wire.ask("GET", path, **HANDSHAKE).status == 101
    return wire


def frame_bytes(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    head = bytes([(0x80 if fin else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    mask = b"\x05\x06\x07\x08"
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def close_code(wire: Wire) -> int:
    """The code of the goodbye, which must be the next and last thing said."""
    data = wire._unread
    while chunk := wire.socket.recv(1 << 16):
        data += chunk
    assert data[0] == 0x88, data
    return int.from_bytes(data[2:4], "big")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (frame_bytes(3, b""), 1002),
        (frame_bytes(0, b"x"), 1002),  # goes on with nothing
        (frame_bytes(1, b"a", fin=False) + frame_bytes(1, b"b"), 1002),
        (frame_bytes(9, b"x" * 126), 1002),
        (b"\xc1" + frame_bytes(1, b"x")[1:], 1002),  # compressed, which was not agreed on
        (frame_bytes(1, b"\xff\xfe"), 1007),
        (b"\x82\xff" + struct.pack(">Q", 1 << 40) + b"1234", 1009),
        (frame_bytes(8, b"\x03\xe8"), 1000),
    ],
)
def test_whoever_breaks_the_protocol_is_told_how(live: Live, sent: bytes, code: int) -> None:
    wire = opened(live)
    wire.send(sent)
    assert close_code(wire) == code


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_hurt_the_server(live: Live, noise: bytes, cut: int) -> None:
    good = frame_bytes(1, echo(1, 2).encode())
    with opened(live) as wire:
        wire.send((good + noise)[:cut] if cut < 250 else noise)
    assert live.get("/v2/health/live").status == 200


@given(
    st.lists(
        st.one_of(st.text(max_size=80), st.binary(max_size=120), st.just(echo(1, 2)), st.just('{"command":"summary"}')),
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_is_answered_whatever_it_is(live: Live, messages: list[str | bytes]) -> None:
    with talk(live, "echo/stream?policy=all") as socket:
        for message in messages:
            socket.send(message)
        answers = [json.loads(socket.recv(WAIT_S)) for _ in messages]
        numbers = [answer["parameters"]["frame"] for answer in answers if "parameters" in answer]
        assert numbers == list(range(1, len(numbers) + 1))
        socket.send('{"command":"end"}')
        summary = hear(socket)["summary"]
        assert summary["received"] == len(numbers)
        assert sums_up(summary)


def test_a_flood_of_small_messages_is_read_as_it_is_answered(live: Live) -> None:
    wire = opened(live)
    frame = frame_bytes(1, b"{}")
    wire.send(frame * 5000 + frame_bytes(1, b'{"command":"end"}'))
    data = bytearray(wire._unread)
    while b'"summary"' not in data:
        data += wire.socket.recv(1 << 16)
    assert data.count(b'"frame_status":"error"') == 5000
    assert b'"received":5000' in data


def test_frames_under_way_are_bounded_and_the_rest_waits_unread(gated: tuple[Live, Gate]) -> None:
    live, gate = gated
    with talk(live, "gate/stream?policy=latest") as socket:
        socket.send(gate_frame(0))
        eventually(lambda: gate.seen() == [0])
        for value in range(1, UNDER_WAY_MAX + 50):
            socket.send(gate_frame(value))
        eventually(lambda: live.metric("farthing_frames_received_total", model="gate") == UNDER_WAY_MAX)
        gate.open()
        answers = [hear(socket) for _ in range(UNDER_WAY_MAX + 50)]
        assert [answer["parameters"]["frame"] for answer in answers] == list(range(1, UNDER_WAY_MAX + 51))


def test_who_does_not_read_is_not_read_and_then_cut_off(tmp_path: Path) -> None:
    from tests.models import identity, save

    save(tmp_path / "wide", identity(shape=("batch", "width")))
    with serving(tmp_path, limits=HttpLimits(write_timeout_s=0.3)) as live:
        wire = opened(live, "/v2/models/wide/stream?policy=all&queue_max=256", receive_buffer=4096)
        tensor = np.zeros((1, 100_000), np.float32)
        mask_free = binary(tensor)
        frame = b"\x82\xff" + struct.pack(">Q", len(mask_free)) + bytes(4) + mask_free
        wire.socket.settimeout(10)
        try:
            for _ in range(400):
                wire.send(frame)
        except OSError:
            pass
        else:
            pytest.fail("160 MB were read of a client that reads nothing")
        eventually(lambda: live.metric("farthing_http_rejected_total", reason="slow") == 1)
        assert live.server is not None
        admission = live.server._admission
        eventually(lambda: admission.bytes == 0)


def test_who_sends_more_than_fits_is_told_to_come_back(tmp_path: Path) -> None:
    models = small_repository(tmp_path)
    with serving(models, admission=AdmissionLimits(inflight_bytes_max=50_000)) as live:
        wire = opened(live)
        wire.send(b"\x82\xff" + struct.pack(">Q", 1 << 20) + bytes(4) + bytes(100_000))
        data = wire._unread
        while len(data) < 4:
            data += wire.socket.recv(1 << 16)
        assert data[0] == 0x88
        assert int.from_bytes(data[2:4], "big") == 1013
        wire.socket.close()
        assert live.server is not None
        admission = live.server._admission
        eventually(lambda: admission.bytes == 0)


def test_a_silent_client_is_asked_and_then_ended(tmp_path: Path) -> None:
    with (
        mock.patch.object(websocket, "PING_AFTER_S", 0.1),
        mock.patch.object(websocket, "PONG_WITHIN_S", 2.0),
        serving(small_repository(tmp_path)) as live,
        talk(live, "echo/stream") as alive,
    ):
        dead = opened(live)
        data = dead._unread or dead.socket.recv(100)
        assert data[:2] == b"\x89\x00", "a ping"
        assert dead.is_ended()
        alive.send(echo(1, 2))
        assert fate(hear(alive)) == "ok", "who answers pings stays"
        stuck = opened(live)
        stuck.send(frame_bytes(1, echo(1, 2).encode())[:20])
        assert stuck.socket.recv(100)[:2] == b"\x89\x00"
        assert stuck.is_ended()
