"""What `/metrics` answers: a scrape is taken on the event loop, and written out wherever there is time.

Nothing of Prometheus is touched while requests are served: the counters are plain attributes (`statistics`,
`counters`), `Metrics.scrape` copies them in microseconds, and `render` turns the copy into text on any thread. What
the kernel knows is asked there too: listing ten thousand open connections takes it 8 ms.
"""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from farthing.telemetry import catalogue
from farthing.telemetry.cache import CacheCounters
from farthing.telemetry.counters import DurationHistogram, GrpcCounters, HttpCounters
from farthing.telemetry.exposition import CONTENT_TYPE, ExpositionWriter, Family, label_text
from farthing.telemetry.frame_counts import FrameCounts
from farthing.telemetry.generation import GenerationSample, HistogramSample
from farthing.telemetry.process import MachineSample, ProcessReader, ProcessSample, build_labels
from farthing.telemetry.statistics import DURATION_BOUNDS_S, ModelStatistics, SequenceCounts

__all__ = ["CONTENT_TYPE", "Metrics", "ModelSample", "ModelsSource", "Scrape", "render"]

BATCH_ROWS_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the batch size histogram: powers of two, as people choose `max_batch_size`."""


class ModelSample(NamedTuple):
    """A model version as the metrics see it."""

    name: str
    version: str
    is_ready: bool
    statistics: ModelStatistics
    generation: GenerationSample | None = None
    """Of a language model."""
    loads: int = 0
    evictions: int = 0
    """Times it was unloaded to make room."""
    namespace: str = ""
    """Beside the name, where several models may have it."""


class ModelsSource(Protocol):
    """Whoever knows the model versions; asked once a scrape, on the event-loop thread."""

    def model_samples(self) -> Iterable[ModelSample]: ...

    def memory_bytes(self) -> tuple[int, int] | None:
        """What the models hold and what they may; None where nothing is said about that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What the event loop owns, at one moment; independent of anything that still changes."""

    models: tuple[ModelSample, ...]
    memory_bytes: tuple[int, int] | None
    http: HttpCounters
    grpc: GrpcCounters
    loop_lag: DurationHistogram
    reader: ProcessReader
    """Asked while the text is written."""
    cache: CacheCounters
    log_records_dropped: int
    spans_dropped: int
    build: tuple[str, ...]


class Metrics:
    """Takes scrapes of everything that was handed in."""

    def __init__(
        self,
        *,
        version: str,
        models: ModelsSource,
        http: HttpCounters,
        loop_lag: DurationHistogram,
        log_records_dropped: Callable[[], int] = lambda: 0,
        spans_dropped: Callable[[], int] = lambda: 0,
        reader: ProcessReader | None = None,
        grpc: GrpcCounters | None = None,
        cache: CacheCounters | None = None,
    ) -> None:
        self._models = models
        self._http = http
        self._grpc = grpc or GrpcCounters()
        self._cache = cache or CacheCounters()
        self._loop_lag = loop_lag
        self._log_records_dropped = log_records_dropped
        self._spans_dropped = spans_dropped
        self._reader = reader or ProcessReader()
        self._build = build_labels(version)

    def scrape(self) -> Scrape:
        """What the event loop owns, now. Call it on that thread; `render` the result on any other."""
        return Scrape(
            models=tuple(
                sample._replace(statistics=sample.statistics.copy()) for sample in self._models.model_samples()
            ),
            memory_bytes=self._models.memory_bytes(),
            http=self._http.copy(),
            grpc=self._grpc.copy(),
            loop_lag=self._loop_lag.copy(),
            cache=copy(self._cache),
            reader=self._reader,
            log_records_dropped=self._log_records_dropped(),
            spans_dropped=self._spans_dropped(),
            build=self._build,
        )


def render(scrape: Scrape) -> bytes:
    """The scrape as Prometheus text, to be sent as `CONTENT_TYPE`."""
    writer = ExpositionWriter()
    _models(writer, scrape.models)
    _generation(writer, scrape.models)
    _machine(writer, scrape.reader.machine())
    _server(writer, scrape)
    _process(writer, scrape.reader.process())
    return writer.text()


_MODEL_VALUES: Final[tuple[tuple[Family, Callable[[ModelSample], float]], ...]] = (
    (catalogue.REQUEST_SUCCESS, lambda m: m.statistics.success_count),
    (catalogue.INFERENCE_COUNT, lambda m: m.statistics.inference_count),
    (catalogue.EXEC_COUNT, lambda m: m.statistics.execution_count),
    (catalogue.REQUEST_DURATION, lambda m: m.statistics.success_ns // 1000),
    (catalogue.QUEUE_DURATION, lambda m: m.statistics.queue_ns // 1000),
    (catalogue.COMPUTE_INPUT_DURATION, lambda m: m.statistics.compute_input_ns // 1000),
    (catalogue.COMPUTE_INFER_DURATION, lambda m: m.statistics.compute_ns // 1000),
    (catalogue.COMPUTE_OUTPUT_DURATION, lambda m: m.statistics.compute_output_ns // 1000),
    (catalogue.PENDING_REQUESTS, lambda m: m.statistics.pending_requests),
    (catalogue.LOAD_DURATION, lambda m: m.statistics.load_ns / 1e9),
    (catalogue.CACHE_HITS, lambda m: m.statistics.cache_hit_count),
    (catalogue.CACHE_MISSES, lambda m: m.statistics.cache_miss_count),
    (catalogue.CACHE_HIT_DURATION, lambda m: m.statistics.cache_hit_ns // 1000),
    (catalogue.CACHE_MISS_DURATION, lambda m: m.statistics.cache_miss_ns // 1000),
    (catalogue.CACHE_INSERTIONS, lambda m: m.statistics.cache_insertions),
    (catalogue.CACHE_COALESCED, lambda m: m.statistics.cache_coalesced),
    (catalogue.MODEL_READY, lambda m: int(m.is_ready)),
    (catalogue.MODEL_LOADS, lambda m: m.loads),
    (catalogue.MODEL_EVICTIONS, lambda m: m.evictions),
    (catalogue.PENDING_ROWS, lambda m: m.statistics.pending_rows),
    (catalogue.RUNNING_BATCHES, lambda m: m.statistics.running_batches),
)
"""Metrics with one value a model version."""

_SEQUENCE_VALUES: Final[tuple[tuple[Family, Callable[[SequenceCounts], float]], ...]] = (
    (catalogue.SEQUENCES_ACTIVE, lambda s: s.active),
    (catalogue.SEQUENCES_BACKLOG, lambda s: s.backlog),
    (catalogue.SEQUENCES_TIMED_OUT, lambda s: s.timed_out),
)
"""Metrics of models of sequences alone."""


_FRAME_VALUES: Final[tuple[tuple[Family, Callable[[FrameCounts], float]], ...]] = (
    (catalogue.FRAME_STREAMS_OPEN, lambda f: f.streams_open),
    (catalogue.FRAMES_RECEIVED, lambda f: f.received),
    (catalogue.FRAMES_FAILED, lambda f: f.failed),
)
"""Metrics of models that had streams of frames alone."""


def _labels(model: ModelSample, names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if model.namespace:  # Triton's label, there only when its namespacing is on
        return label_text((*names, "namespace"), (*values, model.namespace))
    return label_text(names, values)


def _models(writer: ExpositionWriter, models: tuple[ModelSample, ...]) -> None:
    labelled = [(_labels(model, catalogue.MODEL, (model.name, model.version)), model) for model in models]
    for family, value in _MODEL_VALUES:
        writer.family(family)
        for labels, model in labelled:
            writer.sample(labels, value(model))

    for family, count_of in _SEQUENCE_VALUES:
        writer.family(family)
        for labels, model in labelled:
            if model.statistics.sequences is not None:
                writer.sample(labels, count_of(model.statistics.sequences))

    _frames(writer, [(labels, frames) for labels, model in labelled if (frames := model.statistics.frames) is not None])

    writer.family(catalogue.REQUEST_FAILURE)
    for labels, model in labelled:
        for reason, count in model.statistics.failures.items():
            writer.sample(f'{labels},reason="{reason}"', count)

    writer.family(catalogue.MODEL_MEMORY)
    for labels, model in labelled:
        for usage in model.statistics.memory_usage:
            device = label_text(("type", "id"), (usage.type, str(usage.id)))
            writer.sample(f"{labels},{device}", usage.byte_size)

    writer.family(catalogue.REQUEST_SECONDS)
    for labels, model in labelled:
        counts = model.statistics
        writer.histogram(labels, DURATION_BOUNDS_S, counts.request_buckets, counts.success_ns / 1e9)
    writer.family(catalogue.QUEUE_SECONDS)
    for labels, model in labelled:
        counts = model.statistics
        writer.histogram(labels, DURATION_BOUNDS_S, counts.queue_buckets, counts.waited_ns / 1e9)
    writer.family(catalogue.BATCH_ROWS)
    for labels, model in labelled:
        counts = model.statistics
        writer.histogram(labels, BATCH_ROWS_BOUNDS, _batch_row_buckets(counts.batch_sizes), counts.inference_count)


def _frames(writer: ExpositionWriter, labelled: list[tuple[str, FrameCounts]]) -> None:
    for family, count_of in _FRAME_VALUES:
        writer.family(family)
        for labels, frames in labelled:
            writer.sample(labels, count_of(frames))
    writer.family(catalogue.FRAMES_ANSWERED)
    for labels, frames in labelled:
        writer.sample(f'{labels},timeliness="on_time"', frames.on_time)
        writer.sample(f'{labels},timeliness="late"', frames.late)
    writer.family(catalogue.FRAMES_DROPPED)
    for labels, frames in labelled:
        for reason, count in frames.dropped.items():
            writer.sample(f'{labels},reason="{reason}"', count)
    writer.family(catalogue.FRAME_SECONDS)
    for labels, frames in labelled:
        writer.histogram(labels, DURATION_BOUNDS_S, frames.buckets, frames.total_ns / 1e9)


_GENERATION_VALUES: Final[tuple[tuple[Family, Callable[[GenerationSample], float]], ...]] = (
    (catalogue.GENERATIONS_RUNNING, lambda g: g.running),
    (catalogue.GENERATIONS_WAITING, lambda g: g.waiting),
    (catalogue.KV_USAGE, lambda g: g.kv_usage),
    (catalogue.KV_TOKENS, lambda g: g.kv_tokens),
    (catalogue.PROMPT_TOKENS, lambda g: g.prompt_tokens),
    (catalogue.GENERATION_TOKENS, lambda g: g.generated_tokens),
    (catalogue.PREFIX_QUERIES, lambda g: g.prompt_tokens),
    (catalogue.PREFIX_HITS, lambda g: g.cached_tokens),
    (catalogue.PREEMPTIONS, lambda g: g.preemptions),
    (catalogue.DRAFT_TOKENS, lambda g: g.drafted_tokens),
    (catalogue.ACCEPTED_TOKENS, lambda g: g.accepted_tokens),
    (catalogue.GENERATION_STEPS, lambda g: g.steps),
)
"""Metrics with one value a language model."""

_GENERATION_HISTOGRAMS: Final[tuple[tuple[Family, Callable[[GenerationSample], HistogramSample]], ...]] = (
    (catalogue.FIRST_TOKEN_SECONDS, lambda g: g.first_token),
    (catalogue.INTER_TOKEN_SECONDS, lambda g: g.inter_token),
)


def _generation(writer: ExpositionWriter, models: tuple[ModelSample, ...]) -> None:
    labelled = [
        (_labels(model, catalogue.LANGUAGE_MODEL, (model.name,)), model.generation)
        for model in models
        if model.generation is not None
    ]
    for family, value in _GENERATION_VALUES:
        writer.family(family)
        for labels, generation in labelled:
            writer.sample(labels, value(generation))
    writer.family(catalogue.GENERATIONS_FINISHED)
    for labels, generation in labelled:
        for reason, count in generation.finished.items():
            writer.sample(f'{labels},finished_reason="{reason}"', count)
    for family, histogram in _GENERATION_HISTOGRAMS:
        writer.family(family)
        for labels, generation in labelled:
            sample = histogram(generation)
            writer.histogram(labels, sample.bounds, sample.counts, sample.total)


def _batch_row_buckets(batch_sizes: dict[int, list[int]]) -> list[int]:
    buckets = [0] * (len(BATCH_ROWS_BOUNDS) + 1)
    for rows, counts in batch_sizes.items():
        buckets[sum(rows > bound for bound in BATCH_ROWS_BOUNDS)] += counts[0]
    return buckets


def _machine(writer: ExpositionWriter, machine: MachineSample) -> None:
    _known(writer, catalogue.CPU_UTILIZATION, machine.cpu_utilization)
    _known(writer, catalogue.CPU_MEMORY_TOTAL, machine.memory_total_bytes)
    _known(writer, catalogue.CPU_MEMORY_USED, machine.memory_used_bytes)


def _server(writer: ExpositionWriter, scrape: Scrape) -> None:
    http = scrape.http
    if scrape.memory_bytes is not None:
        held, budget = scrape.memory_bytes
        _known(writer, catalogue.MODELS_MEMORY, held)
        _known(writer, catalogue.MODELS_MEMORY_BUDGET, budget)
    _known(writer, catalogue.HTTP_CONNECTIONS, http.connections_open)
    _known(writer, catalogue.HTTP_CONNECTIONS_TOTAL, http.connections_total)
    writer.family(catalogue.HTTP_REQUESTS)
    for route, by_status in http.requests.items():
        for status, count in sorted(by_status.items()):
            writer.sample(f'route="{route}",status="{status}"', count)
    _known(writer, catalogue.HTTP_IN_FLIGHT, http.requests_in_flight)
    _known(writer, catalogue.HTTP_RECEIVED, http.bytes_received)
    _known(writer, catalogue.HTTP_SENT, http.bytes_sent)
    writer.family(catalogue.HTTP_REJECTED)
    for reason, count in http.rejected.items():
        writer.sample(f'reason="{reason}"', count)
    writer.family(catalogue.GRPC_REQUESTS)
    for route, by_code in scrape.grpc.requests.items():
        for code, count in sorted(by_code.items()):
            writer.sample(f'route="{route}",code="{code}"', count)
    _known(writer, catalogue.GRPC_IN_FLIGHT, scrape.grpc.requests_in_flight)
    cache = scrape.cache
    _known(writer, catalogue.CACHE_BYTES, cache.bytes_used)
    _known(writer, catalogue.CACHE_BYTES_MAX, cache.bytes_max)
    _known(writer, catalogue.CACHE_ENTRIES, cache.entries)
    _known(writer, catalogue.CACHE_EVICTIONS, cache.evictions)
    writer.family(catalogue.LOOP_LAG)
    writer.histogram("", DURATION_BOUNDS_S, scrape.loop_lag.buckets, scrape.loop_lag.total_ns / 1e9)
    _known(writer, catalogue.LOG_RECORDS_DROPPED, scrape.log_records_dropped)
    _known(writer, catalogue.TRACES_DROPPED, scrape.spans_dropped)
    writer.family(catalogue.BUILD_INFO)
    writer.sample(label_text(catalogue.BUILD_INFO.labels, scrape.build), 1)


def _process(writer: ExpositionWriter, process: ProcessSample) -> None:
    _known(writer, catalogue.PROCESS_CPU, process.cpu_seconds)
    _known(writer, catalogue.PROCESS_MEMORY, process.resident_bytes)
    _known(writer, catalogue.PROCESS_START, process.start_time_s)
    _known(writer, catalogue.PROCESS_OPEN_FDS, process.open_fds)
    _known(writer, catalogue.PROCESS_MAX_FDS, process.max_fds)
    generations = [(f'generation="{number}"', garbage) for number, garbage in enumerate(process.garbage)]
    writer.family(catalogue.GC_COLLECTIONS)
    for labels, garbage in generations:
        writer.sample(labels, garbage.collections)
    writer.family(catalogue.GC_COLLECTED)
    for labels, garbage in generations:
        writer.sample(labels, garbage.collected)
    writer.family(catalogue.GC_UNCOLLECTABLE)
    for labels, garbage in generations:
        writer.sample(labels, garbage.uncollectable)


def _known(writer: ExpositionWriter, family: Family, value: float | None) -> None:
    """One value without labels; a metric that cannot be had here is left out, not zero."""
    if value is not None:
        writer.family(family)
        writer.sample("", value)
