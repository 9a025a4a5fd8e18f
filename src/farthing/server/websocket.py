"""WebSocket (RFC 6455) on a connection that was HTTP/1.1: messages in and out, and clients of every temper.

`websockets` (without its sockets) makes and reads the frames of the protocol; this file keeps limits and time, as
`server.http1` does, whose connection goes on to own the socket. What messages mean belongs to whoever is the `Session`.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol, cast

from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Framing
from websockets.server import ServerProtocol

from farthing.config.server import HttpLimits
from farthing.server.admission import Admission
from farthing.server.exchange import Exchange, SwitchedFrom
from farthing.telemetry.counters import HttpCounters, RejectReason
from farthing.types.errors import Forbidden, InvalidInput, Overloaded

PING_AFTER_S: Final = 20.0
"""A client that says nothing for so long is asked whether it is there; proxies forget idle ones after a minute."""
PONG_WITHIN_S: Final = 20.0
"""How long it may take to say so, or whatever it is sending, plus what `body_bytes_per_s_min` allows."""
CLOSE_WITHIN_S: Final = 5.0
"""How long a client may take to answer our goodbye."""
REASON_BYTES_MAX: Final = 120
"""Of a close frame's reason (RFC 6455, 5.5: 125 bytes with the code)."""


class Session(Protocol):
    """What a conversation is about."""

    @property
    def has_room(self) -> bool:
        """Whether it takes another message now; if not, it calls `WebSocket.go_on` when it does."""

    @property
    def held_bytes(self) -> int:
        """Of messages it was given and has not done with."""

    @property
    def is_busy(self) -> bool:
        """Whether it owes an answer."""

    def message(self, data: bytes, *, is_text: bool) -> None:
        """A whole message came."""

    def drain(self) -> None:
        """The server ends: finish, and close."""

    def gone(self) -> None:
        """The client left, or is no longer listened to."""


def accept(exchange: Exchange) -> bytes:
    """The answer that makes a request's connection a WebSocket. Raises `InvalidInput` or `Forbidden`."""
    wish = exchange.wish or {}
    _check_origin(wish)
    asked = Headers()
    for name, value in wish.items():
        asked[name.decode("latin-1")] = value.decode("latin-1")
    # No extensions: tensors do not shrink, and inflating would be another place to send little and cost much.
    response = ServerProtocol().accept(Request(exchange.path.decode("latin-1"), asked))
    if response.status_code != 101:
        raise InvalidInput(response.body.decode().strip() if response.body else "this is no WebSocket handshake")
    return b"".join(
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            exchange.reply_headers,
            b"Sec-WebSocket-Accept: " + response.headers["Sec-WebSocket-Accept"].encode() + b"\r\n\r\n",
        )
    )


