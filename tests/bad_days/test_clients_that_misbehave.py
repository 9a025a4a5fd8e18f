"""Slow-loris, clients that leave, clients that leave in mid-batch: the others are served, and nothing is kept."""

import socket
import struct
import time
from pathlib import Path

from tests.serving import Gate, Live, eventually, infer_json, request, serving, small_repository

from farthing.config.server import HttpLimits

LORIS = 200


def canceled(live: Live) -> float:
    return live.metric("nv_inference_request_failure", model="gate", reason="CANCELED")


def test_many_half_sent_heads_are_cut_off_while_others_are_served(tmp_path: Path) -> None:
    limits = HttpLimits(head_timeout_s=0.5, connections_max=LORIS + 50)
    with serving(small_repository(tmp_path), limits=limits) as live:
        slow = [live.connect().send(b"GET /v2 HTTP/1.1\r\nX-Slow: ") for _ in range(LORIS)]
        started = time.monotonic()
        is_served = []
        while time.monotonic() - started < 0.7:
            for wire in slow[:20]:  # they go on, a byte at a time, and gain nothing by it
                try:
                    wire.send(b"x")
                except OSError:
                    continue
            is_served.append(live.infer("echo", [[1, 2]]).status == 200)
        assert all(is_served)
        assert len(is_served) > 5
        assert [wire.read_reply().status for wire in slow[20:]] == [408] * (LORIS - 20)
        assert all(wire.is_ended() for wire in slow[20:])


def test_a_client_that_left_is_never_run(tmp_path: Path) -> None:
    """Closed in order, and by a reset; while its request waited in the queue."""
    gate = Gate(tmp_path)
    with serving(gate.path) as live:
        first = live.connect().send(gate.request(1))
        eventually(gate.seen)
        leaver, resetter, stayer = (live.connect().send(gate.request(value)) for value in (2, 3, 4))
        eventually(lambda: live.metric("nv_inference_pending_request_count", model="gate") == 3)
        leaver.socket.close()
        resetter.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        resetter.socket.close()
        eventually(lambda: canceled(live) == 2)
        gate.open()
        assert [first.read_reply().status, stayer.read_reply().status] == [200, 200]
        assert gate.seen() == [1, 4]


def test_pipelined_requests_of_a_client_that_left_are_never_run(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path) as live:
        wire = live.connect().send(gate.request(1) + gate.request(2) + gate.request(3))
        eventually(gate.seen)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.socket.close()
        eventually(lambda: canceled(live) == 1)
        gate.open()
        assert live.infer("gate", [[4.0]]).status == 200
        assert gate.seen() == [1, 4]


def test_a_client_that_leaves_in_mid_batch_takes_nobody_with_it(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path) as live:
        first = live.connect().send(gate.request(1))
        eventually(gate.seen)
        together = [live.connect().send(gate.request(value)) for value in (2, 3, 4)]
        eventually(lambda: live.metric("nv_inference_pending_request_count", model="gate") == 3)
        gate.open()
        assert first.read_reply().status == 200
        assert [wire.read_reply().json["outputs"][0]["data"] for wire in together] == [[2.0], [3.0], [4.0]]
        gate.shut()
        batch = [live.connect().send(gate.request(value)) for value in (5, 6, 7)]
        eventually(gate.seen)
        batch[0].socket.close()
        eventually(lambda: canceled(live) == 1)
        gate.open()
        assert [wire.read_reply().json["outputs"][0]["data"] for wire in batch[1:]] == [[6.0], [7.0]]
        assert live.metric("farthing_http_requests_in_flight") == 1  # the scrape itself


def test_two_thousand_connections_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path)) as live:
        body = request("POST", "/v2/models/echo/infer", infer_json([[1, 2]]))
        for index in range(2000):
            with socket.create_connection(live.address, 10) as sock:
                sock.sendall(body[: index % len(body)])
        assert live.server is not None
        listener = live.server._listener
        eventually(lambda: live.on_loop(lambda: len(listener.connections)) == 0)
        assert live.on_loop(lambda: (listener.admission.bytes, listener.counters.requests_in_flight)) == (0, 0)
        assert live.infer("echo", [[1, 2]]).status == 200
