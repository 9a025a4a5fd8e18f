"""HTTP/2 on a socket: bytes to `protocols.http2` and back, and everything about time.

The rules of the protocol are kept by `protocols.http2.Connection`, calls are answered by `server.grpc_calls`. What is
left is a socket's: back-pressure both ways, one write for all answers of a turn of the event loop, and ending
connections that are idle, slow, silent, or at the end of the server's life.
"""

import asyncio
from typing import TYPE_CHECKING, Final, cast

from farthing.protocols.http2 import Connection

if TYPE_CHECKING:
    from farthing.server.grpc import GrpcListener

PING_S: Final = 60.0
"""A connection with calls under way that says nothing for so long is asked whether anybody is there..."""
PING_ANSWER_S: Final = 20.0
"""...and has so long to say so."""

JOIN_BYTES_MAX: Final = 128 * 1024
"""Up to this, pieces are put together before they are written: one copy costs less than more pieces."""

LINGER_S: Final = 2.0
"""How long a client may go on sending after we said goodbye, so that it can read why (closing a socket with unread
bytes sends a reset, and the GOAWAY is lost)."""
LINGER_BYTES_MAX: Final = 16 << 20

HTTP1_METHODS: Final = (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE")
HTTP1_ANSWER: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 79\r\n\r\nthis port speaks gRPC over HTTP/2; JSON over HTTP/1.1 is on the other (--http)\n"
)
"""To a browser or curl at the wrong port."""


class Http2Socket(asyncio.Protocol):
    """One client's socket."""

    def __init__(self, listener: "GrpcListener") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        now_s = listener.now_s
        self.http2 = Connection(listener.calls, listener.http2_limits, now_s, self._wake)
        self._opened_s = self._received_s = self._idle_since_s = now_s
        self._newest_id = 0
        self._frame_since_s = 0.0
        """Since when a frame or header block has begun and not ended; 0 while none has."""
        self._frames_read = 0
        self._pinged_s = 0.0
        self._written_bytes = 0
        self._delivered_bytes = 0
        self._stuck_since_s = 0.0
        """Since when the client reads too little of what waits for it; 0 while nothing waits."""
        self._goodbye_s = 0.0
        """When we said goodbye; what comes since is of no interest."""
        self._linger_bytes = 0
        self._is_ending = False

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._listener.admit(self):
            # Without a word: after our SETTINGS, a client's library would take this for a working server that
            # ended, and try again at once and without end.
            self._transport.abort()
        # Our SETTINGS go out with the first answer to what the client says: to HTTP/1.1 they would be noise.

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.http2.lost()
        self._listener.forget(self)

    def eof_received(self) -> bool:
        """A client that closes its side has gone: HTTP/2 ends requests by frames."""
        return False

    def pause_writing(self) -> None:
        self.http2.is_held = True
        if self._transport is not None and not self._goodbye_s:
            # Whoever does not read what he asked for need not ask for more; so there is no flood of answers either.
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.http2.is_held = False
        if self._transport is not None and not self._goodbye_s:
            self._transport.resume_reading()
        self.http2.pump()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._goodbye_s:
            self._linger_bytes += len(data)
            if self._linger_bytes > LINGER_BYTES_MAX:
                self.abort()
            return
        http2 = self.http2
        self._received_s = now_s = self._listener.now_s
        http2.receive(data, now_s)
        if http2.is_mid_frame:
            if not self._frame_since_s or http2.frames_read != self._frames_read:
                self._frame_since_s = now_s
                self._frames_read = http2.frames_read
        else:
            self._frame_since_s = 0.0
        if http2.out or http2.is_closing:
            self.flush()

    # -- writing -------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._listener.flush_soon(self)

    def flush(self) -> None:
        """Writes what there is to write, as far as the socket takes it."""
        http2, transport = self.http2, self._transport
        while True:
            out = http2.take_out()
            if transport is None or self._goodbye_s:
                return
            if http2.is_closing and not http2.has_preface and http2.first_bytes.startswith(HTTP1_METHODS):
                out = [HTTP1_ANSWER]
            if len(out) == 1:
                transport.write(out[0])
                self._written_bytes += len(out[0])
            elif out:
                size = sum(map(len, out))
                self._written_bytes += size
                if size <= JOIN_BYTES_MAX:
                    transport.write(b"".join(out))
                else:
                    transport.writelines(out)
            if http2.is_closing:
                self._say_goodbye()
                return
            if not http2.can_pump:
                break
            http2.pump()
        if self._is_ending and not http2.streams:
            self._say_goodbye()

    # -- ends ----------------------------------------------------------------------------------------------------

    def end_when_idle(self) -> None:
        """Ends the connection once what is under way is answered."""
        self._is_ending = True
        self.http2.end_when_idle()
        self.flush()

    def abort(self) -> None:
        """Ends the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _say_goodbye(self) -> None:
        transport = self._transport
        if transport is None or self._goodbye_s:
            return
        self._goodbye_s = self._listener.now_s
        if transport.can_write_eof() and transport.get_extra_info("sslcontext") is None:
            transport.write_eof()
            transport.resume_reading()
        else:
            transport.close()

    def check_time(self, now_s: float) -> None:
        """Ends the connection, or calls on it, that are out of time; called about once a second."""
        limits = self._listener.limits
        http2 = self.http2
        if self._goodbye_s:
            if now_s - self._goodbye_s >= LINGER_S:
                self.abort()
            return
        if not http2.has_preface:
            if now_s - self._opened_s >= limits.head_timeout_s:
                self.abort()
            return
        if self._is_stuck(now_s) or (self._frame_since_s and now_s - self._frame_since_s >= limits.body_timeout_s):
            self.abort()
            return
        if not http2.streams:
            self._check_idle(now_s)
            return
        self._idle_since_s = now_s
        self._check_alive(now_s)
        self._listener.calls.check_time(http2, now_s)

    def _check_idle(self, now_s: float) -> None:
        if self.http2.last_id != self._newest_id:  # calls came and went since the last look
            self._newest_id = self.http2.last_id
            self._idle_since_s = now_s
        if now_s - self._idle_since_s >= self._listener.limits.idle_timeout_s:
            self.end_when_idle()

    def _check_alive(self, now_s: float) -> None:
        if self._pinged_s > self._received_s:
            if now_s - self._pinged_s >= PING_ANSWER_S:
                self.abort()
        elif now_s - self._received_s >= PING_S:
            self._pinged_s = now_s
            self.http2.send_ping(b"farthing")

    def _is_stuck(self, now_s: float) -> bool:
        """Whether answers wait that the client has not read at a bearable pace for `write_timeout_s`."""
        transport, limits = self._transport, self._listener.limits
        buffered = transport.get_write_buffer_size() if transport is not None else 0
        if not buffered and not self.http2.is_window_shut:
            self._stuck_since_s = 0.0
            return False
        delivered = self._written_bytes - buffered
        wanted = limits.body_bytes_per_s_min * limits.write_timeout_s
        if not self._stuck_since_s or delivered - self._delivered_bytes >= wanted:
            self._stuck_since_s, self._delivered_bytes = now_s, delivered
        return now_s - self._stuck_since_s >= limits.write_timeout_s
