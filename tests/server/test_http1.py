"""The HTTP/1.1 loop against clients of every temper, over real sockets."""

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving import Gate, Live, eventually, infer_json, request, serving, small_repository

from farthing.config.server import AdmissionLimits, HttpLimits

LIVE = request("GET", "/v2/health/live")
ECHO = infer_json([[1, 2]])
ECHO_PATH = "/v2/models/echo/infer"


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with small limits and short times."""
    folder = tmp_path_factory.mktemp("tight")
    limits = HttpLimits(
        body_bytes_max=256 * 1024,
        head_bytes_max=4096,
        headers_max=20,
        pipeline_max=4,
        head_timeout_s=0.15,
        body_timeout_s=0.15,
        body_bytes_per_s_min=64 * 1024,
        idle_timeout_s=0.4,
        write_timeout_s=0.15,
    )
    with serving(small_repository(folder), limits=limits) as server:
        yield server


def head(path: str = ECHO_PATH, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: test", *lines, "", ""]).encode()


# -- order and keep-alive --------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    """Slow ones (a model) and quick ones (health) mixed: each answer carries its request's id."""
    requests = [
        request("POST", ECHO_PATH, ECHO, X_Request_Id=f"r{i}")
        if i % 3
        else request("GET", "/v2/health/live", X_Request_Id=f"r{i}")
        for i in range(50)
    ]
    with live.connect() as wire:
        wire.send(b"".join(requests))
        assert [wire.read_reply().headers["x-request-id"] for _ in requests] == [f"r{i}" for i in range(50)]


def test_a_long_pipeline_cut_within_a_head_is_no_long_head(live: Live) -> None:
    with live.connect() as wire:
        wire.send(LIVE * 3000 + LIVE[:20])
        for _ in range(3000):
            assert wire.read_reply().status == 200
        assert wire.send(LIVE[20:]).read_reply().status == 200


def test_a_pipeline_longer_than_its_limit_is_answered_whole(tight: Live) -> None:
    with tight.connect() as wire:
        threading.Thread(target=wire.send, args=(request("POST", ECHO_PATH, ECHO) * 200,)).start()
        assert [wire.read_reply().status for _ in range(200)] == [200] * 200


def test_requests_may_come_byte_by_byte(live: Live) -> None:
    with live.connect() as wire:
        for byte in request("POST", ECHO_PATH, ECHO):
            wire.send(bytes([byte]))
        assert wire.read_reply().json["outputs"][0]["data"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("version", "connection", "said", "stays"),
    [
        ("1.1", "", None, True),
        ("1.1", "close", "close", False),
        ("1.1", "Keep-Alive", "keep-alive", True),
        ("1.0", "", "close", False),
        ("1.0", "keep-alive", "keep-alive", True),
    ],
)
def test_a_connection_stays_as_its_client_wishes(
    live: Live, version: str, connection: str, said: str | None, stays: bool
) -> None:
    line = f"Connection: {connection}\r\n" if connection else ""
    with live.connect() as wire:
        reply = wire.send(f"GET /v2/health/live HTTP/{version}\r\nHost: a\r\n{line}\r\n".encode()).read_reply()
        assert (reply.status, reply.headers.get("connection")) == (200, said)
        if stays:
            assert wire.send(LIVE).read_reply().status == 200
        else:
            assert wire.is_ended()


def test_what_follows_the_last_request_is_not_answered(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("GET", "/v2/health/live", Connection="close") + request("GET", "/v2") * 3)
        assert wire.read_reply().json == {"live": True}
        assert wire.is_ended()


def test_head_answers_the_headers_alone(live: Live) -> None:
    with live.connect() as wire:
        get, only_head = wire.ask("GET", "/v2"), wire.ask("HEAD", "/v2")
        assert only_head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))
        assert wire.ask("GET", "/v2").body == get.body  # nothing was left over


