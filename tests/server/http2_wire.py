"""A client's side of one HTTP/2 connection over a real socket, frame by frame: it may break every rule."""

import socket
import ssl
from typing import Any

from hpack import Decoder, Encoder
from tests.protocols.http2.peer import Frame
from tests.serving import WAIT_S

from farthing.config.server import Address
from farthing.protocols.grpc_wire import prefixed
from farthing.protocols.http2 import PREFACE
from farthing.protocols.http2.frames import FRAME_BYTES_DEFAULT, FRAME_HEAD, Flag, FrameType, frame, settings

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
END, END_HEADERS = int(Flag.END_STREAM), int(Flag.END_HEADERS)


class Http2Wire:
    """One connection."""

    def __init__(
        self,
        address: Address,
        *,
        greets: bool = True,
        receive_buffer: int = 0,
        tls: ssl.SSLContext | None = None,
        values: dict[Any, int] | None = None,
    ) -> None:
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(WAIT_S)
        plain.connect((address.host, address.port))
        self.socket = tls.wrap_socket(plain, server_hostname="localhost") if tls is not None else plain
        self.encoder, self.decoder = Encoder(), Decoder()
        self._unread = b""
        self.answers: dict[int, dict[str, str]] = {}
        """Stream -> all header fields and trailers of its answer."""
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        """The code of the last GOAWAY."""
        if greets:
            self.send(PREFACE, settings(values or {}))

    def __enter__(self) -> "Http2Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> "Http2Wire":
        self.socket.sendall(b"".join(data))
        return self

    def headers(self, stream: int, path: str = INFER, flags: int = END_HEADERS, **more: str) -> bytes:
        """A call's head; in names, underscores stand for hyphens. `method` and `content_type` may be others."""
        fields = [
            (":method", more.pop("method", "POST")),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", more.pop("content_type", "application/grpc")),
            ("te", "trailers"),
            *((name.replace("_", "-"), value) for name, value in more.items()),
        ]
        return frame(FrameType.HEADERS, flags, stream, self.encoder.encode(fields))

    def call(self, stream: int, message: bytes, path: str = INFER, **more: str) -> bytes:
        """A whole unary call."""
        body = prefixed(message)
        starts = range(0, len(body), FRAME_BYTES_DEFAULT)
        parts = [body[start : start + FRAME_BYTES_DEFAULT] for start in starts]
        data = [frame(FrameType.DATA, END * (part is parts[-1]), stream, part) for part in parts]
        return self.headers(stream, path, **more) + b"".join(data)

    def read_frame(self) -> Frame | None:
        """The next frame, noted; None when the server has ended the connection."""
        while True:
            if len(self._unread) >= 9:
                word, flags, stream = FRAME_HEAD.unpack_from(self._unread)
                end = 9 + (word >> 8)
                if len(self._unread) >= end:
                    found = Frame(word & 0xFF, flags, stream, self._unread[9:end])
                    self._unread = self._unread[end:]
                    self._note(found)
                    return found
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._unread += data

    def _note(self, found: Frame) -> None:
        if found.kind == FrameType.HEADERS:
            fields = self.answers.setdefault(found.stream, {})
            fields.update(self.decoder.decode(found.payload))
            if found.flags & END:
                fields["ended"] = "yes"
        elif found.kind == FrameType.DATA:
            self.bodies[found.stream] = self.bodies.get(found.stream, b"") + found.payload
        elif found.kind == FrameType.RST_STREAM:
            self.resets[found.stream] = int.from_bytes(found.payload, "big")
        elif found.kind == FrameType.GOAWAY:
            self.goaway = int.from_bytes(found.payload[4:8], "big")

    def answer(self, stream: int) -> dict[str, str]:
        """The header fields and trailers of an answer, once it is whole. Fails if the connection ends first."""
        while "ended" not in self.answers.get(stream, ()):
            assert self.read_frame() is not None, f"the connection ended; GOAWAY {self.goaway}"
        return self.answers[stream]

    def status(self, stream: int) -> int:
        return int(self.answer(stream)["grpc-status"])

    def wait_for(self, kind: FrameType) -> Frame:
        while True:
            found = self.read_frame()
            assert found is not None
            if found.kind == kind:
                return found

    def drained(self) -> int | None:
        """Reads to the end of the connection; the code of the last GOAWAY, None if there was none."""
        while self.read_frame() is not None:
            pass
        return self.goaway
