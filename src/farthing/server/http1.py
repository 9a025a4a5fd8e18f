"""HTTP/1.1 on a socket: bytes to exchanges and back, for clients of every temper.

httptools (llhttp) parses; this file keeps order, limits and time: pipelined requests are answered in order, every
head, body, wait and backlog is bounded, and whatever is over its bound is told so before the connection ends.
What a request means belongs to `server.app`.

We own this loop because frameworks cost two to fifty times the request itself (docs/decisions/0001).
"""

import asyncio
import logging
import re
import socket
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from farthing.server.exchange import Exchange, Successor
from farthing.server.large_body import LARGE_BYTES, HeadReader, LargeBodyReader, room_for
from farthing.telemetry.counters import RejectReason
from farthing.types.errors import (
    FarthingError,
    HeadersTooLarge,
    InvalidInput,
    Overloaded,
    RequestTimeout,
    TooLarge,
    Unavailable,
)

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
LAST_CHUNK: Final = b"0\r\n\r\n"
HEAD_BYTES: Final = re.compile(rb"[0-9]{1,10}")
"""A length of the JSON before the tensors that can be true; whether it is one belongs to the protocol."""
TIMING: Final = b"Server-Timing:"
NO_VERSION: Final = "0.0"
"""What a parser says that has not read a request line."""
LINGER_S: Final = 2.0
"""How long an errant client may go on sending after we said goodbye, so that it can read why (a closed socket with
unread bytes sends a reset, and the answer is lost)."""
LINGER_BYTES_MAX: Final = 16 << 20
UPGRADES_MAX: Final = 8
"""Wishes for another protocol that are declined on one connection; clients that have them (curl, Java's) ask once."""
STATE_CLOSED: Final = 7
"""`TCP_CLOSE` in the first byte of Linux's tcp_info: the peer answered with a reset."""
GONE_CHECKS_S: Final = (0.005, 0.05, 0.25, 1.0)
"""When to look whether a client that closed its sending side has gone: a reset takes one round trip."""

if TYPE_CHECKING:
    from farthing.server.listener import Listener

log = logging.getLogger(__name__)


class _NoMoreRequests(Exception):
    """Ends the parsing of bytes that follow the last request of a connection."""


IDLE, HEAD, BODY, LINGERING, SWITCHED = range(5)


