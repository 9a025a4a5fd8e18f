"""Finished requests as OpenTelemetry spans, sent over OTLP/HTTP. Needs `pip install farthing[otel]`.

This is the only file that imports OpenTelemetry, and it does so when `open_span_sink` finds that tracing is asked
for. The event loop only queues a finished request; a thread builds its spans, from times that were measured anyway
and with the ids the client was told, and exports them in batches. (The SDK's batch processor would want built spans
and logs a line for each one it drops.) Which requests are sampled was decided by `traces` when they came in.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from farthing.telemetry.traces import RequestSpan, SpanSink
from farthing.types.errors import InvalidSetting
from farthing.types.trace import Attributes, Span, TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, SpanKind

LOG: Final = logging.getLogger(__name__)

QUEUE_REQUESTS_MAX: Final = 4096
"""Finished requests waiting for export; beyond that they are dropped and counted."""

BATCH_REQUESTS_MAX: Final = 256
"""Requests in one export: some 6 spans each, which stays well under the 4 MiB that collectors take at once."""

DELAY_S: Final = 1.0
"""Longest wait for an export to fill up, so that a trace can be looked at while its reader remembers it."""

CLOSE_TIMEOUT_S: Final = 3.0
"""How long `close` waits for a collector; a drain is not to hang on one that is gone."""


def endpoint_of(setting: str, environ: Mapping[str, str]) -> str:
    """Where spans go: the setting, else what OpenTelemetry's own variables say; empty for nowhere."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    if setting:
        return _with_path(setting)
    if for_traces := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip():
        return for_traces
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    return _with_path(base) if base else ""


def ratio_of(environ: Mapping[str, str]) -> float:
    """Share of the traces that begin here to record, as `OTEL_TRACES_SAMPLER` and its `_ARG` say; all by default."""
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().removeprefix("parentbased_")
    if sampler in ("", "always_on"):
        return 1.0
    if sampler == "always_off":
        return 0.0
    argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "1").strip() or "1"
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if sampler != "traceidratio" or not 0.0 <= ratio <= 1.0:
        raise InvalidSetting(
            f"OTEL_TRACES_SAMPLER={sampler} with OTEL_TRACES_SAMPLER_ARG={argument} is not understood",
            hint="use always_on, always_off, traceidratio or their parentbased_ forms, with a ratio from 0 to 1",
        )
    return ratio


def open_span_sink(*, setting: str, environ: Mapping[str, str], version: str) -> SpanSink | None:
    """A sink that exports spans if the setting or the environment names an endpoint, else None."""
    endpoint = endpoint_of(setting, environ)
    if not endpoint:
        return None
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise InvalidSetting(
            f"trace endpoint `{endpoint}` is no HTTP address",
            hint="spans are sent over OTLP/HTTP, for example to http://127.0.0.1:4318",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        missing = InvalidSetting(
            f"traces are to be sent to {endpoint}, but OpenTelemetry is not installed ({error})",
            hint="pip install 'farthing[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        )
        if setting:
            raise missing from error
        # The variable is often set for everything on a machine; that is no reason not to serve.
        LOG.warning("%s", missing)
        return None
    return OtelSpanSink(OTLPSpanExporter(endpoint=endpoint), version)


class OtelSpanSink:
    """Queues finished requests, and exports their spans from a thread of its own."""

    def __init__(self, exporter: "SpanExporter", version: str, *, delay_s: float = DELAY_S) -> None:
        self._exporter = exporter
        self._spans = SpanBuilder(version)
        self._delay_s = delay_s
        self._dropped_requests = 0
        self._queue: queue.Queue[RequestSpan | None] = queue.Queue(QUEUE_REQUESTS_MAX)
        self._thread = threading.Thread(target=self._run, name="farthing-traces", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Requests whose spans were lost because the export queue was full."""
        return self._dropped_requests

    def request_span(self, span: RequestSpan) -> None:
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            self._dropped_requests += 1

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            LOG.warning("traces were not exported in time: the collector does not keep up")
        self._thread.join(max(0.0, deadline - time.monotonic()))
        # Also ends the exporter's own retries, if the thread is still in them.
        self._exporter.shutdown()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            spans = [span for request in batch for span in self._spans.build(request)]
            if not spans:
                continue
            try:
                self._exporter.export(spans)
            except Exception:
                # Whatever a collector or its exporter does wrong: tracing may fail, serving may not.
                LOG.exception("exporting %d spans failed", len(spans))

    def _next_batch(self) -> tuple[list[RequestSpan], bool]:
        """Waits for requests; False with the last ones."""
        batch: list[RequestSpan] = []
        deadline = 0.0
        while len(batch) < BATCH_REQUESTS_MAX:
            try:
                request = self._queue.get(timeout=max(0.0, deadline - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if request is None:
                return batch, False
            if not batch:
                deadline = time.monotonic() + self._delay_s
            batch.append(request)
            if 0 < request.export_after <= len(batch):
                break
        return batch, True


class SpanBuilder:
    """Builds the spans of a request: the request itself, and below it what happened to it on the way."""

    def __init__(self, version: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        resource = Resource.create()
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what we would say.
        if str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "farthing"}))
        if "service.version" not in resource.attributes:
            resource = resource.merge(Resource({"service.version": version}))
        self._resource: Resource = resource
        self._scope = InstrumentationScope("farthing", version)

    def build(self, request: RequestSpan) -> "list[ReadableSpan]":
        from opentelemetry.trace import SpanKind

        context, shift_ns = request.trace.context, request.to_epoch_ns
        own = Span(context, request.name, request.start_ns, request.end_ns, request.attributes, (), request.error)
        noted = list(request.trace.spans)
        return [
            self._span(
                own,
                shift_ns,
                SpanKind.SERVER if request.is_server else SpanKind.INTERNAL,
                is_remote=request.is_server,
            ),
            *[self._span(span, shift_ns, SpanKind.INTERNAL, is_remote=False) for span in noted],
        ]

    def _span(self, span: Span, shift_ns: int, kind: "SpanKind", *, is_remote: bool) -> "ReadableSpan":
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Link
        from opentelemetry.trace.status import Status, StatusCode

        context = span.context
        parent = _span_context(context, context.parent_span_id, is_remote) if context.parent_span_id else None
        attributes: Attributes = {**span.attributes, "error.type": span.error} if span.error else span.attributes
        return ReadableSpan(
            name=span.name,
            context=_span_context(context, context.span_id),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            links=[Link(_span_context(link, link.span_id)) for link in span.links],
            kind=kind,
            status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
            start_time=span.start_ns + shift_ns,
            end_time=span.end_ns + shift_ns,
            instrumentation_scope=self._scope,
        )


def _span_context(context: TraceContext, span_id: str, is_remote: bool = False) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(context.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(context.flags))


def _with_path(base: str) -> str:
    """The traces path below a base address, as the OTLP exporter specification builds it."""
    return base if base.rstrip("/").endswith("/v1/traces") else f"{base.rstrip('/')}/v1/traces"
