import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from farthing.telemetry import catalogue
from farthing.telemetry.counters import DurationHistogram, HttpCounters, RejectReason, RouteClass
from farthing.telemetry.metrics import CONTENT_TYPE, Metrics, ModelSample, render
from farthing.telemetry.process import MachineSample, ProcessReader, ProcessSample
from farthing.telemetry.statistics import FailureReason, MemoryUsage, ModelStatistics, SequenceCounts

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


class Models:
    """Two versions of one model and another with a name that needs escaping."""

    def __init__(self) -> None:
        self.busy = ModelStatistics()
        for rows in (1, 2, 3, 5000):
            self.busy.batch_done(
                requests=2, rows=rows, queue_ns=4_000, input_ns=1_000, compute_ns=5_000, output_ns=2_000, now_ms=1
            )
        for duration_ns in (1, 60_000, 2_000_000, 20_000_000_000):
            self.busy.request_done(duration_ns, 1_000)
        self.busy.failed("REJECTED", 2)
        self.busy.cache_hit(3_000)
        self.busy.cache_miss(4_000)
        self.busy.load_ns = 1_500_000_000
        self.busy.pending_requests, self.busy.pending_rows, self.busy.running_batches = 5, 6, 1
        self.busy.memory_usage = (MemoryUsage(type="CPU", id=0, byte_size=4096),)

    def memory_bytes(self) -> tuple[int, int]:
        return 3 << 20, 1 << 30

    def model_samples(self) -> Iterable[ModelSample]:
        yield ModelSample("mlp", "1", True, self.busy)
        yield ModelSample("mlp", "2", False, ModelStatistics())
        yield ModelSample('odd "name"\\', "1", True, ModelStatistics())


@pytest.fixture
def metrics() -> Metrics:
    http = HttpCounters()
    http.connections_open, http.connections_total, http.requests_in_flight = 3, 9, 2
    http.bytes_received, http.bytes_sent = 1000, 2000
    http.answered("infer", 200)
    http.answered("infer", 503)
    http.rejected["malformed"] = 4
    lag = DurationHistogram()
    lag.observe(1_000_000)
    return Metrics(
        version="0.1.0",
        models=Models(),
        http=http,
        loop_lag=lag,
        log_records_dropped=lambda: 11,
        spans_dropped=lambda: 12,
        reader=FullReader(),
    )


class FullReader(ProcessReader):
    """Also knows what the first look cannot know, or this system does not say."""

    def machine(self) -> MachineSample:
        return MachineSample(0.5, 2000, 1000)

    def process(self) -> ProcessSample:
        return super().process()._replace(cpu_seconds=1.5, resident_bytes=1, open_fds=1, max_fds=2)


def families(text: bytes) -> dict[str, Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(text.decode())}


def value(text: bytes, sample: str) -> float:
    (line,) = [line for line in text.decode().splitlines() if line.startswith(f"{sample} ")]
    return float(line.rpartition(" ")[2])


def test_the_text_format_is_named_as_prometheus_asks_for_it() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_every_sample_comes_back_from_prometheus_own_parser(metrics: Metrics) -> None:
    text = render(metrics.scrape())
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    parsed = [sample for metric in families(text).values() for sample in metric.samples]
    assert len(parsed) == len(lines)
    assert {'odd "name"\\'} <= {sample.labels.get("model") for sample in parsed}


def test_every_metric_of_the_catalogue_is_written_once_with_its_type_and_labels(metrics: Metrics) -> None:
    text = render(metrics.scrape()).decode()
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert sorted(declared) == sorted((family.name, family.type) for family in catalogue.FAMILIES)
    by_name = {family.name: family for family in catalogue.FAMILIES}
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            current = line.split()[2]
        elif not line.startswith("#"):
            labels = set(re.findall(r'(?:\{|,)(\w+)="', line)) - {"le"}
            assert labels == set(by_name[current].labels), line
            assert re.match(rf"{current}(_bucket|_sum|_count)?[{{ ]", line), line


def test_tritons_counters_carry_tritons_names_without_a_suffix(metrics: Metrics) -> None:
    text = render(metrics.scrape())
    labels = '{model="mlp",version="1"}'
    assert value(text, f"nv_inference_request_success{labels}") == 4
    assert value(text, f"nv_inference_count{labels}") == 5006
    assert value(text, f"nv_inference_exec_count{labels}") == 4
    assert value(text, f"nv_inference_queue_duration_us{labels}") == 16
    assert value(text, f"nv_inference_compute_input_duration_us{labels}") == 8
    assert value(text, f"nv_inference_compute_infer_duration_us{labels}") == 40
    assert value(text, f"nv_inference_compute_output_duration_us{labels}") == 16
    assert value(text, f"nv_inference_pending_request_count{labels}") == 5
    assert value(text, f"nv_model_load_duration_secs{labels}") == 1.5
    assert value(text, f"nv_cache_num_hits_per_model{labels}") == 1
    assert value(text, f"nv_cache_miss_duration_per_model{labels}") == 4
    assert value(text, 'nv_inference_request_failure{model="mlp",version="1",reason="REJECTED"}') == 2
    assert value(text, 'nv_inference_request_failure{model="mlp",version="1",reason="BACKEND"}') == 0


