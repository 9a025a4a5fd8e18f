"""The sending half of a connection: answers into header blocks and DATA, as windows and the socket allow.

    respond, or begin, write, end -> windows -> `out`, or `Stream.unsent` until there is window and room

An answer that fits goes straight out in one piece. What does not waits in its stream, and streams that wait take turns.
Reading frames, and with them the client's windows, is `connection`'s.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from farthing.protocols.http2.allowance import Allowance
from farthing.protocols.http2.frames import (
    FRAME_BYTES_DEFAULT,
    FRAME_HEAD,
    WINDOW_DEFAULT,
    ErrorCode,
    Flag,
    FrameType,
    frame,
    rst_stream,
)
from farthing.protocols.http2.header_blocks import Field, Fields, Head, HeaderWriter
from farthing.protocols.http2.limits import EARNED_BY_FRAME, EARNED_BY_STREAM
from farthing.protocols.http2.stream import Stream

OUT_BYTES_MAX: Final = 256 * 1024
"""What is collected for one write to the socket; the rest of an answer waits in its stream."""

_DATA, _HEADERS, _CONTINUATION = int(FrameType.DATA), int(FrameType.HEADERS), int(FrameType.CONTINUATION)
_END_STREAM, _END_HEADERS = int(Flag.END_STREAM), int(Flag.END_HEADERS)
_HEAD_FLAGS: Final = bytes((_HEADERS, _END_HEADERS))
_LAST_FLAGS: Final = bytes((_HEADERS, _END_HEADERS | _END_STREAM))
_DATA_FLAGS: Final = b"\0\0"


Data = bytes | memoryview
"""Part of a body; a view is good until the call it came with returns."""


class Handler(Protocol):
    """Who serves the requests of a connection. Nothing here may raise."""

    def request(self, stream: Stream, head: Head) -> None:
        """A request began. `head` is shared by all that send the same; it may be answered at once."""

    def data(self, stream: Stream, data: Data, is_last: bool) -> None:
        """More of its body came; not called once the stream is closed. `Connection.take` gives the client window."""

    def drained(self, stream: Stream) -> None:
        """All that was written of an answer that goes on is sent."""

    def closed(self, stream: Stream) -> None:
        """The stream is over: its answer is sent, or (`not stream.has_ended_out`) nobody wants one any more."""


class SendingHalf:
    """What one client is answered."""

    def __init__(self, handler: Handler, now_s: float, wake: Callable[[], None]) -> None:
        self._handler = handler
        self._wake = wake
        self._allowance = Allowance(now_s)
        self._writer = HeaderWriter()
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        """To be written in order; whoever writes it empties it (`take_out`)."""
        self._out_bytes = 0
        self._is_awake = True
        """Whoever writes knows that there is something."""
        self.is_held = False
        """The socket takes no more: answers wait in their streams. Set by whoever writes."""
        self.unsent_bytes = 0
        """What waits in all streams."""
        self._send_window = WINDOW_DEFAULT
        self.stream_window = WINDOW_DEFAULT
        """The client's SETTINGS_INITIAL_WINDOW_SIZE."""
        self._frame_bytes = FRAME_BYTES_DEFAULT
        self._ready: dict[int, Stream] = {}
        """Streams with something unsent and window of their own, in turn."""

    def take_out(self) -> list[bytes | memoryview]:
        """What is to be written now."""
        out, self.out, self._out_bytes, self._is_awake = self.out, [], 0, False
        return out

    def fits(self, stream: Stream, size: int) -> bool:
        """Whether so much can be sent at once, without waiting for windows or the socket."""
        return (
            size <= self._send_window
            and size <= self.stream_window + stream.send_delta
            and not self.is_held
            and not stream.unsent_bytes
            and self._out_bytes + size <= OUT_BYTES_MAX
        )

    def respond(self, stream: Stream, first: Fields, body: bytes, last: Fields) -> None:
        """A whole answer: header fields, body, trailers."""
        if stream.is_closed or stream.has_ended_out:
            return
        size = len(body)
        if size > self._frame_bytes or stream.has_sent_head or not self.fits(stream, size):
            self.begin(stream, first)
            self.write(stream, body)
            self.end(stream, last)
            return
        writer = self._writer
        head, tail = writer.block(first), writer.block(last)
        stream_id = stream.id_bytes
        self._send_window -= size
        stream.has_ended_out = True
        self._send(
            b"".join(
                (
                    len(head).to_bytes(3, "big"),
                    _HEAD_FLAGS,
                    stream_id,
                    head,
                    size.to_bytes(3, "big"),
                    _DATA_FLAGS,
                    stream_id,
                    body,
                    len(tail).to_bytes(3, "big"),
                    _LAST_FLAGS,
                    stream_id,
                    tail,
                )
            )
        )
        self._ended(stream)

    def begin(self, stream: Stream, first: Fields) -> None:
        """The header fields of an answer whose body follows."""
        if not stream.has_sent_head and not stream.is_closed:
            stream.has_sent_head = True
            self._send_block(stream, self._writer.block(first), 0)

    def write(self, stream: Stream, data: bytes) -> None:
        """More of the body. What cannot be sent yet waits in the stream."""
        if stream.is_closed or not data:
            return
        if stream.unsent is None:
            stream.unsent = deque()
        stream.unsent.append(memoryview(data))
        stream.unsent_bytes += len(data)
        self.unsent_bytes += len(data)
        if stream.send_delta + self.stream_window > 0:
            self._ready[stream.id] = stream
            self.pump()

    def end(self, stream: Stream, last: Fields, *others: Field) -> None:
        """The trailers, or, if nothing was said before, an answer that is nothing but header fields."""
        if stream.is_closed or stream.has_ended_out:
            return
        stream.has_ended_out = True
        stream.last_fields = (last, others)
        if not stream.unsent_bytes:
            self._send_last(stream)

    def cancel(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream without an answer, or in the middle of one."""
        if not stream.is_closed:
            self._send(rst_stream(stream.id, code))
            stream.has_ended_out = False
            self._forget(stream)

    def pump(self) -> None:
        """Sends what waits, a frame of each stream in turn, as far as windows, the socket and one write allow."""
        ready = self._ready
        while ready and self._send_window > 0 and not self.is_held and self._out_bytes < OUT_BYTES_MAX:
            stream_id, stream = next(iter(ready.items()))
            del ready[stream_id]
            if stream.send_delta + self.stream_window <= 0:
                continue  # until the client widens it
            self._send_part(stream)
            if not stream.unsent_bytes:
                if stream.last_fields is not None:
                    self._send_last(stream)
                else:
                    self._handler.drained(stream)
            else:
                ready[stream_id] = stream  # behind the others

    @property
    def is_window_shut(self) -> bool:
        """Whether answers wait for the client to widen the connection's window."""
        return self.unsent_bytes > 0 and self._send_window <= 0

    @property
    def can_pump(self) -> bool:
        """Whether `pump` would send something."""
        return bool(self._ready) and self._send_window > 0 and not self.is_held

    def _send_part(self, stream: Stream) -> None:
        assert stream.unsent
        part = stream.unsent[0]
        size = min(len(part), self._frame_bytes, self._send_window, self.stream_window + stream.send_delta)
        if size == len(part):
            stream.unsent.popleft()
        else:
            stream.unsent[0] = part[size:]
            part = part[:size]
        stream.unsent_bytes -= size
        stream.sent_bytes += size
        self.unsent_bytes -= size
        stream.send_delta -= size
        self._send_window -= size
        self._allowance.earn(EARNED_BY_FRAME)
        self._send(FRAME_HEAD.pack(size << 8 | _DATA, 0, stream.id))
        self.out.append(part)
        self._out_bytes += size

    def _send_last(self, stream: Stream) -> None:
        assert stream.last_fields is not None
        fields, others = stream.last_fields
        block = self._writer.block_once(fields, *others) if others else self._writer.block(fields)
        stream.last_fields = None
        self._send_block(stream, block, _END_STREAM)
        self._ended(stream)

    def _send_block(self, stream: Stream, block: bytes, flags: int) -> None:
        """A header block, in CONTINUATION frames where it is longer than one frame (6.10)."""
        kind, limit = _HEADERS, self._frame_bytes
        while len(block) > limit:
            self._send(frame(kind, flags, stream.id, block[:limit]))
            block, kind, flags = block[limit:], _CONTINUATION, 0
        self._send(frame(kind, flags | _END_HEADERS, stream.id, block))

    def _send(self, data: bytes) -> None:
        self.out.append(data)
        self._out_bytes += len(data)
        if not self._is_awake:
            self._is_awake = True
            self._wake()

    def _ended(self, stream: Stream) -> None:
        """Our side is done. A client that still sends is told to stop (8.1)."""
        if not stream.has_ended_in:
            self._send(rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._allowance.earn(EARNED_BY_STREAM)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.is_closed = True
        self.streams.pop(stream.id, None)
        self._ready.pop(stream.id, None)
        self.unsent_bytes -= stream.unsent_bytes
        stream.unsent_bytes = 0
        stream.unsent = stream.last_fields = None
        self._handler.closed(stream)
