"""What a traced request notes on its way from the wire to the engine and back.

A request that is not traced has None for a trace, and each room that would note something asks for nothing but that.
Reading headers and beginning traces belongs to `telemetry.traces`, sending them to `telemetry.otel`.
"""

import os
from collections.abc import Mapping
from random import Random
from typing import Final, NamedTuple

FLAG_SAMPLED: Final = 0x01

SPANS_MAX: Final = 512
"""Spans one request may note; beyond that they are left out. Calls may lead to calls, and there is an end to it."""

Attribute = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Attribute]
NO_ATTRIBUTES: Final[Attributes] = {}

# Seeded by the operating system; ids need to be unlikely to meet, not hard to guess.
random: Final = Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=random.seed)


class TraceContext(NamedTuple):
    """A span's place in a trace: whose child it is, and its own id."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits: the span's own."""
    parent_span_id: str
    """The span it is below; empty where the trace begins here."""
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether spans are to be recorded."""
        return self.flags & FLAG_SAMPLED == FLAG_SAMPLED

    def header(self) -> str:
        """The `traceparent` that names this span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def child(self) -> "TraceContext":
        """A new span below this one."""
        return TraceContext(self.trace_id, new_span_id(), self.span_id, self.flags)


class Span(NamedTuple):
    """Something that happened for a request. Times are monotonic nanoseconds."""

    context: TraceContext
    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    links: tuple[TraceContext, ...] = ()
    """Spans it has to do with beside its parent: those that shared its batch."""
    error: str = ""
    """Class name of the error it ended with, if it did."""


class Trace:
    """A place in a trace, and what was noted below it. Written to by one thread."""

    __slots__ = ("context", "spans")

    def __init__(self, context: TraceContext, spans: list[Span] | None = None) -> None:
        self.context = context
        self.spans: list[Span] = [] if spans is None else spans

    def below(self) -> "Trace":
        """A place below this one; what is noted there is kept with what is noted here."""
        return Trace(self.context.child(), self.spans)

    def note(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        context: TraceContext | None = None,
        links: tuple[TraceContext, ...] = (),
        error: str = "",
    ) -> None:
        """Notes a span; `context` is its own place, else a new one below this."""
        if len(self.spans) < SPANS_MAX:
            place = self.context.child() if context is None else context
            self.spans.append(Span(place, name, start_ns, end_ns, attributes, links, error))


def new_span_id() -> str:
    """16 hexadecimal digits, not all zero."""
    return f"{random.getrandbits(64) or 1:016x}"
