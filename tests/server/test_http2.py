"""HTTP/2 over real sockets with clients of every temper: slow, silent, half, hostile, and at the end."""

import contextlib
import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import identity, save
from tests.server.http2_wire import END, END_HEADERS, INFER, LIVE, Http2Wire
from tests.server.test_grpc import ANY_PORT, drained, infer_message
from tests.server.test_tls import Authority
from tests.serving import Gate, Live, eventually, serving

from farthing.config.server import Address, AdmissionLimits, HttpLimits, Tls
from farthing.protocols.grpc_wire import prefixed
from farthing.protocols.http2 import ErrorCode
from farthing.protocols.http2.frames import FrameType, Setting, frame, ping, rst_stream, window_update
from farthing.protocols.http2.limits import ALLOWANCE_FRAMES
from farthing.protocols.kserve_grpc import message_class
from farthing.server import grpc as grpc_room
from farthing.server import http2 as http2_room

OK, CANCELLED, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 0, 1, 3, 4, 8, 12, 14
DATA = FrameType.DATA
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"


def open_grpc(live: Live) -> Address:
    assert live.server is not None
    live.run(live.server.listen_grpc())
    assert live.server.grpc is not None
    return live.server.grpc


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose limits are quick to reach."""
    limits = HttpLimits(
        head_timeout_s=0.3,
        body_timeout_s=0.3,
        idle_timeout_s=0.5,
        write_timeout_s=0.5,
        head_bytes_max=2000,
        body_bytes_max=1 << 20,
    )
    with serving(wide_repository(tmp_path_factory.mktemp("models")), grpc=ANY_PORT, limits=limits) as live:
        open_grpc(live)
        yield live


@pytest.fixture(scope="module")
def address(small: Live) -> Address:
    assert small.server is not None
    assert small.server.grpc is not None
    return small.server.grpc


def echo(pairs: int = 1) -> bytes:
    """A request to a model that answers what it is sent: eight bytes a pair."""
    data: bytes = infer_message([[1, 2] * pairs], "wide").SerializeToString()
    return data


def wide_repository(folder: Path) -> Path:
    """`wide` answers its one row, whatever its width."""
    save(folder / "wide", identity(shape=("batch", "width")))
    return folder


def bytes_held(live: Live) -> int:
    assert live.server is not None
    return live.server._admission.bytes


# -- what is said to those who are wrong ---------------------------------------------------------------------------------


def test_http_1_clients_are_told_where_they_are(address: Address) -> None:
    with Http2Wire(address, greets=False) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        while data := wire.socket.recv(4096):
            said += data
    head, _, text = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert f"Content-Length: {len(text)}".encode() in head
    assert b"gRPC over HTTP/2" in text


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"method": "GET"}, "405"),
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpc-web"}, "415"),
    ],
)
def test_http_2_clients_that_speak_no_grpc_are_told_in_http(
    address: Address, more: dict[str, str], status: str
) -> None:
    with Http2Wire(address) as wire:
        answer = wire.send(wire.headers(1, flags=END | END_HEADERS, **more)).answer(1)
        assert answer[":status"] == status
        assert wire.send(wire.call(3, b"", LIVE)).status(3) == OK


def zipped(data: bytes) -> bytes:
    coded = gzip.compress(data, mtime=0)
    return b"\1" + len(coded).to_bytes(4, "big") + coded


@pytest.mark.parametrize(
    ("body", "more", "status", "text"),
    [
        (b"", {}, UNIMPLEMENTED, "exactly one message"),
        (prefixed(echo()) * 2, {}, UNIMPLEMENTED, "exactly one message"),
        (prefixed(echo())[:-1], {}, INVALID, "cut off"),
        (b"\2" + prefixed(echo())[1:], {}, INVALID, "neither 0 nor 1"),
        (b"\0\xff\xff\xff\xff", {}, EXHAUSTED, "over the limit"),
        (zipped(echo()), {}, INVALID, "names no grpc-encoding"),
        (zipped(echo()), {"grpc_encoding": "snappy"}, UNIMPLEMENTED, "`snappy` is not supported"),
        (zipped(bytes(8 << 20)), {"grpc_encoding": "gzip"}, EXHAUSTED, "exceeds the maximum"),
        (b"\1\0\0\0\3abc", {"grpc_encoding": "gzip"}, INVALID, "not valid gzip"),
        (prefixed(echo()), {"grpc_timeout": "soon"}, INVALID, "is no timeout"),
        (prefixed(echo()), {"grpc_timeout": "0S"}, DEADLINE, "deadline passed"),
        (prefixed(echo()), {"padding": "x" * 2500}, EXHAUSTED, "metadata"),
    ],
)
def test_what_is_wrong_with_a_call_is_its_status(
    small: Live, address: Address, body: bytes, more: dict[str, str], status: int, text: str
) -> None:
    with Http2Wire(address) as wire:
        wire.send(wire.headers(1, **more), frame(DATA, END, 1, body))
        assert wire.status(1) == status
        assert text in wire.answers[1]["grpc-message"].replace("%0A", "\n")
        assert wire.answers[1]["grpc-accept-encoding"] == "identity,deflate,gzip"
        assert wire.send(wire.call(3, echo())).status(3) == OK
    eventually(lambda: bytes_held(small) == 0)


def test_an_error_s_text_is_percent_encoded(address: Address) -> None:
    message = message_class("ModelInferRequest")(model_name="né%\n").SerializeToString()
    with Http2Wire(address) as wire:
        assert wire.send(wire.call(1, message)).status(1) == 5
        assert "n%C3%A9%25%0A" in wire.answers[1]["grpc-message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_come_in_the_request_s_coding_if_the_client_accepts_it(address: Address, coding: str) -> None:
    data = echo(4000)
    coded = gzip.compress(data, mtime=0) if coding == "gzip" else zlib.compress(data)
    body = b"\1" + len(coded).to_bytes(4, "big") + coded
    with Http2Wire(address) as wire:
        wire.send(wire.headers(1, grpc_encoding=coding, grpc_accept_encoding=f"identity, {coding}"))
        wire.send(frame(DATA, END, 1, body))
        assert wire.status(1) == OK
        assert wire.answers[1]["grpc-encoding"] == coding
        answer = wire.bodies[1]
        assert answer[0] == 1
        inflated = gzip.decompress(answer[5:]) if coding == "gzip" else zlib.decompress(answer[5:])
        found = message_class("ModelInferResponse").FromString(inflated)
        assert np.frombuffer(found.raw_output_contents[0], "<f4").tolist() == [1, 2] * 4000
        wire.send(wire.headers(3, grpc_encoding=coding), frame(DATA, END, 3, body))
        assert wire.status(3) == OK
        assert "grpc-encoding" not in wire.answers[3]
        assert wire.bodies[3][0] == 0


# -- slow and silent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_whoever_does_not_say_hello_is_not_waited_for(address: Address, said: bytes) -> None:
    with Http2Wire(address, greets=False) as wire:
        wire.send(said)
        assert wire.drained() is None


def test_half_a_frame_is_not_waited_for(small: Live, address: Address) -> None:
    with Http2Wire(address) as wire:
        wire.send(wire.headers(1), frame(DATA, 0, 1, bytes(1000))[:500])
        assert wire.drained() is None
    eventually(lambda: bytes_held(small) == 0)


def test_half_a_message_is_not_waited_for(small: Live, address: Address) -> None:
    with Http2Wire(address) as wire:
        wire.send(wire.headers(1), frame(DATA, 0, 1, prefixed(echo(100))[:200]))
        assert wire.status(1) == DEADLINE
        assert "did not arrive" in wire.answers[1]["grpc-message"]
        assert wire.send(wire.call(3, echo())).status(3) == OK
        assert wire.resets == {1: ErrorCode.NO_ERROR}
    eventually(lambda: bytes_held(small) == 0)


def test_a_connection_without_calls_is_ended_with_a_word(address: Address) -> None:
    with Http2Wire(address) as wire:
        assert wire.send(wire.call(1, b"", LIVE)).status(1) == OK
        assert wire.drained() == ErrorCode.NO_ERROR


def test_a_client_that_does_not_read_is_cut_off_and_what_waited_for_it_let_go(small: Live, address: Address) -> None:
    wide = {Setting.INITIAL_WINDOW_SIZE: (1 << 31) - 1}
    with Http2Wire(address, receive_buffer=4096, values=wide) as wire:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            wire.send(window_update(0, 1 << 30))
            for stream in range(1, 1000, 2):  # 16 MB of answers, more than all buffers of the system hold
                wire.send(wire.call(stream, echo(4000)))
        eventually(lambda: not grpc_sockets(small))
        assert small.metric("farthing_grpc_requests_total", route="infer", code="CANCELLED") > 0
    eventually(lambda: bytes_held(small) == 0)


def grpc_sockets(live: Live) -> set[Any]:
    assert live.server is not None
    assert live.server._grpc_listener is not None
    return set(live.server._grpc_listener._sockets)


def test_a_call_whose_window_stays_shut_is_reset_and_the_others_go_on(small: Live, address: Address) -> None:
    with Http2Wire(address, values={Setting.INITIAL_WINDOW_SIZE: 0}) as wire:
        wire.send(wire.call(1, echo()))
        for stream in range(3, 400, 2):
            wire.send(wire.call(stream, echo()), window_update(stream, 1000))
            assert wire.status(stream) == OK
            if 1 in wire.resets:
                break
            threading.Event().wait(0.01)
        assert wire.resets == {1: ErrorCode.CANCEL}
    eventually(lambda: bytes_held(small) == 0)


def test_answers_nobody_reads_count_against_what_may_be_under_way(tmp_path: Path) -> None:
    size = len(echo(1000))
    admission = AdmissionLimits(inflight_bytes_max=5 * size)
    with serving(wide_repository(tmp_path), grpc=ANY_PORT, admission=admission) as live:
        address = open_grpc(live)
        with Http2Wire(address, values={Setting.INITIAL_WINDOW_SIZE: 0}) as wire:
            for count, stream in enumerate((1, 3), start=1):
                wire.send(wire.call(stream, echo(1000)))
                eventually(lambda wanted=2 * size * count: bytes_held(live) >= wanted)  # type: ignore[misc]
            assert wire.send(wire.call(5, echo(1000))).status(5) == UNAVAILABLE
            assert "retry-after" in wire.answers[5]
            wire.send(window_update(1, 1 << 20), window_update(3, 1 << 20))
            assert wire.status(1) == wire.status(3) == OK
        eventually(lambda: bytes_held(live) == 0)


def test_whoever_says_nothing_while_he_waits_is_asked_whether_he_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_room, "PING_S", 0.2)
    monkeypatch.setattr(http2_room, "PING_ANSWER_S", 0.2)
    gate = Gate(tmp_path)
    message = infer_message([[1]], "gate").SerializeToString()
    with serving(gate.path, grpc=ANY_PORT) as live:
        address = open_grpc(live)
        with Http2Wire(address) as lively, Http2Wire(address) as dead:
            lively.send(lively.call(1, message))
            dead.send(dead.call(1, message))
            for _ in range(3):
                found = lively.wait_for(FrameType.PING)
                lively.send(ping(found.payload, is_ack=True))
            assert dead.drained() is None
            gate.open()
            assert lively.status(1) == OK


# -- whoever leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["reset", "close"])
def test_whoever_leaves_takes_a_queued_request_along(tmp_path: Path, way: str) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path, grpc=ANY_PORT) as live:
        address = open_grpc(live)
        with Http2Wire(address) as first, Http2Wire(address) as second:
            first.send(first.call(1, infer_message([[1]], "gate").SerializeToString()))
            eventually(gate.seen)
            second.send(second.call(1, infer_message([[2]], "gate").SerializeToString()))
            eventually(lambda: live.metric("farthing_pending_rows") == 1)
            if way == "reset":
                second.send(rst_stream(1, ErrorCode.CANCEL))
            else:
                second.socket.close()
            eventually(lambda: live.metric("farthing_pending_rows") == 0)
            gate.open()
            assert first.status(1) == OK
            assert gate.seen() == [1]
        assert live.metric("farthing_grpc_requests_total", route="infer", code="CANCELLED") == 1
        eventually(lambda: bytes_held(live) == 0)


# -- hostile -------------------------------------------------------------------------------------------------------------


def test_a_flood_is_ended_with_its_reason_and_others_are_served(address: Address) -> None:
    with Http2Wire(address) as flood, Http2Wire(address) as honest:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            flood.send(ping(bytes(8)) * (2 * ALLOWANCE_FRAMES))
        assert honest.send(honest.call(1, echo())).status(1) == OK
        assert flood.drained() == ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_resets_leave_nothing_behind(small: Live, address: Address) -> None:
    with Http2Wire(address) as wire:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for stream in range(1, 6 * ALLOWANCE_FRAMES, 2):
                wire.send(wire.call(stream, echo()), rst_stream(stream, ErrorCode.CANCEL))
        assert wire.drained() in (ErrorCode.ENHANCE_YOUR_CALM, None)
    eventually(lambda: bytes_held(small) == 0)
    eventually(lambda: small.metric("farthing_grpc_requests_in_flight") == 0)
    assert small.metric("farthing_pending_rows") == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=4), st.booleans())
def test_strangers_bytes_end_no_more_than_their_connection(
    small: Live, address: Address, pieces: list[bytes], greets: bool
) -> None:
    with Http2Wire(address, greets=greets) as wire:
        for piece in pieces:
            try:
                wire.send(piece)
            except (ConnectionResetError, BrokenPipeError):
                break
    with Http2Wire(address) as honest:
        assert honest.send(honest.call(1, b"", LIVE)).status(1) == OK


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_calls_in_any_order_and_broken_anywhere_leave_nothing_behind(
    small: Live, address: Address, data: st.DataObject
) -> None:
    with Http2Wire(address) as wire:
        sent = b""
        for stream in range(1, 2 * data.draw(st.integers(1, 8)), 2):
            body = prefixed(data.draw(st.sampled_from([b"", echo(), echo(3), b"\xff" * 30])))
            cut = data.draw(st.integers(0, len(body)))
            sent += wire.headers(stream, data.draw(st.sampled_from([INFER, LIVE, STREAM, WATCH, "/x"])))
            sent += frame(DATA, 0, stream, body[:cut]) + frame(
                DATA, data.draw(st.sampled_from([0, END])), stream, body[cut:]
            )
            if data.draw(st.booleans()):
                sent += rst_stream(stream, ErrorCode.CANCEL)
        wire.send(sent[: data.draw(st.integers(0, len(sent)))])
    eventually(lambda: bytes_held(small) == 0)
    eventually(lambda: small.metric("farthing_grpc_requests_in_flight") == 0)


# -- TLS and the end -----------------------------------------------------------------------------------------------------


def test_tls_agrees_on_h2(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "ours")
    pair = authority.issue("server")
    tls = Tls(certificate=pair.certificate, key=pair.key)
    with serving(wide_repository(tmp_path / "models"), tls=tls, grpc=ANY_PORT) as live:
        address = open_grpc(live)
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with Http2Wire(address, tls=context) as wire:
            assert isinstance(wire.socket, ssl.SSLSocket)
            assert wire.socket.selected_alpn_protocol() == "h2"
            assert wire.send(wire.call(1, echo(4000))).status(1) == OK
            assert len(wire.bodies[1]) > 32_000


def test_the_end_is_announced_and_what_is_under_way_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_room, "FAREWELL_S", 0.05)
    gate = Gate(tmp_path)
    message = infer_message([[1]], "gate").SerializeToString()
    with serving(gate.path, grpc=ANY_PORT) as live:
        address = open_grpc(live)
        with Http2Wire(address) as wire:
            wire.send(wire.call(1, message))
            eventually(gate.seen)
            thread, answers = drained(live)
            assert wire.wait_for(FrameType.GOAWAY).payload[:4] == b"\x7f\xff\xff\xff"
            wire.send(wire.call(3, message))
            assert wire.status(3) == UNAVAILABLE
            assert wire.answers[3]["grpc-message"] == "Server is stopping"
            gate.open()
            assert wire.status(1) == OK
            assert wire.wait_for(FrameType.GOAWAY).payload[:4] == b"\0\0\0\3"
            assert wire.drained() == ErrorCode.NO_ERROR
        thread.join()
        assert answers == [True]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address.host, address.port), 1)
