"""What one HTTP/2 connection may cost. Values come from the operator's limits where HTTP has the same one."""

from typing import Final

import msgspec

STREAMS_MAX: Final = 1024
"""Requests under way on one connection; the client's library holds back further ones, and those sent all the same are
refused with a code that says they may be tried again."""

STREAM_WINDOW_BYTES: Final = 1 << 20
"""What a client may send of one request before we say that we took it in: a round trip of 1 ms at 8 Gbit/s."""

CONNECTION_WINDOW_BYTES: Final = 4 << 20
"""The same for all requests of a connection."""

FRAME_BYTES: Final = 1 << 16
"""Largest frame we ask for; four times the default, for large tensors come in fewer pieces then."""

ALLOWANCE_FRAMES: Final = 1000
ALLOWANCE_FRAMES_PER_S: Final = 100
"""Frames that ask for work and bring none (PING, SETTINGS, PRIORITY, RST_STREAM, empty DATA, WINDOW_UPDATE, unknown
ones): so many at once and so many a second, beside those that answered requests have earned. The most that clients
were seen to send is a PING and two WINDOW_UPDATEs for each frame of an answer."""

EARNED_BY_STREAM: Final = 4
"""Frames earned by a request that was answered."""
EARNED_BY_FRAME: Final = 4
"""Frames earned by a DATA frame of an answer. Go's client sends two WINDOW_UPDATEs for each, and may send them long
after: all of an answer fits its windows."""
EARNED_FRAMES_MAX: Final = 1 << 17
"""Frames a client may have earned and not spent: those for 512 MiB of answers."""


class Http2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one connection."""

    header_list_bytes_max: int = 32 * 1024
    """A request's header list, decoded, as RFC 9113, 6.5.2 counts it (each field 32 more than its bytes). A request
    over it is refused; one twice over it, or whose block is larger still, ends the connection."""
    headers_max: int = 100
    streams_max: int = STREAMS_MAX