def _check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Browsers let any page open a WebSocket to any host, and read what comes; only our own pages may."""
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower():
        raise Forbidden("a page of another origin may not open a WebSocket here", hint="go through a server of yours")


class WebSocket(asyncio.Protocol):
    """One conversation; the connection's socket is its until it ends."""

    def __init__(
        self,
        limits: HttpLimits,
        admission: Admission,
        counters: HttpCounters,
        *,
        message_bytes_max: int,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._counters = counters
        self.message_bytes_max = message_bytes_max
        self._framing = Framing(SERVER, state=OPEN, max_size=message_bytes_max)
        self._transport: asyncio.Transport | None = None
        self.session: Session | None = None
        self._waiting: deque[tuple[bytes, bool]] = deque()
        """Whole messages that the session had no room for; reading pauses meanwhile, so they came in one read."""
        self._waiting_bytes = 0
        self._part = bytearray()
        """Of a message that comes in fragments."""
        self._is_text = False
        self._fed_bytes = 0
        """Read since a protocol frame was last whole."""
        self._held = 0
        self._quiet_since_s = 0.0
        self._has_pinged = False
        self._close_by_s = 0.0
        self._is_taking = False
        self._is_paused = False
        self._is_writing_paused = False

    def begin(self, connection: SwitchedFrom, transport: asyncio.Transport) -> None:
        """The socket is ours."""
        self._connection = connection
        self._transport = transport
        self._quiet_since_s = connection.now_s

    # -- asyncio -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._counters.bytes_received += len(data)
        if self._transport is None:
            return
        self._fed_bytes += len(data)
        framing = self._framing
        framing.receive_data(data)
        for event in framing.events_received():
            self._fed_bytes = len(data)  # at most; how much of it began the next frame is not told
            self._quiet_since_s = self._connection.now_s
            self._has_pinged = False
            self._take(cast("Frame", event))
        self._flush()
        if framing.close_expected():
            self._end_session()
        self.go_on()

    def eof_received(self) -> bool:
        return False  # half of a WebSocket is none: the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end_session()
        self._count_held()
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._connection.resume_writing()
        if self._is_paused and self._transport is not None:
            self._transport.pause_reading()
        self.go_on()

    # -- in ------------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return  # pings are answered and goodbyes echoed by the framing
        if self.session is None:
            return
        if not frame.fin or self._part:
            self._part += frame.data
            if not frame.fin:
                return
        data = bytes(self._part or frame.data)
        self._part.clear()
        if self._is_text and not _is_utf8(data):
            self._framing.fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
            return
        self._waiting.append((data, self._is_text))
        self._waiting_bytes += len(data)

    def go_on(self) -> None:
        """Gives the session its messages as it has room, and reads when all are given."""
        if self._is_taking:
            return
        self._is_taking = True
        try:
            while self._waiting and self.session is not None and self.session.has_room and not self._is_writing_paused:
                data, is_text = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                self.session.message(data, is_text=is_text)
        finally:
            self._is_taking = False
        self._count_held()
        transport = self._transport
        if transport is None:
            return
        is_paused = bool(self._waiting)
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            if is_paused:
                transport.pause_reading()
            elif not self._is_writing_paused:
                self._quiet_since_s = self._connection.now_s  # it could not be heard meanwhile
                transport.resume_reading()

    def _count_held(self) -> None:
        """Counts what this conversation holds against admission; ends it when that is more than fits."""
        held = 0
        if self._transport is not None:
            held = self._fed_bytes + len(self._part) + self._waiting_bytes + self._transport.get_write_buffer_size()
            if self.session is not None:
                held += self.session.held_bytes
        if held <= self._held:
            self._admission.give_bytes(self._held - held)
            self._held = held
            return
        try:
            self._admission.take_bytes(held - self._held)
        except Overloaded as full:
            self._counters.rejected[RejectReason.OVERLOADED] += 1
            self.close(CloseCode.TRY_AGAIN_LATER, full.message)
        else:
            self._held = held

    # -- out -----------------------------------------------------------------------------------------------------

    def send_text(self, data: bytes) -> None:
        """Sends a message; nothing once the conversation is over."""
        if self.is_open:
            self._framing.send_text(data)
            self._flush()

    def send_binary(self, data: bytes) -> None:
        """Likewise."""
        if self.is_open:
            self._framing.send_binary(data)
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Says goodbye. The session is told that its client is gone."""
        if self.is_open:
            self._framing.send_close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore"))
            self._flush()
        self._end_session()

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and self._framing.state is OPEN

    def _flush(self) -> None:
        transport = self._transport
        for data in self._framing.data_to_send():
            if transport is None:
                return
            if data:
                self._counters.bytes_sent += len(data)
                transport.write(data)
            elif transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()

    def _end_session(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._part.clear()
        if not self._close_by_s:
            self._close_by_s = self._connection.now_s + CLOSE_WITHIN_S
        session, self.session = self.session, None
        if session is not None:
            session.gone()

    # -- the listener's ------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """An answer is owed."""
        return self.session is not None and self.session.is_busy

    def drain(self) -> None:
        """The server ends."""
        if self.session is not None:
            self.session.drain()

    def check_time(self, now_s: float) -> None:
        """Asks a quiet client whether it is there, and ends one that does not say so."""
        transport = self._transport
        if transport is None:
            return
        if self._close_by_s:
            if now_s >= self._close_by_s:
                transport.abort()
            return
        if self._is_paused or self._is_writing_paused:
            self._quiet_since_s = now_s
            return
        quiet_s = now_s - self._quiet_since_s
        if quiet_s >= PING_AFTER_S + PONG_WITHIN_S + self._fed_bytes / self._limits.body_bytes_per_s_min:
            self._counters.rejected[RejectReason.SLOW] += 1
            transport.abort()
        elif quiet_s >= PING_AFTER_S and not self._has_pinged:
            self._has_pinged = True
            try:
                self._framing.send_ping(b"")
            except InvalidState:
                return
            self._flush()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
