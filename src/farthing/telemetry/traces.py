"""Which request is this, and whose trace does it belong to? Ids, the W3C `traceparent` header, and where spans go.

All of it is cheap enough for every request: an id is a prefix and a counter, a header is one regular expression.
Exporting spans belongs to `otel`, which is imported only when somebody asked for it.
"""

import re
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple, Protocol

from farthing.types.trace import FLAG_SAMPLED, Attributes, Trace, TraceContext, new_span_id, random

REQUEST_ID_CHARS_MAX: Final = 128
"""Longest `X-Request-Id` taken over from a client; UUIDs have 36, cloud load balancers write up to about 100."""

FLAG_RANDOM: Final = 0x02
_FLAGS_KNOWN: Final = FLAG_SAMPLED | FLAG_RANDOM
"""Flags of W3C Trace Context level 2; others must be sent as zero."""

TRACEPARENT_CHARS_MAX: Final = 512
"""Longest header looked at: version 00 has 55 characters, later versions may append fields."""

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._~:/+=@-]{{1,{REQUEST_ID_CHARS_MAX}}}", re.ASCII)


def continue_trace(traceparent: str) -> TraceContext | None:
    """A new span below the caller's, or None if the header is not a valid `traceparent` (which is then ignored).

    Strict as the recommendation asks: lower case, no zero ids, version ff forbidden, version 00 exactly 55 characters,
    later versions read by their first four fields.
    """
    if len(traceparent) > TRACEPARENT_CHARS_MAX:
        return None
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, parent_span_id, flags, rest = match.groups()
    if rest is not None and version == "00":
        return None
    return TraceContext(trace_id, new_span_id(), parent_span_id, int(flags, 16) & _FLAGS_KNOWN)


def begin_trace(*, is_sampled: bool) -> TraceContext:
    """The first span of a trace of our own."""
    trace_id = f"{random.getrandbits(128) or 1:032x}"
    return TraceContext(trace_id, new_span_id(), "", FLAG_RANDOM | (FLAG_SAMPLED if is_sampled else 0))


def samples(ratio: float) -> Callable[[], bool]:
    """A decision, request by request, that says yes for `ratio` (0 to 1) of the traces that begin here."""
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"trace ratio {ratio} is out of range; allowed: 0 to 1")
    return lambda: random.random() < ratio


def request_ids(prefix: str = "") -> Callable[[], str]:
    """A source of ids that are unique in this process and unlikely to meet those of another: `x7k2m9qa-1f`."""
    start = prefix or "".join(random.choices("23456789abcdefghjkmnpqrstuvwxyz", k=8))
    numbers = count(1)
    return lambda: f"{start}-{next(numbers):x}"


def clean_request_id(value: str) -> str | None:
    """A client's `X-Request-Id` if it is safe to log and to send back, else None: the request gets one of ours."""
    return value if _REQUEST_ID.fullmatch(value) else None


class RequestSpan(NamedTuple):
    """One finished request, from the first byte read to the last byte written, and what was noted on its way.

    All times are monotonic nanoseconds; with `to_epoch_ns` added they count from 1970.
    """

    trace: Trace
    name: str
    start_ns: int
    end_ns: int
    to_epoch_ns: int
    attributes: Attributes
    """By the names of OpenTelemetry's semantic conventions."""
    error: str = ""
    """What went wrong on the server's side, if anything did; a client's mistake is no error of the span's."""
    export_after: int = 0
    """How many finished requests are exported together (Triton's `log_frequency`); 0: whatever came within a second."""
    is_server: bool = True
    """Whether it is what a client asked for; False for a part of that, such as a message of a stream."""


class SpanSink(Protocol):
    """Where finished requests go when tracing is on; without one, `server` holds None and nothing is spent."""

    def request_span(self, span: RequestSpan) -> None:
        """Takes over a finished request; returns at once. Called for sampled requests only."""

    @property
    def dropped(self) -> int:
        """Requests whose spans were lost because the export queue was full."""

    def close(self) -> None:
        """Exports what is left, within a bounded time."""
