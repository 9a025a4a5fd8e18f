"""One connection's bytes to exchanges, request after request: heads, bodies, and their limits.

httptools (llhttp) parses; nothing of HTTP's grammar is ours. This file keeps the bounds of a head and of a body, lets
large bodies come straight into their memory, and reads a request again without a wish that is not granted. Heads that
were read before are found in `server.known_heads`. Which request is answered when, and what becomes of the connection,
belongs to `server.http1`.
"""

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

from farthing.server.exchange import Exchange, Sender, Successor
from farthing.server.http1_answer import CONTINUE
from farthing.server.known_heads import LUCK_MAX, KnownHead
from farthing.server.large_body import LARGE_BYTES, Receiver, room_for
from farthing.types.errors import FarthingError, HeadersTooLarge, InvalidInput, RequestTimeout, TooLarge, Unavailable

if TYPE_CHECKING:
    from farthing.server.listener import Listener

HEAD_BYTES: Final = re.compile(rb"[0-9]{1,10}")
"""A length of the JSON before the tensors that can be true; whether it is one belongs to the protocol."""
UPGRADES_MAX: Final = 8
"""Wishes for another protocol that are declined on one connection; clients that have them (curl, Java's) ask once."""

IDLE, HEAD, BODY, LINGERING, SWITCHED = range(5)
"""What a client is doing: nothing, sending a head, sending a body; or our part of reading has ended."""

log = logging.getLogger(__name__)


