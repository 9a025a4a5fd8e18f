"""HTTP/1.1 on a socket: bytes to exchanges and back, for clients of every temper.

Keeps order, limits and time: pipelined requests are answered in order, every wait and backlog is bounded, and whatever
is over its bound is told so before the connection ends. How bytes become requests belongs to `server.http1_reader`,
what an answer's bytes are to `server.http1_answer`, what a request means to `server.app`.

We own this loop because frameworks cost two to fifty times the request itself (docs/decisions/0001).
"""

import asyncio
import logging
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from farthing.server.client_gone import ReadingPace, abort_if_reset
from farthing.server.exchange import Exchange, Successor
from farthing.server.http1_answer import LAST_CHUNK, PROCESSING, chunk, stream_head, whole_answer
from farthing.server.http1_reader import BODY, HEAD, IDLE, LINGERING, RequestReader
from farthing.telemetry.counters import RejectReason, reject_reason
from farthing.types.errors import FarthingError, InvalidInput

LINGER_S: Final = 2.0
"""How long an errant client may go on sending after we said goodbye, so that it can read why (a closed socket with
unread bytes sends a reset, and the answer is lost)."""
LINGER_BYTES_MAX: Final = 16 << 20

if TYPE_CHECKING:
    from farthing.server.listener import Listener

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One client. Keeps its requests in order and its answers flowing."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._limits = listener.limits
        self._counters = listener.counters
        self._admission = listener.admission
        self._app = listener.app
        self.transport: asyncio.Transport | None = None
        self.is_last = False
        self.successor: Successor | None = None
        self._reader = RequestReader(self, listener)
        self._pace = ReadingPace(listener.limits)
        self._linger_bytes = 0
        # requests being answered
        self._current: Exchange | None = None
        self._pending: deque[Exchange] = deque()
        self._is_advancing = False
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._has_sent_eof = False
        self._is_chunked = False

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        listener = self._listener
        listener.join(self)
        self._reader.await_next()
        full = listener.full_error()
        if full is not None:
            self._reader.phase = HEAD  # its request is on the way
            self.refuse(full, RejectReason.CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.leave(self)
        self.transport = None
        self._forget_requests()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read (half-closed), or be gone: both look alike from here."""
        transport = self.transport
        if transport is None or (self._current is None and not self._pending):
            return False
        if transport.get_extra_info("sslcontext") is not None or self._reader.phase == LINGERING:
            return False
        self._has_sent_eof = True
        self.is_last = True
        # An interim answer (RFC 9110, 15.2) draws a reset from a client that has gone; one that still listens
        # skips it, unless it speaks HTTP/1.0. The reset shows in the socket's state a round trip later.
        if self._current is not None and self._current.is_streaming:
            self.write(self._current, self._current.probe)
        elif self._current is not None and not self._reader.is_http_1_0():
            transport.write(PROCESSING)
        abort_if_reset(transport, self._is_awaited)
        return True

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        if self.transport is not None:
            self._pace.expect(self.transport, self._listener.now_s)
        self._pause_reading()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._pace.kept_up()
        if self._current is None:
            self._reader.await_next()
        if self._current is not None and self._current.on_room is not None:
            self._current.on_room()
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._counters.bytes_received += len(data)
        if not self.is_last:
            self._reader.feed(data)
        elif self._reader.phase == LINGERING:
            self._linger_bytes += len(data)
            if self._linger_bytes > LINGER_BYTES_MAX:
                self.abort()

    # -- requests ------------------------------------------------------------------------------------------------

    def accept(self, exchange: Exchange) -> None:
        """A request is whole: it is answered now, or after those before it. Called by the reader alone."""
        if self._current is None and not self._is_writing_paused:
            self._start(exchange)
        else:
            self._pending.append(exchange)
            if len(self._pending) >= self._limits.pipeline_max:
                self._pause_reading()

    def end_after_pending(self) -> None:
        """What follows the requests so far is not HTTP; called by the reader alone."""
        if self._pending:
            self._pending[-1].keep_alive = False
            self.is_last = True
        else:
            self._finish()

    def count_body(self, exchange: Exchange, size: int) -> None:
        """Counts more bytes that a request holds until it is answered; called by `Exchange.replace_body` alone."""
        self._admission.take_bytes(size)
        exchange.body_bytes += size

    # -- answers -------------------------------------------------------------------------------------------------

    def send(
        self, exchange: Exchange, status: int, body: bytes | list[Any], content_type: bytes, headers: bytes
    ) -> None:
        """Writes one answer and goes on to the next request; called by `Exchange.respond` alone."""
        transport = self.transport
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
        date = self._listener.date
        head = whole_answer(exchange, status, whole, size, content_type, headers, date=date, keep_alive=keep_alive)
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
        """Sends a whole answer and gives the socket away; called by `Exchange.switch` alone. The connection is still
        counted, swept and drained here, through its successor."""
        transport = self.transport
        if transport is None:
            return False
        if self._pending or self._reader.phase != IDLE:
            raise InvalidInput("more was sent behind a request for another protocol", hint="wait for its answer")
        self._counters.answered(exchange.route, HTTPStatus.SWITCHING_PROTOCOLS.value)
        self._counters.requests_in_flight -= 1
        self._counters.bytes_sent += len(answer)
        self._admission.give_bytes(exchange.body_bytes)
        self._current = None
        self.is_last = True
        self._reader.leave()
        self.successor = successor
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
        transport = self.transport
        if transport is None:
            return
        self._is_chunked = not self._reader.is_http_1_0()
        if not self._is_chunked or (self._listener.is_draining and not self._pending):
            exchange.keep_alive = False
        head = stream_head(exchange, content_type, headers, date=self._listener.date, is_chunked=self._is_chunked)
        self._counters.answered(exchange.route, HTTPStatus.OK.value)
        self._counters.bytes_sent += len(head)
        transport.write(head)

    def write(self, exchange: Exchange, data: bytes) -> None:
        """Writes a part of a streamed answer, or ends the connection of a client that leaves too much unread: whoever
        makes the parts never waits for whoever reads them. Called by `Exchange.write` alone."""
        transport = self.transport
        if transport is None or not data:
            return
        if self._is_chunked:
            data = chunk(data)
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
        transport = self.transport
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
        self._reader.await_next()
        if self._pending or self._is_reading_paused:
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
            if self.transport is not None and not self._has_sent_eof:
                self.transport.resume_reading()
                self._reader.grant_time()

    # -- ends ----------------------------------------------------------------------------------------------------

    def check_time(self, now_s: float) -> None:
        """Ends the connection if the client is out of time."""
        if self._pace.is_too_slow(self.transport, now_s):
            self._counters.rejected[RejectReason.SLOW] += 1
            self.abort()
            return
        if self.successor is not None:
            self.successor.check_time(now_s)
            return
        reader = self._reader
        if self._is_reading_paused or not reader.is_out_of_time(now_s):
            return
        if reader.phase == LINGERING:
            self.abort()
        elif reader.phase == IDLE:
            self.end_if_idle()
        else:
            self.refuse(reader.time_error())

    @property
    def is_busy(self) -> bool:
        """A request was accepted here and is not answered yet."""
        if self.successor is not None:
            return self.successor.is_busy
        return self._current is not None or bool(self._pending)

    @property
    def now_s(self) -> float:
        """Coarse time."""
        return self._listener.now_s

    def end_if_idle(self) -> None:
        """Ends the connection unless a request is under way or arriving."""
        if self.successor is not None:
            self.successor.drain()
        elif self._current is None and self._reader.phase == IDLE:
            self._close()

    def abort(self) -> None:
        """Ends the connection without a word."""
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, error: FarthingError, reason: RejectReason | None = None) -> None:
        """Answers what is not (yet) a request, after everything before it, and ends the connection."""
        if self.is_last:
            return  # what follows the last request is of no interest
        self.is_last = True
        self._reader.give_up()
        self._counters.rejected[reason or reject_reason(error)] += 1
        exchange = Exchange(self, b"GET", self._reader.url, {})  # whose path tells how its errors look
        exchange.received_ns = time.monotonic_ns()
        exchange.keep_alive = False
        exchange.refusal = error
        if self._current is None and not self._pending:
            self._start(exchange)
        else:
            self._pending.append(exchange)  # requests before the broken one still get their answers

    def _finish(self) -> None:
        """Says goodbye: closes once the answer is written, and reads on for a while if the client may still send."""
        transport = self.transport
        self.is_last = True
        self._forget_requests()
        if transport is None:
            return
        # A client that asked to keep the connection, and hears from us that it ends, may have sent the next request.
        is_client_sending = self._reader.phase in (HEAD, BODY) or self._listener.is_draining
        if not is_client_sending or not transport.can_write_eof() or self._has_sent_eof:
            self._close()
            return
        self._reader.phase = LINGERING
        self._linger_bytes = 0
        self._reader.deadline_s = self._listener.now_s + LINGER_S
        transport.write_eof()
        if self._is_reading_paused:
            self._is_reading_paused = False
            transport.resume_reading()

    def _close(self) -> None:
        """Ends the connection once what was written is sent, or the client has not read it for too long."""
        if self.transport is not None and not self.transport.is_closing():
            self._pace.expect(self.transport, self._listener.now_s)
            self.transport.close()

    def _forget_requests(self) -> None:
        taken = self._reader.forget()
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

    def _is_awaited(self) -> bool:
        """Whether the client, if it is still there, is owed an answer."""
        return self.transport is not None and (self._current is not None or bool(self._pending))

    def _pause_reading(self) -> None:
        if not self._is_reading_paused and self.transport is not None and not self._has_sent_eof:
            self._is_reading_paused = True
            self.transport.pause_reading()
