"""The frames of HTTP/2 (RFC 9113, 4 and 6) as numbers and bytes. What they mean to a connection is `connection`'s."""

import struct
from enum import IntEnum, IntFlag
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113, 3.4)."""

HEAD_BYTES: Final = 9
FRAME_HEAD: Final = struct.Struct(">IBI")
"""Length and type in one number, flags, stream: the nine bytes before every payload (RFC 9113, 4.1)."""

UINT32: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")

STREAM_ID_MAX: Final = (1 << 31) - 1
WINDOW_MAX: Final = (1 << 31) - 1
WINDOW_DEFAULT: Final = 65_535
FRAME_BYTES_DEFAULT: Final = 16_384
FRAME_BYTES_MAX: Final = (1 << 24) - 1
HEADER_TABLE_BYTES_DEFAULT: Final = 4096


class FrameType(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class ErrorCode(IntEnum):
    """RFC 9113, 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class BrokenConnection(Exception):
    """The peer broke a rule that ends the connection (RFC 9113, 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame (6.5)."""
    return frame(FrameType.SETTINGS, 0, 0, b"".join([SETTING.pack(name, value) for name, value in values.items()]))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame (6.9)."""
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, UINT32.pack(increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame (6.4)."""
    return frame(FrameType.RST_STREAM, 0, stream_id, UINT32.pack(code))


def goaway(last_stream_id: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    """A GOAWAY frame (6.8)."""
    return frame(FrameType.GOAWAY, 0, 0, UINT32.pack(last_stream_id) + UINT32.pack(code) + debug)


def ping(payload: bytes, *, is_ack: bool = False) -> bytes:
    """A PING frame (6.7)."""
    return frame(FrameType.PING, Flag.ACK if is_ack else 0, 0, payload)
