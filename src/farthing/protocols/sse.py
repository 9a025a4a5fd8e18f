"""Server-sent events (WHATWG HTML, section 9.2): framing, both ways.

OpenAI's dialect uses `data` lines only and ends a stream with `[DONE]`. What stands in an event belongs to whoever
makes it, sending it to `server`.
"""

from typing import Final

from farthing.types.errors import TooLarge

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
HEADERS: Final = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
"""No cache may keep a stream, and no proxy (nginx reads the second) may collect it before passing it on."""
DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
"""A comment, which clients skip: it keeps proxies from taking a silent stream for a dead one."""
EVENT_BYTES_MAX: Final = 16 << 20
"""What a reader holds of an event that does not end."""


def event(data: bytes) -> bytes:
    """One event. `data` holds no line break, as JSON written compactly never does."""
    return b"data: " + data + b"\n\n"


class Reader:
    """Bytes as they come to the data of whole events; for clients. Fields other than `data` are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of events that ended within these bytes. Raises `TooLarge` for one that grows without end."""
        events: list[bytes] = []
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")  # noqa: PLW2901
            if not line:
                if self._lines:
                    events.append(b"\n".join(self._lines))
                self._lines, self._size = [], 0
            elif line.startswith(b"data:"):
                self._lines.append(line[5:].removeprefix(b" "))
                self._size += len(line)
        if self._size + len(self._rest) > EVENT_BYTES_MAX:
            raise TooLarge(f"one event of the stream is larger than {EVENT_BYTES_MAX} bytes")
        return events
