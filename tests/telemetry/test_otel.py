import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from farthing.telemetry.otel import (
    BATCH_REQUESTS_MAX,
    QUEUE_REQUESTS_MAX,
    OtelSpanSink,
    endpoint_of,
    open_span_sink,
    ratio_of,
)
from farthing.telemetry.traces import RequestSpan, TraceContext, begin_trace, continue_trace
from farthing.types.errors import InvalidSetting
from farthing.types.requests import Timing

START_NS = 1_795_436_413_000_000_000
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIMING = Timing(queue_ns=400, input_ns=30, compute_ns=2000, output_ns=50, batch_rows=8, batch_requests=3)


def finished(context: TraceContext | None = None, status: int = 200, **more: Any) -> RequestSpan:
    return RequestSpan(
        context=context or begin_trace(is_sampled=True),
        method="POST",
        route="/v2/models/{model}/infer",
        status=status,
        start_ns=START_NS,
        end_ns=START_NS + 5000,
        request_id="a-1",
        **more,
    )


class Collector:
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.received.append((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def exported(requests: Sequence[RequestSpan]) -> Sequence[Any]:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    sink = OtelSpanSink(exporter, "0.1.0")
    for request in requests:
        sink.request_span(request)
    sink.close()
    spans: Sequence[Any] = exporter.get_finished_spans()
    return spans


def test_a_request_becomes_a_server_span_below_its_caller_with_its_stages_below_it() -> None:
    context = continue_trace(HEADER)
    assert context is not None
    spans = exported([finished(context, model="mlp", version="1", queued_ns=START_NS + 100, timing=TIMING)])
    server, *stages = spans
    assert server.name == "POST /v2/models/{model}/infer"
    assert server.kind.name == "SERVER"
    assert f"{server.context.trace_id:032x}" == context.trace_id
    assert f"{server.context.span_id:016x}" == context.span_id, "the span has the id that the client was told"
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.parent.is_remote
    assert (server.start_time, server.end_time) == (START_NS, START_NS + 5000)
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "farthing.request.id": "a-1",
        "farthing.model.name": "mlp",
        "farthing.model.version": "1",
    }
    assert [(s.name, s.start_time - START_NS, s.end_time - START_NS) for s in stages] == [
        ("queue", 100, 500),
        ("compute_input", 500, 530),
        ("compute_infer", 530, 2530),
        ("compute_output", 2530, 2580),
    ]
    assert {stage.parent.span_id for stage in stages} == {server.context.span_id}
    assert len({stage.context.span_id for stage in stages}) == 4
    assert dict(stages[2].attributes) == {"farthing.batch.rows": 8, "farthing.batch.requests": 3}


def test_a_request_that_never_reached_a_model_is_one_span() -> None:
    (span,) = exported([finished(status=404, error="NotFound")])
    assert span.parent is None
    assert span.attributes["error.type"] == "NotFound"
    assert span.status.status_code.name == "UNSET", "what the client did wrong is not the server's error"


def test_our_own_failures_are_errors() -> None:
    (span,) = exported([finished(status=500, error="EngineFailed")])
    assert span.status.status_code.name == "ERROR"


def test_the_operators_names_for_the_service_go_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    (span,) = exported([finished()])
    assert (span.resource.attributes["service.name"], span.resource.attributes["service.version"]) == (
        "farthing",
        "0.1.0",
    )
    monkeypatch.setenv("OTEL_SERVICE_NAME", "risk-models")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,deployment.environment=test")
    (span,) = exported([finished()])
    assert span.resource.attributes["service.name"] == "risk-models"
    assert span.resource.attributes["service.version"] == "7"
    assert span.resource.attributes["deployment.environment"] == "test"


def test_spans_reach_a_collector_over_otlp_http(collector: Collector) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sink = open_span_sink(setting="", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}, version="0.1.0")
    assert sink is not None
    contexts = [begin_trace(is_sampled=True) for _ in range(BATCH_REQUESTS_MAX + 1)]
    for context in contexts:
        sink.request_span(finished(context, model="mlp", version="1", queued_ns=START_NS + 100, timing=TIMING))
    sink.close()
    assert {path for path, _ in collector.received} == {"/v1/traces"}
    spans = [
        span
        for _, body in collector.received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    servers = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
    assert [(s.trace_id.hex(), s.span_id.hex()) for s in servers] == [(c.trace_id, c.span_id) for c in contexts]
    assert len(spans) == 5 * len(contexts)
    assert sink.dropped == 0


def test_a_full_queue_drops_and_counts_and_an_exporter_that_fails_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    is_stuck, go_on = threading.Event(), threading.Event()
    sizes: list[int] = []

    class Stuck:
        def export(self, spans: Sequence[object]) -> None:
            sizes.append(len(spans))
            is_stuck.set()
            go_on.wait()
            raise OSError("collector on fire")

        def shutdown(self) -> None:
            pass

    sink = OtelSpanSink(Stuck(), "0", delay_s=0.0)  # type: ignore[arg-type] # what the sink uses of an exporter
    sink.request_span(finished())
    is_stuck.wait()
    for _ in range(QUEUE_REQUESTS_MAX + 5):
        sink.request_span(finished())
    assert sink.dropped == 5
    go_on.set()
    sink.close()
    assert sum(sizes) == QUEUE_REQUESTS_MAX + 1
    assert max(sizes) <= BATCH_REQUESTS_MAX
    assert "collector on fire" in caplog.text


@pytest.mark.parametrize(
    ("setting", "environ", "endpoint"),
    [
        ("", {}, ""),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/v1/traces", {}, "http://c:4318/v1/traces"),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        (
            "",
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/t", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://d"},
            "http://c/t",
        ),
        ("http://c:4318", {"OTEL_SDK_DISABLED": "true"}, ""),
        ("http://c", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d"}, "http://c/v1/traces"),
    ],
)
def test_where_spans_go_is_read_as_opentelemetry_prescribes(
    setting: str, environ: dict[str, str], endpoint: str
) -> None:
    assert endpoint_of(setting, environ) == endpoint


def test_no_endpoint_means_no_sink_and_no_import_of_opentelemetry() -> None:
    program = (
        "import sys\n"
        "from farthing.telemetry.otel import open_span_sink\n"
        "assert open_span_sink(setting='', environ={}, version='0') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_endpoint_that_is_no_http_address_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="`grpc://c:4317/v1/traces` is no HTTP address"):
        open_span_sink(setting="grpc://c:4317", environ={}, version="0")


def test_without_opentelemetry_a_setting_is_an_error_and_the_variable_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'farthing\[otel\]'"):
        open_span_sink(setting="http://127.0.0.1:1", environ={}, version="0")
    with caplog.at_level(logging.WARNING):
        assert (
            open_span_sink(setting="", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, version="0")
            is None
        )
    assert "OpenTelemetry is not installed" in caplog.text


@pytest.mark.parametrize(
    ("environ", "ratio"),
    [
        ({}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, 1.0),
    ],
)
def test_the_sampling_ratio_is_read_as_opentelemetry_prescribes(environ: dict[str, str], ratio: float) -> None:
    assert ratio_of(environ) == ratio


@pytest.mark.parametrize(
    ("sampler", "argument"), [("jaeger_remote", "1"), ("traceidratio", "2"), ("traceidratio", "x")]
)
def test_a_sampler_nobody_knows_is_refused(sampler: str, argument: str) -> None:
    with pytest.raises(InvalidSetting, match=f"OTEL_TRACES_SAMPLER={sampler}"):
        ratio_of({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
