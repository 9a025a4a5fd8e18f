"""What a client's SETTINGS frame says (RFC 9113, 6.5), checked."""

from typing import Final

from farthing.protocols.http2.frames import (
    FRAME_BYTES_DEFAULT,
    FRAME_BYTES_MAX,
    SETTING,
    WINDOW_MAX,
    BrokenConnection,
    ErrorCode,
    Setting,
)

SETTINGS_MAX: Final = 64
"""Settings in one frame; there are six, and a client that knows others sends a few more."""


def read_settings(payload: bytes) -> dict[int, int]:
    """Values by name, unknown ones too; the last of a name counts. Raises `BrokenConnection`."""
    if len(payload) % SETTING.size:
        raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS are six bytes each")
    if len(payload) > SETTINGS_MAX * SETTING.size:
        raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, f"more than {SETTINGS_MAX} settings in a frame")
    values: dict[int, int] = dict(SETTING.iter_unpack(payload))
    if values.get(Setting.ENABLE_PUSH, 0) > 1:
        raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
    if values.get(Setting.INITIAL_WINDOW_SIZE, 0) > WINDOW_MAX:
        raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2^31-1")
    if not FRAME_BYTES_DEFAULT <= values.get(Setting.MAX_FRAME_SIZE, FRAME_BYTES_DEFAULT) <= FRAME_BYTES_MAX:
        raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is not from 2^14 to 2^24-1")
    return values
