"""Servers whose delays are known, for holding the load generator against: one thread, its own event loop."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Seen:
    """When each request was whole, and when its answer was about to leave; of one connection at a time."""

    came_ns: list[int] = field(default_factory=list)
    left_ns: list[int] = field(default_factory=list)


class Answering(asyncio.Protocol):
    """Answers each request with what `answer(number)` gives: seconds to wait, and bytes; None hangs up."""

    def __init__(self, numbers: Iterator[int], answer: Callable[[int], tuple[float, bytes | None]], seen: Seen) -> None:
        self.numbers, self.answer, self.times = numbers, answer, seen
        self.seen = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while (end := self.seen.find(b"\r\n\r\n")) >= 0:
            length = int(self.seen.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.seen) < end + 4 + length:
                return
            self.seen = self.seen[end + 4 + length :]
            self.times.came_ns.append(time.monotonic_ns())
            wait_s, bytes_ = self.answer(next(self.numbers))
            asyncio.get_running_loop().call_later(wait_s, self.say, bytes_)

    def say(self, data: bytes | None) -> None:
        self.times.left_ns.append(time.monotonic_ns())
        if data is None:
            self.transport.abort()
        else:
            self.transport.write(data)


@contextmanager
def answering(answer: Callable[[int], tuple[float, bytes | None]], seen: Seen | None = None) -> Iterator[int]:
    """The port of a server that answers so."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    numbers = itertools.count()

    async def start() -> asyncio.Server:
        return await loop.create_server(
            lambda: Answering(numbers, answer, seen or Seen()), "127.0.0.1", 0, backlog=1024
        )

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Stall:
    """Answers at once, but everything that comes within the stall is answered when it is over."""

    def __init__(self, after_s: float, seconds: float) -> None:
        self.after_s, self.seconds, self.start = after_s, seconds, 0.0

    def __call__(self, _number: int) -> tuple[float, bytes]:
        now = time.monotonic()
        self.start = self.start or now
        at = now - self.start
        is_stalled = self.after_s <= at < self.after_s + self.seconds
        return (self.after_s + self.seconds - at if is_stalled else 0.0), ANSWER


def stream(*events: bytes) -> bytes:
    """Server-sent events in one chunked answer."""
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
