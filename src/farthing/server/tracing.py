"""Requests as server spans, over HTTP and gRPC: which are traced, and what their spans say of the wire.

One object a server, and None where spans have nowhere to go: then nothing is spent on them. What happens between the
wire and the engine is noted on the way (`types.trace`); which requests begin a trace is `telemetry.trace_settings`' to
say, exporting `telemetry.otel`'s. Names of spans and attributes are those of OpenTelemetry's semantic conventions
(`http.*`, `rpc.*`, of 2026); ours begin with `farthing.`.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from farthing.protocols.grpc_wire import CODES
from farthing.server.exchange import Exchange
from farthing.server.routes import Match
from farthing.telemetry.counters import RouteClass
from farthing.telemetry.trace_settings import TraceSettings
from farthing.telemetry.traces import RequestSpan, SpanSink, begin_trace, continue_trace
from farthing.types.errors import FarthingError
from farthing.types.trace import Attribute, Trace, TraceContext

if TYPE_CHECKING:
    from farthing.server.grpc_call import Call

BEGINS: Final = (RouteClass.INFER, RouteClass.GENERATE)
"""Requests that may begin a trace, as in Triton; all others only continue one."""

SERVER_FAULTS: Final = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""gRPC statuses that are a server span's error, by the conventions; the others are the client's."""


class Tracing:
    """Where finished requests go, and which ones."""

    def __init__(self, sink: SpanSink, settings: TraceSettings, *, scheme: str) -> None:
        self._sink = sink
        self._settings = settings
        self._scheme = scheme

    def begin(self, model: str) -> Trace | None:
        """A trace that begins with a request to this model, if one is to."""
        return Trace(begin_trace(is_sampled=True)) if self._settings.begins(model) else None

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def exchange_began(self, exchange: Exchange, match: Match, context: TraceContext | None) -> None:
        """A request came, with its caller's trace if it has one."""
        if context is not None:
            exchange.trace = Trace(context) if context.is_sampled else None
        elif match.route.kind in BEGINS:
            if match.args:
                exchange.trace = self.begin(match.args[0])
            else:
                exchange.begin_trace = self.begin  # its body names the model

    def exchange_ended(self, exchange: Exchange, match: Match, status: int, end_ns: int) -> None:
        """It was answered; 0 if its client left."""
        trace = exchange.trace
        if trace is None:
            return
        method, route = exchange.method.decode(), match.route.pattern
        attributes: dict[str, Attribute] = {
            "http.request.method": method,
            "http.route": route,
            "url.path": exchange.path.decode("latin-1"),
            "url.scheme": self._scheme,
            "network.protocol.version": "1.1",
            "http.request.body.size": exchange.body_bytes,
            "farthing.request.id": exchange.request_id,
        }
        if status:
            attributes["http.response.status_code"] = status
        if b"user-agent" in exchange.headers:
            attributes["user_agent.original"] = exchange.headers[b"user-agent"].decode("latin-1")
        model = match.args[0] if match.args and match.route.kind in BEGINS else ""
        if model:
            attributes["farthing.model.name"] = model
        error = str(status) if status >= 500 else ""
        self._export(trace, f"{method} {route}", exchange.received_ns, end_ns, attributes, error, model)

    # -- gRPC ----------------------------------------------------------------------------------------------------

    def call_began(self, call: "Call", headers: Mapping[bytes, bytes]) -> None:
        """A call came: continues its caller's trace."""
        said = headers.get(b"traceparent")
        if said is not None and (context := continue_trace(said.decode("latin-1"))) is not None:
            call.has_context = True
            call.trace = Trace(context) if context.is_sampled else None

    def of_call(self, call: "Call", model: str) -> Trace | None:
        """The trace of a call to a model; begins one if there is none and one is to be."""
        call.model = model
        if not call.has_context:
            call.trace = self.begin(model)
        return call.trace

    def call_ended(self, call: "Call", trace: Trace) -> None:
        """It was answered."""
        code = CODES[call.code]
        method = call.rpc.path.lstrip("/") or "_OTHER"
        attributes = _rpc_attributes(method, code)
        if call.model:
            attributes["farthing.model.name"] = call.model
        error = code if code in SERVER_FAULTS else ""
        self._export(trace, method, call.received_ns, time.monotonic_ns(), attributes, error, call.model)

    def of_stream_request(self, call: "Call", model: str) -> Trace | None:
        """The trace of one request of a stream: below its call's, or one of its own, for streams may live for days."""
        if call.has_context:
            return Trace(call.trace.context.child()) if call.trace is not None else None
        return self.begin(model)

    def stream_request_ended(
        self, call: "Call", trace: Trace, model: str, start_ns: int, error: FarthingError | None
    ) -> None:
        """It had its last answer."""
        code = CODES[error.grpc_status if error is not None else 0]
        method = call.rpc.path.lstrip("/")
        attributes = {**_rpc_attributes(method, code), "farthing.model.name": model}
        fault = code if code in SERVER_FAULTS else ""
        name = f"{method} {model}"
        is_root = not call.has_context
        self._export(trace, name, start_ns, time.monotonic_ns(), attributes, fault, model, is_server=is_root)

    def _export(
        self,
        trace: Trace,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, Attribute],
        error: str,
        model: str,
        *,
        is_server: bool = True,
    ) -> None:
        self._sink.request_span(
            RequestSpan(
                trace=trace,
                name=name,
                start_ns=start_ns,
                end_ns=end_ns,
                to_epoch_ns=time.time_ns() - time.monotonic_ns(),
                attributes=attributes,
                error=error,
                export_after=self._settings.export_after(model),
                is_server=is_server,
            )
        )


def _rpc_attributes(method: str, code: str) -> dict[str, Attribute]:
    return {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