def test_the_server_and_the_model_gauges_show_what_they_were_given(metrics: Metrics) -> None:
    text = render(metrics.scrape())
    assert value(text, 'farthing_model_ready{model="mlp",version="1"}') == 1
    assert value(text, 'farthing_model_ready{model="mlp",version="2"}') == 0
    assert value(text, 'farthing_model_memory_bytes{model="mlp",version="1",type="CPU",id="0"}') == 4096
    assert value(text, "farthing_http_connections_open") == 3
    assert value(text, 'farthing_http_requests_total{route="infer",status="503"}') == 1
    assert value(text, 'farthing_http_rejected_total{reason="malformed"}') == 4
    assert value(text, "farthing_log_records_dropped_total") == 11
    assert value(text, "farthing_trace_requests_dropped_total") == 12
    assert value(text, "nv_cpu_utilization") == 0.5
    assert 'farthing_build_info{version="0.1.0",python="3.' in text.decode()


def test_sequences_are_counted_for_models_that_have_some_and_stay_as_they_were_scraped() -> None:
    models = Models()
    models.busy.sequences = SequenceCounts(active=3, backlog=2, timed_out=1)
    scrape = Metrics(version="0.1.0", models=models, http=HttpCounters(), loop_lag=DurationHistogram()).scrape()
    models.busy.sequences.active = 4
    text = render(scrape)
    assert value(text, 'farthing_sequences_active{model="mlp",version="1"}') == 3
    assert value(text, 'farthing_sequences_backlog{model="mlp",version="1"}') == 2
    assert value(text, 'farthing_sequences_timed_out_total{model="mlp",version="1"}') == 1
    assert b'farthing_sequences_active{model="mlp",version="2"}' not in text


def test_histograms_rise_to_their_count_and_agree_with_the_counters(metrics: Metrics) -> None:
    parsed = families(render(metrics.scrape()))
    checked = 0
    for name, metric in parsed.items():
        if metric.type != "histogram":
            continue
        of_model: dict[tuple[str, ...], list[float]] = {}
        totals: dict[tuple[str, ...], float] = {}
        for sample in metric.samples:
            key = tuple(value for label, value in sorted(sample.labels.items()) if label != "le")
            if sample.name.endswith("_bucket"):
                of_model.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_count"):
                totals[key] = sample.value
        for key, cumulative in of_model.items():
            assert cumulative == sorted(cumulative), name
            assert cumulative[-1] == totals[key], name
            checked += 1
    assert checked == 3 * 3 + 1


def test_batch_rows_fall_into_powers_of_two(metrics: Metrics) -> None:
    text = render(metrics.scrape())
    labels = 'model="mlp",version="1"'
    buckets = [
        value(text, f'farthing_batch_rows_bucket{{{labels},le="{le}"}}') for le in ("1", "2", "4", "1024", "+Inf")
    ]
    assert buckets == [1, 2, 3, 3, 4]
    assert value(text, f"farthing_batch_rows_sum{{{labels}}}") == 5006


def test_a_scrape_does_not_change_while_it_is_written() -> None:
    models, http, lag = Models(), HttpCounters(), DurationHistogram()
    metrics = Metrics(version="0", models=models, http=http, loop_lag=lag, reader=FullReader())

    def ours(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if not line.startswith("python_gc")]

    scrape = metrics.scrape()
    before = ours(render(scrape))
    models.busy.request_done(1, 1)
    models.busy.batch_done(requests=1, rows=1, queue_ns=1, input_ns=1, compute_ns=1, output_ns=1, now_ms=1)
    http.answered("infer", 200)
    lag.observe(1)
    assert ours(render(scrape)) == before
    assert ours(render(metrics.scrape())) != before


def test_what_this_system_does_not_say_is_left_out(tmp_path: Path) -> None:
    metrics = Metrics(
        version="0",
        models=Models(),
        http=HttpCounters(),
        loop_lag=DurationHistogram(),
        reader=ProcessReader(tmp_path),
    )
    text = render(metrics.scrape()).decode()
    assert "nv_cpu_" not in text
    assert "process_resident_memory_bytes" not in text
    assert "process_cpu_seconds_total" in text


def test_the_reference_lists_every_metric_as_the_code_has_it() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        for line in REFERENCE.read_text().splitlines()
        if line.startswith("| `")
    ]
    listed = [row for row in rows if len(row) == 5]
    assert listed == [
        (
            f"`{family.name}`",
            family.type,
            ", ".join(f"`{label}`" for label in family.labels) or "–",
            family.unit,
            family.help,
        )
        for family in catalogue.FAMILIES
    ]


def test_the_reference_explains_every_value_of_the_labels_that_are_lists() -> None:
    text = REFERENCE.read_text()
    for listed in (FailureReason, RouteClass, RejectReason):
        assert [one.value for one in listed if f"`{one.value}`" not in text] == []
