"""One request and its answer on an HTTP/2 connection: its place in the state machine of RFC 9113, 5.1, and its windows.

A stream exists from its HEADERS until both sides have ended it, or either has reset it. Whatever is sent by
`connection`; what it means belongs to the layer above, which keeps its own object in `call`.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

from farthing.protocols.http2.frames import UINT32
from farthing.protocols.http2.header_blocks import Field, Fields
from farthing.protocols.http2.limits import STREAM_WINDOW_BYTES

if TYPE_CHECKING:
    from farthing.protocols.http2.connection import Connection


class Stream:
    """A stream that is open or half-closed; after its end, only its own flags are still true."""

    __slots__ = (
        "body_left",
        "call",
        "connection",
        "has_ended_in",
        "has_ended_out",
        "has_sent_head",
        "id",
        "id_bytes",
        "is_closed",
        "last_fields",
        "receive_window",
        "send_delta",
        "sent_bytes",
        "taken_bytes",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, connection: "Connection", stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.id_bytes = UINT32.pack(stream_id)
        self.call: Any = None
        self.body_left = -1
        """Bytes that its content-length says are still to come; -1 where it says nothing."""
        self.has_ended_in = False
        """The client has sent all it will."""
        self.has_sent_head = False
        self.has_ended_out = False
        """We have said all we will; some of it may still be `unsent`."""
        self.is_closed = False
        self.receive_window = STREAM_WINDOW_BYTES
        self.taken_bytes = 0
        """Taken in since the client was last given more window."""
        self.send_delta = 0
        """The send window, less the client's SETTINGS_INITIAL_WINDOW_SIZE: a change of that moves all streams' windows
        (RFC 9113, 6.9.2) without touching any."""
        self.sent_bytes = 0
        """Sent of what had to wait."""
        self.unsent: deque[memoryview] | None = None
        """What windows or the socket hold back."""
        self.unsent_bytes = 0
        self.last_fields: tuple[Fields, tuple[Field, ...]] | None = None
        """Trailers that wait behind `unsent`."""

    def is_as_long_as_said(self, size: int, *, is_last: bool) -> bool:
        """Counts a part of the body against its content-length (RFC 9113, 8.1.1)."""
        if self.body_left < 0:
            return True
        self.body_left -= size
        return self.body_left == 0 if is_last else self.body_left >= 0
