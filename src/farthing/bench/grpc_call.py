"""One gRPC call, for what must be known before a load: what a model takes, and whether it answers at all."""

import socket
from typing import TYPE_CHECKING, Final

import hpack

from farthing.bench.load import Message
from farthing.bench.wire import grpc_message
from farthing.types.errors import EngineFailed, Unavailable

if TYPE_CHECKING:
    from farthing.bench.endpoint import Endpoint

TIMEOUT_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 1 << 30
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 4, 6, 8, 9
_WINDOW_BYTES: Final = 0x7FFFFFFF
SERVICE_PATH: Final = "/inference.GRPCInferenceService/"


class RefusedCall(EngineFailed):
    """The call ended with a status of its own (0 to 16; 2 where there was none)."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the server refused: {said}")
        self.status, self.said = status, said


def call(endpoint: "Endpoint", method: str, request: bytes) -> bytes:
    """The answer's message, serialised. Raises `RefusedCall` with the server's words, `Unavailable` without any."""
    message = grpc_message(SERVICE_PATH + method, endpoint.netloc, endpoint.headers, request)
    return exchange(endpoint, message, TIMEOUT_S)


def exchange(endpoint: "Endpoint", message: Message, timeout_s: float) -> bytes:
    """The same of a message that is framed already."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout_s) as wire:
            wire.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"\0\4" + _WINDOW_BYTES.to_bytes(4, "big")))
            wire.sendall(_frame(_WINDOW, 0, 0, (_WINDOW_BYTES - 65_535).to_bytes(4, "big")))
            wire.sendall(_frame(_HEADERS, 4, 1, message.head))
            return _answer(wire, message.data)
    except OSError as error:
        raise Unavailable(f"{endpoint.netloc} cannot be reached: {error}", hint="is the server running?") from error


def _answer(wire: socket.socket, unsent: bytes) -> bytes:
    headers, body, block, decoder = dict[str, str](), bytearray(), b"", hpack.Decoder()
    room, frame_max, is_last = {0: 65_535, 1: 65_535}, 16_384, False
    stream = wire.makefile("rb")
    while True:
        while unsent and (take := min(room[0], room[1], frame_max, len(unsent))) > 0:
            part, unsent = unsent[:take], unsent[take:]
            wire.sendall(_frame(_DATA, 0 if unsent else 1, 1, part))
            room = {0: room[0] - take, 1: room[1] - take}
        head = stream.read(9)
        if len(head) < 9:
            raise Unavailable("the server hung up before its answer was whole", hint="does it speak gRPC at this port?")
        kind, flags, payload = head[3], head[4], stream.read(int.from_bytes(head[:3], "big"))
        which = int.from_bytes(head[5:], "big") & _WINDOW_BYTES
        if kind == _DATA:
            body += payload
            if len(body) > ANSWER_BYTES_MAX:
                raise EngineFailed(f"the answer is over {ANSWER_BYTES_MAX:,} bytes")
        elif kind in {_HEADERS, _CONTINUATION}:
            block, is_last = (payload, bool(flags & 1)) if kind == _HEADERS else (block + payload, is_last)
            if flags & 4:
                headers |= {str(name): str(value) for name, value in decoder.decode(block)}
        elif kind == _SETTINGS and not flags & 1:
            for at in range(0, len(payload) - 5, 6):
                value = int.from_bytes(payload[at + 2 : at + 6], "big")
                if payload[at + 1] == 4:
                    room[1] += value - 65_535
                elif payload[at + 1] == 5:
                    frame_max = value
            wire.sendall(_frame(_SETTINGS, 1, 0, b""))
        elif kind == _WINDOW and which in room:
            room[which] += int.from_bytes(payload, "big")
        elif kind == _PING and not flags & 1:
            wire.sendall(_frame(_PING, 1, 0, payload))
        if (kind == _DATA and flags & 1) or (is_last and kind in {_HEADERS, _CONTINUATION} and flags & 4):
            if headers.get("grpc-status") != "0":
                status = headers.get("grpc-status", "2")
                raise RefusedCall(int(status), headers.get("grpc-message", f"status {status}: {headers}"))
            return bytes(body[5:])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
