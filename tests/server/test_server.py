"""The server's life: listening, draining, ending."""

import socket
import threading
import time
from pathlib import Path

import pytest
from tests.serving import Gate, Live, eventually, infer_json, request, serving, small_repository

from farthing.config.server import Address, ServerConfig
from farthing.repository import Repository
from farthing.server.server import CannotListen, Server

LIVE = request("GET", "/v2/health/live")


def drained(live: Live) -> tuple[threading.Thread, list[bool]]:
    """Starts to drain in the background; the list then has whether all was answered."""
    answers: list[bool] = []

    def drain() -> None:
        assert live.server is not None
        answers.append(live.run(live.server.drain()))

    thread = threading.Thread(target=drain)
    thread.start()
    return thread, answers


def refuses_connections(live: Live) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(live.address) != 0


def test_port_0_takes_a_free_one_and_says_which(tmp_path: Path) -> None:
    with serving(tmp_path) as one, serving(tmp_path) as two:
        assert 0 != one.address[1] != two.address[1] != 0


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with serving(tmp_path) as live:
        other = Server(ServerConfig(http=Address(*live.address)), Repository([]))
        with pytest.raises(
            CannotListen, match=f"cannot listen on 127.0.0.1:{live.address[1]}: Address already in use"
        ) as e:
            live.run(other.listen())
        assert "--http HOST:0" in e.value.hint


def test_it_listens_on_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with serving(tmp_path, http=Address("::1", 0)) as live:
        assert live.server is not None
        assert str(live.server.http).startswith("[::1]:")
        with socket.create_connection(("::1", live.address[1]), 5) as sock:
            sock.sendall(LIVE)
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_draining_turns_ready_red_first_and_still_answers(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path), drain_notice_s=0.3) as live:
        kept = live.connect()
        assert kept.send(LIVE).read_reply().headers.get("connection") is None
        thread, answers = drained(live)
        eventually(lambda: live.get("/v2/health/ready").status == 503)
        assert "the server is stopping" in live.get("/v2/health/ready").error
        assert live.get("/v2/health/live").status == 200
        reply = kept.send(request("POST", "/v2/models/echo/infer", infer_json([[1, 2]]))).read_reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert kept.is_ended()
        thread.join()
        assert answers == [True]
        assert refuses_connections(live)


def test_requests_under_way_are_answered_before_the_end_and_idle_connections_closed(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path) as live:
        idle = live.connect()
        assert idle.send(LIVE).read_reply().status == 200
        pipelined = live.connect().send(gate.request(1) + gate.request(2))
        eventually(gate.seen)
        thread, answers = drained(live)
        assert idle.is_ended()
        eventually(lambda: refuses_connections(live))
        gate.open()
        replies = [pipelined.read_reply(), pipelined.read_reply()]
        assert [reply.status for reply in replies] == [200, 200]
        assert [reply.headers.get("connection") for reply in replies] == [None, "close"]
        pipelined.socket.close()
        thread.join()
        assert answers == [True]


def test_a_drain_that_takes_too_long_ends_and_says_so(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path, exit_timeout_s=0.1) as live:
        wire = live.connect().send(gate.request(1))
        eventually(gate.seen)
        started = time.monotonic()
        thread, answers = drained(live)
        thread.join()
        assert answers == [False]
        assert time.monotonic() - started < 5
        assert wire.is_ended()
        gate.open()


def test_a_load_while_draining_is_refused(tmp_path: Path) -> None:
    from farthing.config.server import ModelControl

    with serving(small_repository(tmp_path), model_control=ModelControl.EXPLICIT, drain_notice_s=0.2) as live:
        thread, _ = drained(live)
        eventually(lambda: live.get("/v2/health/ready").status == 503)
        reply = live.post("/v2/repository/models/echo/load")
        assert (reply.status, reply.error) == (503, "Server is stopping")
        thread.join()