def test_every_answer_is_dated_and_signed(live: Live) -> None:
    headers = live.get("/v2").headers
    assert headers["server"] == "farthing"
    assert headers["date"].endswith(" GMT")


# -- bodies ----------------------------------------------------------------------------------------------------------


def test_a_body_in_ten_thousand_chunks_of_a_byte_is_one_body(live: Live) -> None:
    body = infer_json([[1, 2]], id="x" * 200).replace(b'{"inputs"', b" " * 10_000 + b'{"inputs"')
    with live.connect() as wire:
        wire.send(head(ECHO_PATH, "Transfer-Encoding: chunked"))
        wire.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert wire.read_reply().json["id"] == "x" * 200
        assert wire.send(LIVE).read_reply().status == 200


def test_trailers_and_chunk_extensions_are_skipped(live: Live) -> None:
    with live.connect() as wire:
        wire.send(head(ECHO_PATH, "Transfer-Encoding: chunked", "Trailer: X-Request-Id"))
        wire.send(b"%x;a=b\r\n%s\r\n0\r\nX-Request-Id: trailer\r\nContent-Encoding: br\r\n\r\n" % (len(ECHO), ECHO))
        reply = wire.read_reply()
        assert reply.status == 200
        assert reply.headers["x-request-id"] != "trailer"
        assert wire.send(LIVE).read_reply().status == 200


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(live: Live) -> None:
    with live.connect() as wire:
        wire.send(head(ECHO_PATH, f"Content-Length: {len(ECHO)}", "Expect: 100-continue"))
        assert wire.read_reply().status == 100
        assert wire.send(ECHO).read_reply().status == 200


def test_a_client_that_asks_to_send_too_much_is_told_before_it_does(tight: Live) -> None:
    with tight.connect() as wire:
        wire.send(head(ECHO_PATH, "Content-Length: 262145", "Expect: 100-continue"))
        reply = wire.read_reply()
        assert reply.status == 400
        assert "exceeds the maximum allowed 262144 bytes" in reply.error
        assert wire.is_ended()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_sends_too_much_can_read_why(tight: Live, is_chunked: bool) -> None:
    """It goes on sending for megabytes after the answer, as clients do; a reset would take the answer away."""
    with tight.connect() as wire:
        length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {8 << 20}"
        wire.send(head(ECHO_PATH, length))
        piece = b"x" * (64 * 1024)
        for _ in range(8 << 4):
            wire.send(b"10000\r\n%s\r\n" % piece if is_chunked else piece)
        reply = wire.read_reply()
        assert reply.status == 400
        assert "exceeds the maximum allowed" in reply.error
        assert reply.headers["connection"] == "close"
        assert wire.is_ended()


def test_bodies_refused_or_left_unfinished_are_not_counted_for_ever(tmp_path: Any) -> None:
    body = infer_json([[1, 2]], id="x").ljust(1000)
    with serving(small_repository(tmp_path), admission=AdmissionLimits(inflight_bytes_max=1500)) as live:
        assert live.server is not None
        for _ in range(3):
            with live.connect() as first, live.connect() as second:
                part = request("POST", ECHO_PATH, body)[:-1]
                first.send(part)
                eventually(lambda: _bytes_under_way(live) == 999)
                refused = second.send(part).read_reply()
                assert refused.status == 503
                assert refused.headers["retry-after"] == "1"
                assert "inflight-bytes-max" in refused.error
                assert _bytes_under_way(live) == 999
                assert first.send(body[-1:]).read_reply().status == 200
                assert _bytes_under_way(live) == 0
            with live.connect() as wire:
                wire.send(part)
                eventually(lambda: _bytes_under_way(live) == 999)
            eventually(lambda: _bytes_under_way(live) == 0)
        bomb = gzip.compress(infer_json([[1, 2]]).ljust(100_000))
        reply = live.post(ECHO_PATH, bomb, {"Content-Encoding": "gzip"})
        assert reply.status == 503  # what it grows to counts
        assert _bytes_under_way(live) == 0