class Taker(Sender, Protocol):
    """The connection, as its reader needs it."""

    transport: asyncio.Transport | None
    is_last: bool
    """No further request will be read."""
    successor: Successor | None
    """Who has the socket now, if it was granted."""

    def accept(self, exchange: Exchange) -> None:
        """A request is whole."""

    def refuse(self, error: FarthingError) -> None:
        """What came is no request, or none to be answered; nothing more will be read."""

    def end_after_pending(self) -> None:
        """What follows the requests so far is not HTTP."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class _NoMoreRequests(Exception):
    """Ends the parsing of bytes that follow the last request of a connection."""


class RequestReader:
    """Reads the requests of one connection and hands them over whole."""

    def __init__(self, taker: Taker, listener: "Listener") -> None:
        self._taker = taker
        self._listener = listener
        self._limits = listener.limits
        self._counters = listener.counters
        self._admission = listener.admission
        self._parser = httptools.HttpRequestParser(self)
        self.phase = IDLE
        self.deadline_s = 0.0
        """When the client must have sent what it owes, or is idle for too long; 0 while it owes nothing."""
        # the request being read
        self.url = b""
        self.body_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_bytes = 0
        self._begun = 0  # requests, on this connection
        self._body: bytes | bytearray = b""
        self._is_late = False  # it began when the server was stopping
        self._large: memoryview | None = None
        """Where a large body is received, and a byte more."""
        self._receiver: Receiver | None = None
        """Who has the socket, once a large body came."""
        self._version = ""
        """Of the last head that was read."""
        self._known_heads = listener.known_heads
        self._luck = LUCK_MAX
        """How many more heads may be unknown until none is looked up."""
        self._is_upgrade = False
        self._upgrades = 0
        self._wish: dict[bytes, bytes] | None = None
        """The headers of a request that wants to go on in WebSocket."""

    # -- bytes ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Parses what came. Whatever is wrong with it, or over its bound, is refused."""
        begun, was_idle = self._begun, self.phase == IDLE
        behind_wish: bytes | None = None
        try:
            if was_idle and self._luck and self._take_known(data):
                return
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            behind_wish = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as wrapped:
            cause = wrapped.__context__
            if isinstance(cause, _NoMoreRequests):
                return
            if not isinstance(cause, FarthingError):
                log.error("handling a request failed", exc_info=cause)
                self._taker.abort()
                return
            self._taker.refuse(cause)
        except httptools.HttpParserError as wrong:
            self._taker.refuse(
                InvalidInput(f"this is not HTTP/1.1: {wrong}", hint="check the scheme (http or https) and the port")
            )
        except FarthingError as refused:  # a request whose head is known
            self._taker.refuse(refused)
        else:
            if was_idle and self.phase == IDLE and self._luck and self._begun == begun + 1 and self._receiver is None:
                self._learn(data)
            elif self._large is not None:
                self._receive_large_body(self._large)
            elif self._receiver is not None and self.phase != HEAD:
                self._read_as_usual()
            elif self.phase == HEAD and self._begun - begun <= was_idle:
                # All these bytes are one request's head, and no callback runs inside one enormous header line.
                self._head_bytes += len(data)
                if self._head_bytes > 2 * self._limits.head_bytes_max:
                    self._taker.refuse(self._head_error())
        if behind_wish is not None:  # not while the above is handled: errors of what follows would be taken for it
            self._upgrade(behind_wish)

    def give_up(self) -> None:
        """The request being read is refused: its body need not come."""
        if self._large is not None:
            self._large = None
            self._read_as_usual()

    def leave(self) -> None:
        """The socket goes to another protocol."""
        self.phase = SWITCHED
        self.deadline_s = 0.0
        self._receiver = None

    def forget(self) -> int:
        """Lets go of a request that will never become one; answers how many bytes of it were counted."""
        taken = self.body_bytes
        self._body, self.body_bytes, self._large = b"", 0, None
        return taken

    def is_http_1_0(self) -> bool:
        """Whether the client speaks the old version, as far as it has said."""
        return self._version == "1.0"

    def await_next(self) -> None:
        """The client owes nothing now, but may not be idle for ever."""
        if self.phase == IDLE:
            self.deadline_s = self._listener.now_s + self._limits.idle_timeout_s

    def grant_time(self) -> None:
        """The client could not send on while we did not read: it has as long again."""
        if self.phase in (HEAD, BODY):
            limits = self._limits
            self.deadline_s = self._listener.now_s + (
                limits.head_timeout_s if self.phase == HEAD else limits.body_timeout_s
            )

    def is_out_of_time(self, now_s: float) -> bool:
        """Whether the client should have sent by now what it owes, or is idle for too long."""
        deadline_s = self.deadline_s
        if deadline_s and self.phase == BODY:
            deadline_s += self.body_bytes / self._limits.body_bytes_per_s_min
        return 0 < deadline_s <= now_s

    def time_error(self) -> FarthingError:
        """What to tell a client that is out of time within a request."""
        limits, is_head = self._limits, self.phase == HEAD
        part, limit_s = ("headers", limits.head_timeout_s) if is_head else ("body", limits.body_timeout_s)
        return RequestTimeout(f"the request's {part} did not arrive within {limit_s:g} s", hint="send it in one go")

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._taker.is_last:
            raise _NoMoreRequests
        self.phase = HEAD
        self._is_late = self._listener.is_stopping
        self.deadline_s = self._listener.now_s + self._limits.head_timeout_s
        self.url = b""
        self._headers = {}
        self._header_count = 0
        self._head_bytes = 0
        self._begun += 1

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url if self.url else url
        self._head_bytes += len(url)
        if self._head_bytes > self._limits.head_bytes_max:
            raise self._head_error()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase != HEAD:
            return  # a trailer: allowed by RFC 9112, and of no use here
        name = name.lower()
        headers = self._headers
        headers[name] = value if name not in headers else headers[name] + b", " + value
        self._header_count += 1
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._limits.head_bytes_max or self._header_count > self._limits.headers_max:
            raise self._head_error()

    def on_headers_complete(self) -> None:
        self.phase = BODY
        self.deadline_s = self._listener.now_s + self._limits.body_timeout_s
        headers = self._headers
        self._version = self._parser.get_http_version()
        if b"host" not in headers and self._version == "1.1":
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
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            transport = self._taker.transport
            if transport is not None:
                transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._admission.take_bytes(len(body))
        self.body_bytes += len(body)
        if self.body_bytes > self._limits.body_bytes_max:
            raise self._body_error(self.body_bytes)
        if self._large is not None:
            self._large[self.body_bytes - len(body) : self.body_bytes] = body
        elif not self._body:
            self._body = body
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self.phase = IDLE
        self.deadline_s = 0.0
        parser = self._parser
        path, _, query = self.url.partition(b"?")
        exchange = Exchange(self._taker, parser.get_method(), path, self._headers)
        exchange.query = query
        exchange.wish, self._wish = self._wish, None
        exchange.received_ns = time.monotonic_ns()
        if self._large is not None:
            exchange.body = self._large[: self.body_bytes]
            self._large = None
        else:
            body = self._body
            exchange.body = body if isinstance(body, bytes) else memoryview(body)
            self._body = b""
        exchange.body_bytes = self.body_bytes
        self.body_bytes = 0
        if not parser.should_keep_alive():
            exchange.keep_alive = False
            self._taker.is_last = True
        if self._is_late:  # else a client that sends one request behind the other could hold up the end
            exchange.refusal = Unavailable("Server is stopping", retry_after_s=1)
        self._taker.accept(exchange)

    # -- heads that were read before -----------------------------------------------------------------------------

    def _take_known(self, data: bytes) -> bool:
        """Hands on a request that is these bytes and no others, if its head is known. Raises `Overloaded`."""
        known, start = self._known_heads.find(data)
        if known is None:
            self._luck -= 1
            return False
        size = known.body_bytes
        if len(data) != start + size or self._receiver is not None or self._listener.is_stopping:
            return False
        if self._luck < LUCK_MAX:
            self._luck += 1
        if size:
            self._admission.take_bytes(size)
        self.deadline_s = 0.0
        self._version = "1.1"
        exchange = Exchange(self._taker, known.method, known.path, known.headers)
        exchange.query = known.query
        exchange.received_ns = time.monotonic_ns()
        exchange.body = data[start:]
        exchange.body_bytes = size
        self._taker.accept(exchange)
        return True

    def _learn(self, data: bytes) -> None:
        """Remembers the head of the request that these bytes were."""
        if self._version != "1.1" or self._taker.is_last:
            return
        path, _, query = self.url.partition(b"?")
        headers = self._headers
        size = int(headers.get(b"content-length", 0))
        self._known_heads.learn(data, KnownHead(self._parser.get_method(), path, query, headers, size))

    # -- large bodies --------------------------------------------------------------------------------------------

    def _expect_large_body(self, size: int) -> None:
        transport = self._taker.transport
        if transport is not None and transport.get_extra_info("sslcontext") is None:
            head_bytes = self._headers.get(b"inference-header-content-length", b"")
            self._large = room_for(size, int(head_bytes) if HEAD_BYTES.fullmatch(head_bytes) else 0)

    def _receive_large_body(self, room: memoryview) -> None:
        """Lets the rest of the body come straight into its memory."""
        taker, at = self._taker, self.body_bytes
        if taker.transport is None or taker.is_last:
            return
        receiver = self._receiver
        if receiver is None:
            receiver = self._receiver = Receiver(taker, self)
            taker.transport.set_protocol(receiver)
        receiver.expect(room[at:], len(room) - 1 - at)

    def _read_as_usual(self) -> None:
        """After a large body came a request without one, or none that is wanted."""
        if self._receiver is not None:
            self._receiver = None
            if self._taker.transport is not None:
                self._taker.transport.set_protocol(cast("asyncio.BaseProtocol", self._taker))

    def body_received(self, size: int) -> None:
        """More of a large body is in place; called by `Receiver` alone."""
        self._counters.bytes_received += size
        try:
            self._admission.take_bytes(size)
        except FarthingError as full:
            self._taker.refuse(full)
        else:  # what was not counted must not be given back
            self.body_bytes += size

    def body_complete(self) -> None:
        """A large body is whole; called by `Receiver` alone."""
        if self._taker.transport is None or self._large is None:
            return
        self.on_message_complete()
        self._parser = httptools.HttpRequestParser(self)  # the old one still waits for that body

    # -- wishes for another protocol -----------------------------------------------------------------------------

    def _upgrade(self, rest: bytes) -> None:
        """Reads the request again without its wish, then what follows it (RFC 9110, 7.8).

        One for WebSocket is kept, and granted or not by whoever answers; all others are declined.
        """
        parser, taker = self._parser, self._taker
        if not self._is_upgrade:  # CONNECT: answered like any unknown path
            taker.end_after_pending()
            return
        self._is_upgrade = False
        self._upgrades += 1
        if self._upgrades > UPGRADES_MAX:
            taker.refuse(InvalidInput("this server speaks HTTP/1.1 only", hint="leave out the Upgrade header"))
            return
        is_websocket = self._headers[b"upgrade"].lower() == b"websocket" and self._version == "1.1"
        self._wish = self._headers if is_websocket else None
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        for name, value in self._headers.items():
            if name == b"connection":
                tokens = [token.strip() for token in value.lower().split(b",")]
                value = b", ".join(token for token in tokens if token in (b"close", b"keep-alive"))  # noqa: PLW2901
            if name != b"upgrade" and value:
                lines.append(name + b": " + value)
        head = b"\r\n".join([*lines, b"", b""])
        self._parser = httptools.HttpRequestParser(self)
        self._counters.bytes_received -= len(head) + len(rest)
        taker.data_received(head)
        if rest:
            (taker.successor or taker).data_received(rest)

    # -- bounds --------------------------------------------------------------------------------------------------

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
