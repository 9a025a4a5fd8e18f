import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from tests.collector import collecting

from farthing.telemetry.otel import (
    BATCH_REQUESTS_MAX,
    QUEUE_REQUESTS_MAX,
    OtelSpanSink,
    endpoint_of,
    open_span_sink,
    ratio_of,
)
from farthing.telemetry.traces import RequestSpan, begin_trace, continue_trace
from farthing.types.errors import InvalidSetting
from farthing.types.trace import SPANS_MAX, Trace

START_NS = 1_795_436_413_000_000_000
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def finished(trace: Trace | None = None, **more: Any) -> RequestSpan:
    return RequestSpan(
        trace=trace or Trace(begin_trace(is_sampled=True)),
        name="POST /v2/models/{m}/infer",
        start_ns=0,
        end_ns=5000,
        to_epoch_ns=START_NS,
        attributes={"http.response.status_code": 200},
        **more,
    )


def exported(requests: Sequence[RequestSpan]) -> Sequence[Any]:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    sink = OtelSpanSink(exporter, "0.1.0")
    for request in requests:
        sink.request_span(request)
    sink.close()
    spans: Sequence[Any] = exporter.get_finished_spans()
    return spans


def test_a_request_becomes_a_server_span_below_its_caller_with_what_was_noted_below_it() -> None:
    context = continue_trace(HEADER)
    assert context is not None
    trace = Trace(context)
    step = trace.below()
    step.note("queue", 100, 500, {"rows": 8, "reasons": ("stop", "length")}, links=(context,))
    trace.note("step", 50, 600, context=step.context, error="EngineFailed")
    server, queue, noted = exported([finished(trace)])
    assert (server.name, server.kind.name, server.status.status_code.name) == (
        "POST /v2/models/{m}/infer",
        "SERVER",
        "UNSET",
    )
    assert f"{server.context.trace_id:032x}" == context.trace_id
    assert f"{server.context.span_id:016x}" == context.span_id, "the span has the id that the client was told"
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.parent.is_remote
    assert (server.start_time, server.end_time) == (START_NS, START_NS + 5000)
    assert dict(server.attributes) == {"http.response.status_code": 200}
    assert (noted.name, noted.parent.span_id, noted.parent.is_remote) == ("step", server.context.span_id, False)
    assert (noted.status.status_code.name, noted.attributes["error.type"]) == ("ERROR", "EngineFailed")
    assert (queue.kind.name, queue.parent.span_id) == ("INTERNAL", noted.context.span_id)
    assert (queue.start_time - START_NS, queue.end_time - START_NS) == (100, 500)
    assert dict(queue.attributes) == {"rows": 8, "reasons": ("stop", "length")}
    assert [link.context.span_id for link in queue.links] == [server.context.span_id]


def test_what_the_server_did_wrong_is_an_error_of_the_span() -> None:
    (span,) = exported([finished(error="500")])
    assert span.parent is None
    assert (span.attributes["error.type"], span.status.status_code.name) == ("500", "ERROR")


def test_there_is_an_end_to_what_one_request_notes() -> None:
    trace = Trace(begin_trace(is_sampled=True))
    for number in range(SPANS_MAX + 10):
        trace.below().note("call", number, number + 1)
    assert len(exported([finished(trace)])) == SPANS_MAX + 1


def test_so_many_finished_requests_make_an_export() -> None:
    sizes: list[int] = []
    done = threading.Event()

    class Counting:
        def export(self, spans: Sequence[object]) -> None:
            sizes.append(len(spans))
            if sum(sizes) == 4:
                done.set()

        def shutdown(self) -> None:
            pass

    sink = OtelSpanSink(Counting(), "0", delay_s=3600.0)  # type: ignore[arg-type] # what the sink uses of an exporter
    for _ in range(4):
        sink.request_span(finished(export_after=2))
    assert done.wait(20.0), "nobody waits an hour for more"
    assert sizes == [2, 2]
    sink.close()


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


def test_spans_reach_a_collector_over_otlp_http() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collecting() as collector:
        sink = open_span_sink(setting="", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}, version="0.1.0")
        assert sink is not None
        traces = [Trace(begin_trace(is_sampled=True)) for _ in range(BATCH_REQUESTS_MAX + 1)]
        for trace in traces:
            trace.note("queue", 100, 500)
            sink.request_span(finished(trace))
        sink.close()
        assert collector.paths == {"/v1/traces"}
        spans = collector.spans()
    servers = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
    assert [(s.trace_id.hex(), s.span_id.hex()) for s in servers] == [
        (trace.context.trace_id, trace.context.span_id) for trace in traces
    ]
    assert len(spans) == 2 * len(traces)
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
