"""Which request is this, and whose trace does it belong to? Ids, the W3C `traceparent` header, and where spans go.

All of it is cheap enough for every request: an id is a prefix and a counter, a header is one regular expression.
Exporting spans belongs to `otel`, which is imported only when somebody asked for it.
"""

import os
import re
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Final, NamedTuple, Protocol

from farthing.types.requests import Timing

REQUEST_ID_CHARS_MAX: Final = 128
"""Longest `X-Request-Id` taken over from a client; UUIDs have 36, cloud load balancers write up to about 100."""

FLAG_SAMPLED: Final = 0x01
FLAG_RANDOM: Final = 0x02
_FLAGS_KNOWN: Final = FLAG_SAMPLED | FLAG_RANDOM
"""Flags of W3C Trace Context level 2; others must be sent as zero."""

TRACEPARENT_CHARS_MAX: Final = 512
"""Longest header looked at: version 00 has 55 characters, later versions may append fields."""

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._~:/+=@-]{{1,{REQUEST_ID_CHARS_MAX}}}", re.ASCII)

# Seeded by the operating system; ids need to be unlikely to meet, not hard to guess.
_random = Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


class TraceContext(NamedTuple):
    """A request's place in a trace: whose child it is and its own span."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits: this request's own span."""
    parent_span_id: str
    """The caller's span; empty where the trace begins here."""
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether spans are to be recorded."""
        return self.flags & FLAG_SAMPLED == FLAG_SAMPLED

    def header(self) -> str:
        """The `traceparent` that names this request's span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def child(self) -> "TraceContext":
        """A new span below this one, such as a call to another service."""
        return TraceContext(self.trace_id, new_span_id(), self.span_id, self.flags)


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
    trace_id = f"{_random.getrandbits(128) or 1:032x}"
    return TraceContext(trace_id, new_span_id(), "", FLAG_RANDOM | (FLAG_SAMPLED if is_sampled else 0))


def new_span_id() -> str:
    return f"{_random.getrandbits(64) or 1:016x}"


def samples(ratio: float) -> Callable[[], bool]:
    """A decision, request by request, that says yes for `ratio` (0 to 1) of the traces that begin here."""
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"trace ratio {ratio} is out of range; allowed: 0 to 1")
    return lambda: _random.random() < ratio


def request_ids(prefix: str = "") -> Callable[[], str]:
    """A source of ids that are unique in this process and unlikely to meet those of another: `x7k2m9qa-1f`."""
    start = prefix or "".join(_random.choices("23456789abcdefghjkmnpqrstuvwxyz", k=8))
    numbers = count(1)
    return lambda: f"{start}-{next(numbers):x}"


def clean_request_id(value: str) -> str | None:
    """A client's `X-Request-Id` if it is safe to log and to send back, else None: the request gets one of ours."""
    return value if _REQUEST_ID.fullmatch(value) else None


class RequestSpan(NamedTuple):
    """One finished request, from the first byte read to the last byte written. Times are nanoseconds since 1970."""

    context: TraceContext
    method: str
    route: str
    """The path with its variable parts named, such as `/v2/models/{model}/infer`."""
    status: int
    start_ns: int
    end_ns: int
    request_id: str
    model: str = ""
    version: str = ""
    queued_ns: int = 0
    """When the request was read, understood and queued; 0 if it never was."""
    timing: Timing | None = None
    """What happened from then on; None if the model did not run."""
    error: str = ""
    """Class name of the error answered, if any."""


class SpanSink(Protocol):
    """Where finished requests go when tracing is on; without one, `server` holds None and nothing is spent."""

    def request_span(self, span: RequestSpan) -> None:
        """Takes over a finished request; returns at once. Called for sampled requests only."""

    @property
    def dropped(self) -> int:
        """Requests whose spans were lost because the export queue was full."""

    def close(self) -> None:
        """Exports what is left, within a bounded time."""
