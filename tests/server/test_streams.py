"""Answers that come in parts: framing, order, clients that leave, lag behind or only listen."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from tests.serving import WAIT_S, Wire, eventually, request

from farthing.config.server import AdmissionLimits, HttpLimits
from farthing.server.admission import Admission
from farthing.server.exchange import Exchange
from farthing.server.listener import Listener
from farthing.telemetry.counters import HttpCounters, RouteClass

LIMITS = HttpLimits(stream_unread_bytes_max=64 * 1024, idle_timeout_s=5)


class Streamer:
    """An app: `/stream` begins a stream that the test goes on with, anything else is answered at once."""

    def __init__(self) -> None:
        self.streams: list[Exchange] = []
        self.gone: list[Exchange] = []
        self.ended: list[int] = []

    def handle(self, exchange: Exchange) -> None:
        exchange.reply_headers = b""
        exchange.on_end = self.ended.append
        if exchange.path != b"/stream":
            exchange.respond(200, b"{}")
            return
        exchange.on_gone = lambda: self.gone.append(exchange)
        exchange.begin(content_type=b"text/plain", headers=b"X-Mine: 1\r\n", probe=b"~")
        self.streams.append(exchange)


class House:
    """A listener in a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.app = Streamer()
        self.counters = HttpCounters()
        self.admission = Admission(AdmissionLimits())
        self.listener: Listener
        self.address: tuple[str, int]

    async def start(self) -> None:
        self.listener = Listener(self.app, LIMITS, self.admission, self.counters)
        server = await self.loop.create_server(self.listener, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()

    def call(self, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Calls a function on the loop and waits for it."""

        async def call() -> Any:
            return function(*args, **more)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(WAIT_S)

    def connect(self, receive_buffer: int = 0) -> Wire:
        import socket

        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(self.address)
        return Wire(sock)

    def stream(self, wire: Wire, *, version: str = "1.1") -> Exchange:
        """Asks for a stream, and waits until its head is there."""
        before = len(self.app.streams)
        wire.send(request("POST", "/stream", b"x").replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        eventually(lambda: len(self.app.streams) > before)
        return self.app.streams[-1]


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    thread = threading.Thread(target=house.loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(house.start(), house.loop).result(WAIT_S)
    yield house
    house.call(house.listener.abort)
    house.loop.call_soon_threadsafe(house.loop.stop)
    thread.join(WAIT_S)


def read_until(wire: Wire, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = wire.socket.recv(1 << 16)
        assert more, data
        data += more
    return data


def read_to_the_end(wire: Wire) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := wire.socket.recv(1 << 16):
            data += more
    return data


def test_parts_are_chunks_and_the_connection_goes_on(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire)
        house.call(exchange.write, b"hello ")
        house.call(exchange.write, b"")  # nothing, not the end
        house.call(exchange.write, b"w" * 20)
        house.call(exchange.end)
        head, _, body = read_until(wire, b"0\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nTransfer-Encoding: chunked" in head
        assert b"\r\nX-Mine: 1" in head
        assert b"Content-Length" not in head
        assert body == b"6\r\nhello \r\n14\r\n" + b"w" * 20 + b"\r\n0\r\n\r\n"
        assert wire.ask("GET", "/other").status == 200
    assert house.app.ended == [200, 200]
    assert house.counters.requests_in_flight == 0
    assert house.admission.bytes == 0
    assert house.counters.requests[RouteClass.OTHER] == {200: 2}


def test_http_1_0_ends_with_the_connection(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire, version="1.0")
        house.call(exchange.write, b"part")
        house.call(exchange.end)
        head, _, body = read_to_the_end(wire).partition(b"\r\n\r\n")
        assert body == b"part"
        assert b"chunked" not in head
        assert b"\r\nConnection: close" in head


def test_requests_behind_a_stream_wait_for_its_end(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire)
        wire.send(request("GET", "/other"))
        house.call(exchange.write, b"a")
        house.call(exchange.end)
        data = read_until(wire, b"{}")
        assert data.index(b"0\r\n\r\n") < data.index(b"Content-Length: 2")


def test_a_client_that_leaves_is_noticed_at_the_next_part_but_one(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire)
        house.call(exchange.write, b"a")
        read_until(wire, b"a\r\n")
    eventually(lambda: house.call(exchange.write, b"b") or house.app.gone == [exchange])
    assert house.app.ended == [0]
    assert house.counters.requests_in_flight == 0
    assert not exchange.is_streaming


def test_a_client_that_leaves_a_silent_stream_is_noticed_too(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire)
    eventually(lambda: house.app.gone == [exchange], within_s=3)


def test_a_client_that_only_listens_gets_everything(house: House) -> None:
    import socket

    with house.connect() as wire:
        exchange = house.stream(wire)
        house.call(exchange.write, b"a")
        wire.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.05)  # its end must arrive before the next part
        house.call(exchange.write, b"b")
        house.call(exchange.end)
        body = read_to_the_end(wire).partition(b"\r\n\r\n")[2]
        assert body == b"1\r\na\r\n1\r\n~\r\n1\r\nb\r\n0\r\n\r\n"
    assert house.app.gone == []


def test_a_slow_reader_is_cut_off_and_nobody_waits_for_it(house: House) -> None:
    with house.connect(receive_buffer=4096) as wire, house.connect() as other:
        exchange = house.stream(wire)
        started = time.monotonic()
        for _ in range(2000):  # 32 MB: more than any kernel buffers
            house.call(exchange.write, b"x" * 16_384)
            if house.app.gone:
                break
        assert house.app.gone == [exchange]
        assert time.monotonic() - started < 5
        assert house.counters.rejected["slow"] == 1
        assert other.ask("GET", "/other").status == 200
        assert house.counters.requests_in_flight == 0


def test_a_failure_in_the_middle_breaks_off(house: House) -> None:
    from farthing.types.errors import EngineFailed

    with house.connect() as wire:
        exchange = house.stream(wire)
        house.call(exchange.write, b"a")
        house.call(exchange.fail, EngineFailed("broken"))
        assert not read_to_the_end(wire).endswith(b"0\r\n\r\n")
    eventually(lambda: house.app.ended == [0])


def test_a_drain_lets_a_stream_finish_and_then_closes(house: House) -> None:
    with house.connect() as wire:
        exchange = house.stream(wire)

        def drain() -> None:
            house.listener.is_draining = True
            house.listener.end_idle()

        house.call(drain)
        house.call(exchange.write, b"a")
        house.call(exchange.end)
        assert read_to_the_end(wire).endswith(b"1\r\na\r\n0\r\n\r\n")
    eventually(house.listener.empty.is_set)