def _bytes_under_way(live: Live) -> int:
    assert live.server is not None
    listener = live.server._listener
    return live.on_loop(lambda: listener.admission.bytes)


# -- heads -----------------------------------------------------------------------------------------------------------


def test_a_head_over_its_limit_is_431(tight: Live) -> None:
    for lines in (
        [f"X-Long: {'x' * 5000}"],
        [f"X-{i}: {'x' * 300}" for i in range(15)],
        [f"X-{i}: 1" for i in range(30)],
    ):
        with tight.connect() as wire:
            reply = wire.send(head("/v2/health/live", *lines)).read_reply()
            assert reply.status == 431, lines[0][:20]
            assert "4096 bytes or 20 headers" in reply.error
            assert wire.is_ended()
    with tight.connect() as wire:
        assert wire.send(request("GET", f"/{'x' * 5000}")).read_reply().status == 431


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", b"GET / HTTP/1.1\r\nX-"])
def test_one_endless_line_ends_at_the_limit(tmp_path_factory: Any, start: bytes) -> None:
    with (
        serving(tmp_path_factory.mktemp("none"), limits=HttpLimits(head_bytes_max=4096)) as live,
        live.connect() as wire,
    ):
        wire.send(start)
        for _ in range(1000):
            wire.send(b"x" * 64)
        reply = wire.read_reply()
        assert reply.status == 431
        assert wire.is_ended()


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", b"GET / HTTP/1.1\r\nX-"])
def test_one_endless_line_that_comes_at_once_ends_at_the_limit_too(tmp_path_factory: Any, start: bytes) -> None:
    with (
        serving(tmp_path_factory.mktemp("none"), limits=HttpLimits(head_bytes_max=4096)) as live,
        live.connect() as wire,
    ):
        wire.send(start + b"x" * 20_000)
        assert wire.read_reply().status == 431
        assert wire.is_ended()