class Connection(asyncio.Protocol):
    """One client. Parses its bytes, keeps its requests in order and its answers flowing."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._limits = listener.limits
        self._counters = listener.counters
        self._admission = listener.admission
        self._app = listener.app
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._phase = IDLE
        self._deadline_s = 0.0
        """When the client must have sent what it owes, or is idle for too long; 0 while it owes nothing."""
        self._write_deadline_s = 0.0
        """When the client must have read more of its answer; 0 while it keeps up."""
        self._unsent_bytes = 0
        # the request being read
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_bytes = 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._large: memoryview | None = None
        self._head_reader: HeadReader | None = None
        """Where a large body is received."""
        self._version_before = ""
        self._is_upgrade = False
        self._upgrades = 0
        self._wish: dict[bytes, bytes] | None = None
        """The headers of a request that wants to go on in WebSocket."""
        self._successor: Successor | None = None
        """Who has the socket now, if it was granted."""
        # requests being answered
        self._current: Exchange | None = None
        self._pending: deque[Exchange] = deque()
        self._is_advancing = False
        self._is_last = False  # no further request will be read
        self._is_late = False  # the request being read began when the server was stopping
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._has_sent_eof = False
        self._is_chunked = False

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        listener = self._listener
        self._counters.connections_total += 1
        self._counters.connections_open += 1
        listener.connections.add(self)
        listener.empty.clear()
        self._deadline_s = listener.now_s + self._limits.idle_timeout_s
        if len(listener.connections) > self._limits.connections_max:
            self._phase = HEAD  # its request is on the way
            self._refuse(
                Overloaded(
                    f"the server has {self._limits.connections_max} connections open, its limit",
                    hint="reuse connections (keep-alive), or come back later",
                    retry_after_s=1,
                ),
                RejectReason.CONNECTIONS,
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._counters.connections_open -= 1
        self._listener.connections.discard(self)
        if not self._listener.connections:
            self._listener.empty.set()
        self._transport = None
        self._forget_requests()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read (half-closed), or be gone: both look alike from here."""
        transport = self._transport
        if transport is None or (self._current is None and not self._pending):
            return False
        if transport.get_extra_info("sslcontext") is not None or self._phase == LINGERING:
            return False
        self._has_sent_eof = True
        self._is_last = True
        # An interim answer (RFC 9110, 15.2) draws a reset from a client that has gone; one that still listens
        # skips it, unless it speaks HTTP/1.0. The reset shows in the socket's state a round trip later.
        if self._current is not None and self._current.is_streaming:
            self.write(self._current, self._current.probe)
        elif self._current is not None and not self._is_http_1_0():
            transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        self._look_for_reset(0)
        return True

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        self._expect_reading()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._write_deadline_s = 0.0
        if self._phase == IDLE and self._current is None:
            self._deadline_s = self._listener.now_s + self._limits.idle_timeout_s
        if self._current is not None and self._current.on_room is not None:
            self._current.on_room()
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._counters.bytes_received += len(data)
        if self._phase == LINGERING:
            self._head_bytes += len(data)
            if self._head_bytes > LINGER_BYTES_MAX:
                self.abort()
            return
        if self._is_last:
            return
        headers = self._headers
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as wrapped:
            cause = wrapped.__context__
            if isinstance(cause, _NoMoreRequests):
                return
            if not isinstance(cause, FarthingError):
                log.error("handling a request failed", exc_info=cause)
                self.abort()
                return
            self._refuse(cause)
        except httptools.HttpParserError as wrong:
            self._refuse(
                InvalidInput(f"this is not HTTP/1.1: {wrong}", hint="check the scheme (http or https) and the port")
            )
        else:
            if self._large is not None:
                self._read_large_body(self._large)
            elif self._head_reader is not None and self._phase != HEAD:
                self._read_as_usual()
            elif self._phase == HEAD and self._headers is headers:
                # No request began in these bytes, and no callback runs inside one enormous header line.
                self._head_bytes += len(data)
                if self._head_bytes > 2 * self._limits.head_bytes_max:
                    self._refuse(self._head_error())

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_last:
            raise _NoMoreRequests
        self._phase = HEAD
        self._is_late = self._listener.is_stopping
        self._deadline_s = self._listener.now_s + self._limits.head_timeout_s
        self._url = b""
        self._headers = {}
        self._header_count = 0
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        self._head_bytes += len(url)
        if self._head_bytes > self._limits.head_bytes_max:
            raise self._head_error()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase != HEAD:
            return  # a trailer: allowed by RFC 9112, and of no use here
        name = name.lower()
        headers = self._headers
        headers[name] = value if name not in headers else headers[name] + b", " + value
        self._header_count += 1
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._limits.head_bytes_max or self._header_count > self._limits.headers_max:
            raise self._head_error()

    def on_headers_complete(self) -> None:
        self._phase = BODY
        self._deadline_s = self._listener.now_s + self._limits.body_timeout_s
        headers = self._headers
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            raise InvalidInput(
                "this HTTP/1.1 request has no Host header", hint="RFC 9112, 3.2: every request names its host"
            )
        length = headers.get(b"content-length")
        if length is not None:
            size = int(length)
            if size > self._limits.body_bytes_max:
                raise self._body_error(size)
            if size >= LARGE_BYTES:
                self._expect_large_body(size)
        if b"upgrade" in headers and self._parser.should_upgrade():
            self._is_upgrade = True
            return
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._admission.take_bytes(len(body))
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes_max:
            raise self._body_error(self._body_bytes)
        if self._large is not None:
            self._large[self._body_bytes - len(body) : self._body_bytes] = body
        elif not self._body:
            self._body = body
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._phase = IDLE
        self._deadline_s = 0.0
        parser = self._parser
        path, query = self._url, b""
        if b"?" in path:
            path, _, query = path.partition(b"?")
        exchange = Exchange(self, parser.get_method(), path, self._headers)
        exchange.query = query
        exchange.wish, self._wish = self._wish, None
        exchange.received_ns = time.monotonic_ns()
        body = self._body
        exchange.body = self._large or (body if isinstance(body, bytes) else memoryview(body))
        exchange.body_bytes = self._body_bytes
        self._body = b""
        self._body_bytes = 0
        self._large = None
        if not parser.should_keep_alive():
            exchange.keep_alive = False
            self._is_last = True
        if self._is_late:  # else a client that sends one request behind the other could hold up the end
            exchange.refusal = Unavailable("Server is stopping", retry_after_s=1)
        if self._current is None and not self._is_writing_paused:
            self._start(exchange)
        else:
            self._pending.append(exchange)
            if len(self._pending) >= self._limits.pipeline_max:
                self._pause_reading()

    # -- large bodies --------------------------------------------------------------------------------------------

    def _expect_large_body(self, size: int) -> None:
        transport = self._transport
        if transport is not None and transport.get_extra_info("sslcontext") is None:
            head_bytes = self._headers.get(b"inference-header-content-length", b"")
            self._large = room_for(size, int(head_bytes) if HEAD_BYTES.fullmatch(head_bytes) else 0)

    def _read_large_body(self, room: memoryview) -> None:
        """Lets the rest of the body come straight into its memory."""
        if self._transport is not None and not self._is_last:
            self._transport.set_protocol(LargeBodyReader(self, room[self._body_bytes :]))

    def _read_as_usual(self) -> None:
        """After a large body came a request without one."""
        self._head_reader = None
        if self._transport is not None:
            self._transport.set_protocol(self)

    def body_received(self, size: int) -> None:
        """More of a large body is in place; called by `LargeBodyReader` alone."""
        self._counters.bytes_received += size
        self._body_bytes += size
        try:
            self._admission.take_bytes(size)
        except FarthingError as full:
            self._refuse(full)

    def body_complete(self) -> None:
        """A large body is whole; called by `LargeBodyReader` alone."""
        if self._transport is None or self._large is None:
            return
        if self._head_reader is None:
            self._head_reader = HeadReader(self)
        self._transport.set_protocol(self._head_reader)
        self._version_before = self._parser.get_http_version()
        self.on_message_complete()
        self._parser = httptools.HttpRequestParser(self)  # the old one still waits for that body

    def _is_http_1_0(self) -> bool:
        version = self._parser.get_http_version()
        return (version if version != NO_VERSION else self._version_before) == "1.0"

    def count_body(self, exchange: Exchange, size: int) -> None:
        """Counts more bytes that a request holds until it is answered; called by `Exchange.replace_body` alone."""
        self._admission.take_bytes(size)
        exchange.body_bytes += size

    # -- answers -------------------------------------------------------------------------------------------------

    def send(
        self, exchange: Exchange, status: int, body: bytes | list[Any], content_type: bytes, headers: bytes
    ) -> None:
        """Writes one answer and goes on to the next request; called by `Exchange.respond` alone."""
        transport = self._transport
        if transport is None:
            return
        counters = self._counters
        counters.answered(exchange.route, status)
        counters.requests_in_flight -= 1
        self._admission.give_bytes(exchange.body_bytes)
        buffers: list[Any] = []
        whole = b""
        if isinstance(body, bytes):
            size = len(body)
            whole = body
        else:
            size = sum([memoryview(part).nbytes for part in body])
            buffers = body
        if exchange.method == b"HEAD":
            whole, buffers = b"", []
        keep_alive = exchange.keep_alive and (bool(self._pending) or not self._listener.is_draining)
        head = b"".join(
            (
                STATUS_LINES[status],
                self._listener.date,
                exchange.reply_headers,
                headers,
                b"" if TIMING in headers else _total_line(exchange),
                b"" if keep_alive and b"connection" not in exchange.headers else _connection_line(keep_alive),
                b"Content-Type: " + content_type + b"\r\n" if size else b"",
                b"Content-Length: %d\r\n\r\n" % size,
                whole,
            )
        )
        counters.bytes_sent += len(head)
        if buffers:
            counters.bytes_sent += size
            transport.writelines([head, *buffers])
        else:
            transport.write(head)
        if exchange.on_end is not None:
            exchange.on_end(status)
        self._go_on(keep_alive)

    def switch(self, exchange: Exchange, answer: bytes, successor: Successor) -> bool:
        """Sends a whole answer and gives the socket away; called by `Exchange.switch` alone.

        The connection is still counted, swept and drained here, through its successor.
        """
        transport = self._transport
        if transport is None:
            return False
        if self._pending or self._phase != IDLE:
            raise InvalidInput("more was sent behind a request for another protocol", hint="wait for its answer")
        self._counters.answered(exchange.route, HTTPStatus.SWITCHING_PROTOCOLS.value)
        self._counters.requests_in_flight -= 1
        self._counters.bytes_sent += len(answer)
        self._admission.give_bytes(exchange.body_bytes)
        self._current = None
        self._is_last = True
        self._phase = SWITCHED
        self._deadline_s = 0.0
        self._successor = successor
        self._head_reader = None
        transport.write(answer)
        if exchange.on_end is not None:
            exchange.on_end(HTTPStatus.SWITCHING_PROTOCOLS.value)
        successor.begin(self, transport)
        transport.set_protocol(cast("asyncio.BaseProtocol", successor))
        return True

    def begin(self, exchange: Exchange, content_type: bytes, headers: bytes) -> None:
        """Writes the head of a streamed answer; called by `Exchange.begin` alone.

        HTTP/1.1 gets chunks (RFC 9112, 7.1); to HTTP/1.0 the end of the connection is the end of the answer.
        """
        transport = self._transport
        if transport is None:
            return
        self._is_chunked = not self._is_http_1_0()
        if not self._is_chunked or (self._listener.is_draining and not self._pending):
            exchange.keep_alive = False
        keep_alive = exchange.keep_alive
        head = b"".join(
            (
                STATUS_LINES[HTTPStatus.OK],
                self._listener.date,
                exchange.reply_headers,
                headers,
                b"" if TIMING in headers else _total_line(exchange),
                b"" if keep_alive and b"connection" not in exchange.headers else _connection_line(keep_alive),
                b"Content-Type: " + content_type + b"\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n" if self._is_chunked else b"\r\n",
            )
        )
        self._counters.answered(exchange.route, HTTPStatus.OK.value)
        self._counters.bytes_sent += len(head)
        transport.write(head)

    def write(self, exchange: Exchange, data: bytes) -> None:
        """Writes a part of a streamed answer, or ends the connection of a client that leaves too much unread.

        Called by `Exchange.write` alone. Whoever makes the parts never waits for whoever reads them.
        """
        transport = self._transport
        if transport is None or not data:
            return
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._counters.bytes_sent += len(data)
        transport.write(data)
        if exchange.is_paced:
            return  # its maker waits until there is room again
        if transport.get_write_buffer_size() > self._limits.stream_unread_bytes_max:
            self._counters.rejected[RejectReason.SLOW] += 1
            transport.abort()
            self._forget_requests()  # now, not when the loop comes round to it: what it asked for need not go on

    def is_backed_up(self) -> bool:
        """Whether the client should read what it was sent before it is sent more."""
        return self._is_writing_paused

    def end(self, exchange: Exchange) -> None:
        """Ends a streamed answer and goes on to the next request; called by `Exchange.end` alone."""
        transport = self._transport
        if transport is None:
            return
        if self._is_chunked:
            self._counters.bytes_sent += len(LAST_CHUNK)
            transport.write(LAST_CHUNK)
        self._counters.requests_in_flight -= 1
        self._admission.give_bytes(exchange.body_bytes)
        if exchange.on_end is not None:
            exchange.on_end(HTTPStatus.OK.value)
        self._go_on(exchange.keep_alive and (bool(self._pending) or not self._listener.is_draining))

    def _go_on(self, keep_alive: bool) -> None:
        """What follows an answer: the next request, an idle connection, or its end."""
        self._current = None
        if not keep_alive or (self._has_sent_eof and not self._pending):
            self._finish()
            return
        if self._phase == IDLE:
            self._deadline_s = self._listener.now_s + self._limits.idle_timeout_s
        self._advance()

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        self._counters.requests_in_flight += 1
        if exchange.refusal is not None:
            exchange.fail(exchange.refusal)
            return
        try:
            self._app.handle(exchange)
        except FarthingError as error:
            exchange.fail(error)
        except Exception:
            log.exception("answering %s %s failed", exchange.method.decode(), exchange.path.decode("latin-1"))
            exchange.fail(FarthingError("the server failed to answer this request", hint="its log says why"))

    def _advance(self) -> None:
        """Starts requests that wait behind the one just answered; a loop, since answers may come at once."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._current is None and self._pending and not self._is_writing_paused:
                self._start(self._pending.popleft())
        finally:
            self._is_advancing = False
        if self._is_reading_paused and not self._is_writing_paused and len(self._pending) < self._limits.pipeline_max:
            self._is_reading_paused = False
            if self._transport is not None and not self._has_sent_eof:
                self._transport.resume_reading()
                if self._phase in (HEAD, BODY):  # it could not send on while we did not read
                    limits = self._limits
                    self._deadline_s = self._listener.now_s + (
                        limits.head_timeout_s if self._phase == HEAD else limits.body_timeout_s
                    )

    # -- ends ----------------------------------------------------------------------------------------------------

    def check_time(self, now_s: float) -> None:
        """Ends the connection if the client is out of time."""
        if self._write_deadline_s and now_s >= self._write_deadline_s and not self._has_read_more():
            self._counters.rejected[RejectReason.SLOW] += 1
            self.abort()
            return
        if self._successor is not None:
            self._successor.check_time(now_s)
            return
        limits = self._limits
        deadline_s = self._deadline_s
        if not deadline_s or self._is_reading_paused:
            return
        if self._phase == BODY:
            deadline_s += self._body_bytes / limits.body_bytes_per_s_min
        if now_s < deadline_s:
            return
        if self._phase == LINGERING:
            self.abort()
        elif self._phase == IDLE:
            self.end_if_idle()
        else:
            part, limit = ("headers", limits.head_timeout_s) if self._phase == HEAD else ("body", limits.body_timeout_s)
            self._refuse(
                RequestTimeout(f"the request's {part} did not arrive within {limit:g} s", hint="send it in one go")
            )

    @property
    def is_busy(self) -> bool:
        """A request was accepted here and is not answered yet."""
        if self._successor is not None:
            return self._successor.is_busy
        return self._current is not None or bool(self._pending)

    @property
    def now_s(self) -> float:
        """Coarse time."""
        return self._listener.now_s

    def end_if_idle(self) -> None:
        """Ends the connection unless a request is under way or arriving."""
        if self._successor is not None:
            self._successor.drain()
        elif self._current is None and self._phase == IDLE:
            self._close()

    def abort(self) -> None:
        """Ends the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, error: FarthingError, reason: RejectReason | None = None) -> None:
        """Answers what is not (yet) a request, after everything before it, and ends the connection."""
        if self._is_last:
            return  # what follows the last request is of no interest
        self._is_last = True
        if self._large is not None:
            self._large = None
            if self._transport is not None:
                self._transport.set_protocol(self)
        self._counters.rejected[reason or _reject_reason(error)] += 1
        exchange = Exchange(self, b"GET", self._url, {})  # whose path tells how its errors look
        exchange.received_ns = time.monotonic_ns()
        exchange.keep_alive = False
        exchange.refusal = error
        if self._current is None and not self._pending:
            self._start(exchange)
        else:
            self._pending.append(exchange)  # requests before the broken one still get their answers

    def _finish(self) -> None:
        """Says goodbye: closes once the answer is written, and reads on for a while if the client may still send."""
        transport = self._transport
        self._is_last = True
        self._forget_requests()
        if transport is None:
            return
        # A client that asked to keep the connection, and hears from us that it ends, may have sent the next request.
        is_client_sending = self._phase in (HEAD, BODY) or self._listener.is_draining
        if not is_client_sending or not transport.can_write_eof() or self._has_sent_eof:
            self._close()
            return
        self._phase = LINGERING
        self._head_bytes = 0
        self._deadline_s = self._listener.now_s + LINGER_S
        transport.write_eof()
        if self._is_reading_paused:
            self._is_reading_paused = False
            transport.resume_reading()

    def _close(self) -> None:
        """Ends the connection once what was written is sent, or the client has not read it for too long."""
        if self._transport is not None and not self._transport.is_closing():
            self._expect_reading()
            self._transport.close()

    def _expect_reading(self) -> None:
        if self._transport is not None:
            self._unsent_bytes = self._transport.get_write_buffer_size()
            self._write_deadline_s = self._listener.now_s + self._limits.write_timeout_s

    def _has_read_more(self) -> bool:
        """Whether the client read at a bearable pace since the last look; then it has as long again."""
        before, limits = self._unsent_bytes, self._limits
        self._expect_reading()
        return before - self._unsent_bytes >= limits.body_bytes_per_s_min * limits.write_timeout_s

    def _upgrade(self, rest: bytes) -> None:
        """Reads the request again without its wish, then what follows it (RFC 9110, 7.8).

        One for WebSocket is kept, and granted or not by whoever answers; all others are declined.
        """
        parser = self._parser
        if not self._is_upgrade:  # CONNECT: answered like any unknown path; what follows is not HTTP
            if self._pending:
                self._pending[-1].keep_alive = False
                self._is_last = True
            else:
                self._finish()
            return
        self._is_upgrade = False
        self._upgrades += 1
        if self._upgrades > UPGRADES_MAX:
            self._refuse(InvalidInput("this server speaks HTTP/1.1 only", hint="leave out the Upgrade header"))
            return
        is_websocket = self._headers[b"upgrade"].lower() == b"websocket" and parser.get_http_version() == "1.1"
        self._wish = self._headers if is_websocket else None
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        for name, value in self._headers.items():
            if name == b"connection":
                tokens = [token.strip() for token in value.lower().split(b",")]
                value = b", ".join(token for token in tokens if token in (b"close", b"keep-alive"))  # noqa: PLW2901
            if name != b"upgrade" and value:
                lines.append(name + b": " + value)
        head = b"\r\n".join([*lines, b"", b""])
        self._parser = httptools.HttpRequestParser(self)
        self._counters.bytes_received -= len(head) + len(rest)
        self.data_received(head)
        if rest:
            (self._successor or self).data_received(rest)

    def _forget_requests(self) -> None:
        taken = self._body_bytes  # of a request that never became one
        self._body, self._body_bytes, self._large = b"", 0, None
        if self._current is not None:
            self._counters.requests_in_flight -= 1
            taken += self._current.body_bytes
            self._current.gone()
            self._current = None
        while self._pending:
            exchange = self._pending.popleft()
            taken += exchange.body_bytes
            exchange.gone()
        self._admission.give_bytes(taken)

    def _look_for_reset(self, attempt: int) -> None:
        transport = self._transport
        if transport is None or (self._current is None and not self._pending):
            return
        if attempt and _is_reset(transport):
            transport.abort()
            return
        if attempt < len(GONE_CHECKS_S):
            asyncio.get_running_loop().call_later(GONE_CHECKS_S[attempt], self._look_for_reset, attempt + 1)

    def _pause_reading(self) -> None:
        if not self._is_reading_paused and self._transport is not None and not self._has_sent_eof:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def _head_error(self) -> FarthingError:
        limits = self._limits
        return HeadersTooLarge(
            f"request line and headers exceed {limits.head_bytes_max} bytes or {limits.headers_max} headers"
        )

    def _body_error(self, size: int) -> FarthingError:
        return TooLarge(
            f"request body of {size} bytes or more exceeds the maximum allowed {self._limits.body_bytes_max} bytes",
            hint="send fewer rows a request, or raise --http-max-input-size",
        )


def _total_line(exchange: Exchange) -> bytes:
    """How long an answer took, or a stream to begin, that did not ride in a batch; inference says more."""
    return b"Server-Timing: total;dur=%.3f\r\n" % ((time.monotonic_ns() - exchange.received_ns) / 1e6)


def _connection_line(keep_alive: bool) -> bytes:
    """Said when the connection ends, or to a client that spoke of it (HTTP/1.0 must be told to stay)."""
    return b"Connection: keep-alive\r\n" if keep_alive else b"Connection: close\r\n"


def _reject_reason(error: FarthingError) -> RejectReason:
    if isinstance(error, RequestTimeout):
        return RejectReason.SLOW
    if isinstance(error, HeadersTooLarge | TooLarge):
        return RejectReason.TOO_LARGE
    return RejectReason.OVERLOADED if isinstance(error, Overloaded) else RejectReason.MALFORMED


def _is_reset(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == STATE_CLOSED)
    except OSError:
        return True
