"""A server's side of one HTTP/2 connection (RFC 9113): bytes in, calls out. This half reads, `sending` answers.

    bytes -> frames -> header blocks (`header_blocks`), windows, allowance -> Handler.request, data, closed

No socket and no clock: whoever has them passes both in. It keeps the peer to the rules, its cost within limits, and
both windows right; requests and answers belong to the `Handler`.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from farthing.protocols.http2.frames import (
    FRAME_HEAD,
    HEAD_BYTES,
    PREFACE,
    STREAM_ID_MAX,
    UINT32,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    BrokenConnection,
    ErrorCode,
    Flag,
    FrameType,
    Setting,
    frame,
    goaway,
    ping,
    rst_stream,
    settings,
    window_update,
)
from farthing.protocols.http2.header_blocks import Head, HeaderReader
from farthing.protocols.http2.limits import (
    CONNECTION_WINDOW_BYTES,
    FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    Http2Limits,
)
from farthing.protocols.http2.sending import Data, Handler, SendingHalf
from farthing.protocols.http2.settings import read_settings
from farthing.protocols.http2.stream import Stream

_DATA, _HEADERS, _CONTINUATION = int(FrameType.DATA), int(FrameType.HEADERS), int(FrameType.CONTINUATION)
_WINDOW_UPDATE, _RST_STREAM = int(FrameType.WINDOW_UPDATE), int(FrameType.RST_STREAM)
_END_STREAM, _END_HEADERS = int(Flag.END_STREAM), int(Flag.END_HEADERS)
_PADDED, _PRIORITY, _ACK = int(Flag.PADDED), int(Flag.PRIORITY), int(Flag.ACK)

Payload = TypeVar("Payload", bytes, Data)

COPIED_BYTES_MAX: Final = 2048
"""Longer DATA is handed on as a view of what was received: whoever keeps it copies it once."""


class Connection(SendingHalf):
    """One client."""

    def __init__(self, handler: Handler, limits: Http2Limits, now_s: float, wake: Callable[[], None]) -> None:
        super().__init__(handler, now_s, wake)
        self._limits = limits
        self._now_s = now_s
        self._reader = HeaderReader(limits)
        self._send(
            settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.streams_max,
                    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                    Setting.MAX_FRAME_SIZE: FRAME_BYTES,
                    Setting.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
                }
            )
            + window_update(0, CONNECTION_WINDOW_BYTES - WINDOW_DEFAULT)
        )
        self.has_preface = False
        self.is_closing = False
        """Nothing more is read; what is in `out` is the last."""
        self.reason = ""
        """Why the connection was ended for breaking a rule."""
        self.last_id = 0
        """The newest stream the client opened."""
        self._ids_max = STREAM_ID_MAX
        """Newer streams are not served: GOAWAY said so."""
        self.frames_read = 0
        """Moves whenever frames came whole: a client that sends is not stuck in the middle of one."""
        self._rest = b""
        self._block: bytearray | None = None
        """A header block whose CONTINUATION is still to come (6.10)."""
        self._block_id = 0
        self._block_ends_stream = False
        self._receive_window = CONNECTION_WINDOW_BYTES

    @property
    def is_mid_frame(self) -> bool:
        """A frame or a header block has begun and not ended."""
        return bool(self._rest) or self._block is not None

    @property
    def first_bytes(self) -> bytes:
        """What a client said instead of the preface."""
        return self._rest

    def receive(self, data: bytes, now_s: float) -> None:
        """The client's next bytes."""
        if self.is_closing:
            return
        self._now_s = now_s
        was_awake, self._is_awake = self._is_awake, True  # the caller writes what this brings about
        try:
            self._receive(data)
        except BrokenConnection as broken:
            self.reason = broken.reason
            self._close(broken.code, broken.reason.encode("ascii", "replace"))
        self._is_awake = was_awake or bool(self.out)

    def _receive(self, data: bytes) -> None:
        rest, at = self._rest, 0
        if not self.has_preface:
            data = rest + data
            at = self._preface(data)
            if not at:
                return
        elif rest:
            # The frame that had begun is read by itself, so that no more than that is copied to put it together.
            head = (rest + data[:HEAD_BYTES])[:HEAD_BYTES]
            at = len(data)
            if len(head) == HEAD_BYTES:
                at = min(at, HEAD_BYTES + int.from_bytes(head[:3], "big") - len(rest))
            self._read_frames(rest + data[:at], 0)
            if at == len(data) or self.is_closing:
                return
        self._read_frames(data, at)

    def _preface(self, data: bytes) -> int:
        """How long the preface is (3.4), once the head of the frame that belongs to it is here; until then 0."""
        self._rest = data
        if not data.startswith(PREFACE[: len(data)]):
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2: no connection preface")
        if len(data) < len(PREFACE) + HEAD_BYTES:
            return 0
        if data[len(PREFACE) + 3] != FrameType.SETTINGS:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "the preface ends with a SETTINGS frame")
        self.has_preface = True
        return len(PREFACE)

    def _read_frames(self, data: bytes, at: int) -> None:
        """Reads all whole frames from there on, and keeps the rest."""
        size = len(data)
        read_head = FRAME_HEAD.unpack_from
        while size - at >= HEAD_BYTES:
            word, flags, stream_id = read_head(data, at)
            start = at + HEAD_BYTES
            end = start + (word >> 8)
            if end - start > FRAME_BYTES:
                raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "a frame is larger than SETTINGS_MAX_FRAME_SIZE")
            if end > size:
                break
            kind = word & 0xFF
            stream_id &= STREAM_ID_MAX
            if self._block is not None and kind != _CONTINUATION:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
            if kind == _DATA:
                payload = data[start:end] if end - start <= COPIED_BYTES_MAX else memoryview(data)[start:end]
                self._data(flags, stream_id, payload)
            elif kind == _HEADERS:
                self._headers(flags, stream_id, data[start:end])
            elif kind == _WINDOW_UPDATE:
                self._window_update(stream_id, data[start:end])
            else:
                self._other(kind, flags, stream_id, data[start:end])
            at = end
            if self.is_closing:
                return
        self._rest = data[at:]
        self.frames_read += at

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}: clients' are odd")
        if flags & (_PADDED | _PRIORITY):
            if flags & _PADDED:
                payload = _without_padding(payload)
            if flags & _PRIORITY:
                if len(payload) < 5:
                    raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "HEADERS with half a priority")
                payload = payload[5:]
        if flags & _END_HEADERS:
            self._header_block(stream_id, payload, bool(flags & _END_STREAM))
        else:
            self._block, self._block_id = bytearray(payload), stream_id
            self._block_ends_stream = bool(flags & _END_STREAM)

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream_id != self._block_id:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._allowance.spend(self._now_s, "CONTINUATION")
        block += payload
        if len(block) > 2 * self._limits.header_list_bytes_max:
            raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & _END_HEADERS:
            self._block = None
            self._header_block(stream_id, bytes(block), self._block_ends_stream)

    def _header_block(self, stream_id: int, block: bytes, ends_stream: bool) -> None:
        head = self._reader.read(block)  # whatever becomes of the request: the table must follow (RFC 9113, 4.3)
        if stream_id <= self.last_id:
            self._trailers(stream_id, head, ends_stream)
            return
        self.last_id = stream_id
        if stream_id > self._ids_max:
            return
        if head.wrong or (ends_stream and head.content_bytes > 0):
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, "a malformed request")
            return
        streams = self.streams
        if len(streams) >= self._limits.streams_max:
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM, "a stream too many")
            return
        streams[stream_id] = stream = Stream(self, stream_id)
        stream.has_ended_in = ends_stream
        stream.body_left = head.content_bytes
        self._handler.request(stream, head)
        if ends_stream and not stream.is_closed:
            self._handler.data(stream, b"", True)

    def _trailers(self, stream_id: int, head: Head, ends_stream: bool) -> None:
        """Trailers of a request: gRPC has none, so they only end it. On a stream that is over, they are late."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if head.method:  # no late trailers, but a request; numbers only rise (5.1.1)
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}, which was used")
            self._allowance.spend(self._now_s, "HEADERS on a closed stream")
        elif stream.has_ended_in:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        elif not ends_stream or head.wrong_as_trailers or not stream.is_as_long_as_said(0, is_last=True):
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.has_ended_in = True
            self._handler.data(stream, b"", True)

    def _refuse(self, stream_id: int, code: ErrorCode, what: str) -> None:
        self._allowance.spend(self._now_s, what)
        self._send(rst_stream(stream_id, code))

    def _data(self, flags: int, stream_id: int, payload: Data) -> None:
        size = len(payload)
        if size:
            self._receive_window -= size
            if self._receive_window < CONNECTION_WINDOW_BYTES // 2:
                if self._receive_window < 0:
                    raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
                # What is kept of it counts against admission, not against the other requests of this connection.
                self._send(window_update(0, CONNECTION_WINDOW_BYTES - self._receive_window))
                self._receive_window = CONNECTION_WINDOW_BYTES
        is_last = flags & _END_STREAM != 0
        if not size and not is_last:
            self._allowance.spend(self._now_s, "empty DATA")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id > self.last_id or not stream_id & 1:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is idle")
            return  # of a request that was answered or reset before the client knew
        if stream.has_ended_in:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, f"more DATA than the window of stream {stream_id}")
        if flags & _PADDED:
            payload = _without_padding(payload)
            if not is_last:
                self.take(stream, size - len(payload))
        if stream.body_left >= 0 and not stream.is_as_long_as_said(len(payload), is_last=is_last):
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.has_ended_in = is_last
        self._handler.data(stream, payload, is_last)

    def take(self, stream: Stream, size: int) -> None:
        """So much of a body was taken in (6.9.1): the client may send as much again."""
        stream.taken_bytes += size
        if stream.taken_bytes >= STREAM_WINDOW_BYTES // 2 and not stream.has_ended_in:
            stream.receive_window += stream.taken_bytes
            self._send(window_update(stream.id, stream.taken_bytes))
            stream.taken_bytes = 0

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        self._allowance.spend(self._now_s, "WINDOW_UPDATE")
        increment = UINT32.unpack(payload)[0] & WINDOW_MAX
        if not stream_id:
            if not increment:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self._send_window += increment
            if self._send_window > WINDOW_MAX:
                raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is over 2^31-1")
        else:
            stream = self.streams.get(stream_id)
            if stream is None:
                if stream_id > self.last_id or not stream_id & 1:
                    raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is idle")
                return
            stream.send_delta += increment
            if not increment or stream.send_delta + self.stream_window > WINDOW_MAX:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                self._reset(stream, code)
                return
            if stream.unsent_bytes:
                self._ready[stream_id] = stream
        if self._ready:
            self.pump()

    def _other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == _RST_STREAM:
            self._rst_stream(stream_id, payload)
        elif kind == FrameType.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == FrameType.PING:
            self._ping(flags, stream_id, payload)
        elif kind == FrameType.PUSH_PROMISE:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "clients do not push")
        elif kind == FrameType.GOAWAY:
            if stream_id or len(payload) < 8:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream, or too short")
            self._allowance.spend(self._now_s, "GOAWAY")
        else:
            if kind == FrameType.PRIORITY and (not stream_id or len(payload) != 5):
                code = ErrorCode.FRAME_SIZE_ERROR if stream_id else ErrorCode.PROTOCOL_ERROR
                raise BrokenConnection(code, "PRIORITY of the connection, or not of five bytes")
            self._allowance.spend(self._now_s, "a frame without meaning")  # 5.5: unknown ones are passed over

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        if not stream_id & 1 or stream_id > self.last_id:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "RST_STREAM of a stream that is idle")
        self._allowance.spend(self._now_s, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.has_ended_out = stream.has_ended_out and not stream.unsent_bytes
            self._forget(stream)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & _ACK:
            if payload:
                raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledged with something")
            return
        self._allowance.spend(self._now_s, "SETTINGS")
        values = read_settings(payload)
        if Setting.HEADER_TABLE_SIZE in values:
            self._writer.allow(values[Setting.HEADER_TABLE_SIZE])
        self._frame_bytes = min(values.get(Setting.MAX_FRAME_SIZE, self._frame_bytes), FRAME_BYTES)
        if Setting.INITIAL_WINDOW_SIZE in values:
            self.stream_window = window = values[Setting.INITIAL_WINDOW_SIZE]
            for stream in self.streams.values():
                if stream.send_delta + window > WINDOW_MAX:
                    raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is over 2^31-1")
                if stream.unsent_bytes and stream.send_delta + window > 0:
                    self._ready[stream.id] = stream
        self._send(frame(FrameType.SETTINGS, _ACK, 0))
        self.pump()

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            code = ErrorCode.PROTOCOL_ERROR if stream_id else ErrorCode.FRAME_SIZE_ERROR
            raise BrokenConnection(code, "PING of a stream, or not of eight bytes")
        if flags & _ACK:
            return  # anything a client says tells that it is there
        self._allowance.spend(self._now_s, "PING")
        self._send(ping(payload, is_ack=True))

    # -- ends ----------------------------------------------------------------------------------------------------

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        """The client broke a rule of one stream (5.4.2)."""
        self._allowance.spend(self._now_s, "an error of a stream")
        self.cancel(stream, code)

    def announce_end(self) -> None:
        """First word of a graceful end (6.8): streams are served still, and the client should open no more."""
        if not self.is_closing and self._ids_max == STREAM_ID_MAX:
            self._send(goaway(STREAM_ID_MAX, ErrorCode.NO_ERROR))

    def end_when_idle(self) -> None:
        """Last word of a graceful end: newer streams are not served, and may be tried again elsewhere."""
        if not self.is_closing and self._ids_max == STREAM_ID_MAX:
            self._ids_max = self.last_id
            self._send(goaway(self.last_id, ErrorCode.NO_ERROR))

    def send_ping(self, payload: bytes) -> None:
        """Asks whether anybody is there."""
        if not self.is_closing:
            self._send(ping(payload))

    def close(self) -> None:
        """Ends it now; streams under way are told they were not."""
        if not self.is_closing:
            self._close(ErrorCode.NO_ERROR, b"")

    def lost(self) -> None:
        """The socket is gone, and with it whoever waited for answers."""
        self.is_closing = True
        self._drop_streams()

    def _close(self, code: ErrorCode, debug: bytes) -> None:
        self.is_closing = True
        self._drop_streams()
        self._send(goaway(self.last_id, code, debug[:200]))

    def _drop_streams(self) -> None:
        for stream in list(self.streams.values()):
            stream.has_ended_out = False
            self._forget(stream)


def _without_padding(payload: Payload) -> Payload:
    if not payload or payload[0] >= len(payload):
        raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "more padding than payload (6.1)")
    return payload[1 : len(payload) - payload[0]]
