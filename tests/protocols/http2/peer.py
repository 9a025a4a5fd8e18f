"""The client's end of a connection under test: raw frames, and what the server said, read back."""

from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder

from farthing.protocols.http2 import PREFACE, Connection, Fields, Head, Http2Limits, Stream
from farthing.protocols.http2.frames import FRAME_HEAD, Flag, FrameType, frame

FIRST = Fields((b":status", b"200"), (b"content-type", b"application/grpc"))
LAST = Fields((b"grpc-status", b"0"))
POST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/s/m"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
]
END = int(Flag.END_STREAM)
END_HEADERS = int(Flag.END_HEADERS)


@dataclass
class Noting:
    """A handler that notes what it is told, and answers whole requests with what they said if it is asked to."""

    answers: bool = True
    heads: dict[int, Head] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    whole: list[int] = field(default_factory=list)
    over: dict[int, bool] = field(default_factory=dict)
    """Stream -> whether its answer was sent."""
    streams: dict[int, Stream] = field(default_factory=dict)

    def request(self, stream: Stream, head: Head) -> None:
        assert stream.id not in self.heads
        self.heads[stream.id] = head
        self.bodies[stream.id] = b""
        self.streams[stream.id] = stream

    def data(self, stream: Stream, data: bytes, is_last: bool) -> None:
        assert stream.id not in self.over
        self.bodies[stream.id] += data
        if not is_last:
            stream.connection.take(stream, len(data))
            return
        self.whole.append(stream.id)
        if self.answers:
            stream.connection.respond(stream, FIRST, self.bodies[stream.id], LAST)

    def drained(self, stream: Stream) -> None:
        assert stream.id not in self.over
        assert not stream.unsent_bytes

    def closed(self, stream: Stream) -> None:
        assert stream.id not in self.over
        self.over[stream.id] = stream.has_ended_out


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    def __repr__(self) -> str:
        return f"{FrameType(self.kind).name}({self.flags:#x}, {self.stream}, {self.payload[:20]!r})"


def frames_of(data: bytes) -> list[Frame]:
    """The frames in what the server sent; fails if the last is cut off."""
    found, at = [], 0
    while at < len(data):
        word, flags, stream = FRAME_HEAD.unpack_from(data, at)
        at += 9 + (word >> 8)
        assert at <= len(data)
        found.append(Frame(word & 0xFF, flags, stream, data[at - (word >> 8) : at]))
    return found


class Peer:
    """A client that may say anything."""

    def __init__(self, *, greets: bool = True, answers: bool = True, **limits: Any) -> None:
        self.handler = Noting(answers)
        self.wakes = 0
        self.connection = Connection(self.handler, Http2Limits(**limits), 0.0, self._wake)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.now_s = 0.0
        if greets:
            self.send(PREFACE, frame(FrameType.SETTINGS, 0, 0))
            self.read()

    def _wake(self) -> None:
        self.wakes += 1

    def send(self, *data: bytes) -> "Peer":
        self.connection.receive(b"".join(data), self.now_s)
        return self

    def read(self) -> list[Frame]:
        """What the server wrote since the last look."""
        written = b""
        while self.connection.out:
            written += b"".join(self.connection.take_out())
            if self.connection.can_pump:
                self.connection.pump()
        return frames_of(written)

    def headers(self, stream: int, flags: int = END_HEADERS, fields: Any = POST) -> bytes:
        return frame(FrameType.HEADERS, flags, stream, self.encoder.encode(fields))

    def request(self, stream: int, body: bytes = b"") -> bytes:
        """A whole request."""
        return self.headers(stream) + frame(FrameType.DATA, END, stream, body)

    def fields(self, block: Frame) -> dict[str, str]:
        return dict(self.decoder.decode(block.payload))

    def ended(self) -> int | None:
        """The error code of the server's GOAWAY; None if it still serves."""
        last = [found for found in self.read() if found.kind == FrameType.GOAWAY]
        assert bool(last) == self.connection.is_closing
        return int.from_bytes(last[-1].payload[4:8], "big") if last else None