def test_a_body_before_the_beginning_of_a_head_is_not_counted_with_it(tight: Live) -> None:
    body = b"x" * 20_000
    with tight.connect() as wire:
        first = head("/v2/health/live", f"Content-Length: {len(body)}") + body
        wire.send(first + b"GET /v2/health/live HTT")
        assert wire.read_reply().status in (200, 405)
        wire.send(b"P/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_reply().status == 200


# -- lies and garbage ------------------------------------------------------------------------------------------------

GARBAGE = {
    "both lengths": head(ECHO_PATH, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "both lengths, other order": head(ECHO_PATH, "Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
    "two lengths": head(ECHO_PATH, "Content-Length: 5", "Content-Length: 6") + b"12345",
    "equal lengths": head(ECHO_PATH, "Content-Length: 5", "Content-Length: 5") + b"12345",
    "negative length": head(ECHO_PATH, "Content-Length: -5"),
    "length in hex": head(ECHO_PATH, "Content-Length: 0x5"),
    "length beyond 64 bits": head(ECHO_PATH, "Content-Length: 99999999999999999999"),
    "space before the colon": head(ECHO_PATH, "Content-Length : 5"),
    "chunked is not last": head(ECHO_PATH, "Transfer-Encoding: chunked, identity"),
    "unknown coding": head(ECHO_PATH, "Transfer-Encoding: xchunked"),
    "bad chunk size": head(ECHO_PATH, "Transfer-Encoding: chunked") + b"zz\r\n",
    "chunk longer than said": head(ECHO_PATH, "Transfer-Encoding: chunked") + b"1\r\nab\r\n0\r\n\r\n",
    "line feed alone": b"GET /v2 HTTP/1.1\nHost: a\n\n",
    "folded header": b"GET /v2 HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    "header without colon": b"GET /v2 HTTP/1.1\r\nHost\r\n\r\n",
    "NUL in a header": b"GET /v2 HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "NUL in the path": b"GET /v2\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"BREW /v2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET /v2 HTTP/9.9\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "noise": bytes(range(256)) * 4,
    "an SSH client": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_not_http_is_400_and_the_end(live: Live, what: str) -> None:
    with live.connect() as wire:
        reply = wire.send(GARBAGE[what]).read_reply()
        assert reply.status == 400
        assert reply.headers["connection"] == "close"
        assert reply.error.startswith("this is not HTTP/1.1: ")
        assert "check the scheme" in reply.error
        assert wire.is_ended()


def test_requests_before_garbage_are_answered(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("POST", ECHO_PATH, ECHO) * 2 + GARBAGE["noise"])
        assert [wire.read_reply().status for _ in range(3)] == [200, 200, 400]
        assert wire.is_ended()


def test_a_request_names_its_host_unless_it_is_of_http_1_0(live: Live) -> None:
    """RFC 9112, 3.2."""
    with live.connect() as wire:
        reply = wire.send(b"GET /v2/health/live HTTP/1.1\r\n\r\n").read_reply()
        assert (reply.status, "no Host header" in reply.error) == (400, True)
        assert wire.is_ended()
    with live.connect() as wire:
        assert wire.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n").read_reply().status == 200


def test_a_body_shorter_than_said_is_never_a_request(live: Live) -> None:
    """What follows is taken as its body: one answer, about bytes that are not JSON."""
    with live.connect() as wire:
        wire.send(head(ECHO_PATH, f"Content-Length: {len(ECHO) + len(LIVE)}") + ECHO + LIVE)
        assert wire.read_reply().status == 400
        assert wire.send(LIVE).read_reply().json == {"live": True}


def test_a_length_said_too_short_leaves_garbage_behind(live: Live) -> None:
    with live.connect() as wire:
        wire.send(head(ECHO_PATH, f"Content-Length: {len(ECHO) - 3}") + ECHO)
        assert [wire.read_reply().status, wire.read_reply().status] == [400, 400]
        assert wire.is_ended()


# -- other protocols -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_wish_for_another_protocol_is_declined_and_its_body_read(live: Live, is_chunked: bool) -> None:
    """As Java's client and `curl --http2` start every connection."""
    lines = [
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "X-Request-Id: u",
    ]
    if is_chunked:
        start = head(ECHO_PATH, *lines, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(ECHO), ECHO)
    else:
        start = head(ECHO_PATH, *lines, f"Content-Length: {len(ECHO)}") + ECHO
    for pieces in ([start + LIVE], [start[:-10], start[-10:] + LIVE]):
        with live.connect() as wire:
            for piece in pieces:
                wire.send(piece)
            reply = wire.read_reply()
            assert reply.json["outputs"][0]["data"] == [1.0, 2.0]
            assert reply.headers["x-request-id"] == "u"
            assert wire.read_reply().json == {"live": True}


def test_an_upgrade_with_close_still_closes(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("GET", "/v2/health/live", Connection="upgrade, close", Upgrade="websocket"))
        assert wire.read_reply().headers["connection"] == "close"
        assert wire.is_ended()


def test_asking_for_another_protocol_again_and_again_has_an_end(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("GET", "/v2/health/live", Connection="upgrade", Upgrade="h2c") * 2000)
        assert [wire.read_reply().status for _ in range(9)] == [200] * 8 + [400]
        assert wire.is_ended()


def test_connect_is_answered_and_ends(live: Live) -> None:
    with live.connect() as wire:
        wire.send(b"CONNECT host:443 HTTP/1.1\r\nHost: host\r\n\r\n\x16\x03\x01")
        assert wire.read_reply().status == 404
        assert wire.is_ended()


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /v2 HT", "headers"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\n", "headers"),
        (head(ECHO_PATH, "Content-Length: 100"), "body"),
        (head(ECHO_PATH, "Content-Length: 100") + b"x" * 99, "body"),
        (head(ECHO_PATH, "Transfer-Encoding: chunked") + b"5\r\nabc", "body"),
    ],
)
def test_a_request_that_never_ends_is_408(tight: Live, start: bytes, part: str) -> None:
    before = tight.metric("farthing_http_rejected_total", reason="slow")
    with tight.connect() as wire:
        reply = wire.send(start).read_reply()
        assert reply.status == 408
        assert reply.error.startswith(f"the request's {part} did not arrive within 0.15 s")
        assert wire.is_ended()
    assert tight.metric("farthing_http_rejected_total", reason="slow") == before + 1


def test_a_slow_upload_that_moves_is_waited_for(tight: Live) -> None:
    """64 KiB a second are the least: 100,000 bytes may take 1.5 s more than the 0.15 s, and take 0.4 s here."""
    body = ECHO.ljust(100_000)
    with tight.connect() as wire:
        data = request("POST", ECHO_PATH, body)
        tick = threading.Event()
        for start in range(0, len(data), 5000):
            wire.send(data[start : start + 5000])
            tick.wait(0.02)
        assert wire.read_reply().status == 200


def test_an_idle_connection_ends_without_a_word(tight: Live) -> None:
    with tight.connect() as never, tight.connect() as once:
        assert once.send(LIVE).read_reply().status == 200
        assert never.is_ended()
        assert once.is_ended()


def test_a_client_that_does_not_read_its_answers_is_cut_off(tight: Live) -> None:
    body = infer_json([[1.5, 2.5]] * 1000)
    with tight.connect(receive_buffer=4096) as wire:
        before = tight.metric("farthing_http_rejected_total", reason="slow")

        def send() -> None:
            with contextlib.suppress(OSError):  # cut off, as it should be
                wire.send(request("POST", ECHO_PATH, body) * 400)

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(20)
        assert not sender.is_alive()
        eventually(lambda: tight.metric("farthing_http_rejected_total", reason="slow") == before + 1)
    assert tight.get("/v2/health/live").status == 200


# -- half-closed and gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_only_stopped_sending_gets_its_answer(tmp_path: Any, version: str) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path) as live, live.connect() as wire:
        wire.send(gate.request(1).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        eventually(gate.seen)
        wire.socket.shutdown(socket.SHUT_WR)
        gate.open()
        reply = wire.read_reply()
        if version == "1.1":
            assert reply.status == 102  # an interim answer: it finds out whether anyone is there
            reply = wire.read_reply()
        assert reply.status == 200
        assert reply.json["outputs"][0]["data"] == [1.0]
        assert wire.is_ended()


def test_a_half_closed_pipeline_is_answered_whole(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("POST", ECHO_PATH, ECHO) * 5)
        wire.socket.shutdown(socket.SHUT_WR)
        statuses = []
        while len([status for status in statuses if status != 102]) < 5:
            statuses.append(wire.read_reply().status)
        assert set(statuses) <= {102, 200}
        assert wire.is_ended()


def test_half_a_request_and_the_end_is_no_request(live: Live) -> None:
    with live.connect() as wire:
        wire.send(request("POST", ECHO_PATH, ECHO)[:-1])
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.is_ended()


# -- too many --------------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_503_and_says_when_to_come_back(tmp_path: Any) -> None:
    with serving(tmp_path, limits=HttpLimits(connections_max=3)) as live:
        wires = [live.connect() for _ in range(3)]
        assert [wire.send(LIVE).read_reply().status for wire in wires] == [200] * 3
        with live.connect() as fourth:
            reply = fourth.send(LIVE).read_reply()
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            assert "3 connections" in reply.error
            assert fourth.is_ended()
        wires.pop().socket.close()
        eventually(lambda: live.get("/v2/health/live").status == 200)
        assert live.metric("farthing_http_rejected_total", reason="connections") >= 1
