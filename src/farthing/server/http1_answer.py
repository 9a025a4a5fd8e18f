"""The bytes of an HTTP/1.1 answer: its head, and how a stream is cut into chunks. No sockets, no order.

What an answer says is up to whoever handles the request, when it is written to `server.http1`.
"""

import time
from http import HTTPStatus
from typing import Final

from farthing.server.exchange import Exchange

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
PROCESSING: Final = b"HTTP/1.1 102 Processing\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
TIMING: Final = b"Server-Timing:"


def whole_answer(
    exchange: Exchange,
    status: int,
    body: bytes,
    size: int,
    content_type: bytes,
    headers: bytes,
    *,
    date: bytes,
    keep_alive: bool,
) -> bytes:
    """The head of an answer of `size` bytes, and `body` behind it: all of them, or none if they follow apart."""
    return b"".join(
        (
            STATUS_LINES[status],
            date,
            exchange.reply_headers,
            headers,
            b"" if TIMING in headers else _total_line(exchange),
            b"" if keep_alive and b"connection" not in exchange.headers else _connection_line(keep_alive),
            b"Content-Type: " + content_type + b"\r\n" if size else b"",
            b"Content-Length: %d\r\n\r\n" % size,
            body,
        )
    )


def stream_head(exchange: Exchange, content_type: bytes, headers: bytes, *, date: bytes, is_chunked: bool) -> bytes:
    """The head of an answer whose length nobody knows yet."""
    keep_alive = exchange.keep_alive
    return b"".join(
        (
            STATUS_LINES[HTTPStatus.OK],
            date,
            exchange.reply_headers,
            headers,
            b"" if TIMING in headers else _total_line(exchange),
            b"" if keep_alive and b"connection" not in exchange.headers else _connection_line(keep_alive),
            b"Content-Type: " + content_type + b"\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"\r\n",
        )
    )


def chunk(data: bytes) -> bytes:
    """A part of a stream (RFC 9112, 7.1); not an empty one, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _total_line(exchange: Exchange) -> bytes:
    """How long an answer took, or a stream to begin, that did not ride in a batch; inference says more."""
    return b"Server-Timing: total;dur=%.3f\r\n" % ((time.monotonic_ns() - exchange.received_ns) / 1e6)


def _connection_line(keep_alive: bool) -> bytes:
    """Said when the connection ends, or to a client that spoke of it (HTTP/1.0 must be told to stay)."""
    return b"Connection: keep-alive\r\n" if keep_alive else b"Connection: close\r\n"
