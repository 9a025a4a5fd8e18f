"""What a model version has done so far: counts and nanoseconds, kept where they happen.

One `ModelStatistics` belongs to one model version and is touched from the event-loop thread alone, so it has no
locks and its gauges are plain attributes. `snapshot` answers the protocol's statistics extension. How any of this
looks to Prometheus belongs to `metrics`, and measuring the durations to `batching` and `runtime`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from farthing.telemetry.frame_counts import FrameCounts

DURATION_BOUNDS_S: Final = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of the duration histograms' buckets. A tiny model answers in 0.1 ms on a quiet core and a client
gives up after some seconds; three buckets a decade in between place a p99 within a factor of 2.5."""

DURATION_BOUNDS_NS: Final = tuple(round(seconds * 1e9) for seconds in DURATION_BOUNDS_S)

BATCH_SIZES_MAX: Final = 1024
"""Distinct batch sizes counted one by one; a new size beyond that many is counted as the next power of two, so a
client that sends every row count there is cannot grow this table without end."""


RESPONSES_COUNTED_MAX: Final = 256
"""The n-th responses of requests are counted apart up to this n; all later ones count as its own."""


class ResponseKind(StrEnum):
    """What became of one response of a decoupled model."""

    SUCCESS = "success"
    FAIL = "fail"
    EMPTY = "empty_response"
    CANCEL = "cancel"


class FailureReason(StrEnum):
    """Why an inference request got an error: Triton's four reasons, then the two we can tell from OTHER."""

    REJECTED = "REJECTED"
    """The queue was full, or the request's time ran out in it."""
    CANCELED = "CANCELED"
    """The client left before its request ran."""
    BACKEND = "BACKEND"
    """The engine ran and failed."""
    OTHER = "OTHER"
    INVALID = "INVALID"
    """It named this model and did not fit it."""
    UNAVAILABLE = "UNAVAILABLE"
    """The model was loading, unloading or stopping."""


class DurationStatistics(msgspec.Struct, frozen=True, gc=False):
    """How often something happened and how many nanoseconds that took altogether."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests' time went. A batch's compute time counts once for each request that rode in it."""

    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    cache_hit: DurationStatistics
    cache_miss: DurationStatistics


class BatchStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one batch size; here a batch's time counts once."""

    batch_size: int
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


class ResponseStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The n-th responses of a decoupled model."""

    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    success: DurationStatistics
    fail: DurationStatistics
    empty_response: DurationStatistics
    cancel: DurationStatistics


class MemoryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes a model holds on one device (`type` is CPU, CPU_PINNED or GPU)."""

    type: str
    id: int
    byte_size: int


class StatisticsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `model_stats`, field by field as the statistics extension writes it."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since 1970; 0 for never."""
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    response_stats: dict[str, ResponseStatistics]
    """By response index; only decoupled models have entries."""
    batch_stats: tuple[BatchStatistics, ...]
    memory_usage: tuple[MemoryUsage, ...]
    namespace: str = ""


class SequenceCounts(msgspec.Struct, gc=False):
    """Of a model of sequences."""

    active: int = 0
    """Gauge: sequences that hold a slot."""
    backlog: int = 0
    """Gauge: sequences that wait for one."""
    timed_out: int = 0
    """Sequences ended because nothing came for too long."""


class ModelStatistics:
    """The counters of one model version. Every method is O(1) and called from the event-loop thread."""

    __slots__ = (
        "batch_sizes",
        "cache_coalesced",
        "cache_hit_count",
        "cache_hit_ns",
        "cache_insertions",
        "cache_miss_count",
        "cache_miss_ns",
        "compute_input_ns",
        "compute_ns",
        "compute_output_ns",
        "compute_requests",
        "execution_count",
        "fail_ns",
        "failures",
        "frames",
        "inference_count",
        "last_inference_ms",
        "load_ns",
        "memory_usage",
        "pending_requests",
        "pending_rows",
        "queue_buckets",
        "queue_ns",
        "request_buckets",
        "responses",
        "running_batches",
        "sequences",
        "success_ns",
        "waited_ns",
    )

    def __init__(self) -> None:
        self.pending_rows = 0
        """Gauge: rows queued and not yet running; whoever owns the queue writes it."""
        self.pending_requests = 0
        """Gauge: requests queued and not yet running."""
        self.running_batches = 0
        """Gauge: batches inside the engine now."""
        self.sequences: SequenceCounts | None = None
        """Of a model of sequences; written by whoever runs them."""
        self.frames: FrameCounts | None = None
        """Of a model that had streams of frames; written by whoever runs them."""
        self.memory_usage: tuple[MemoryUsage, ...] = ()
        """Written by whoever loads the model."""
        self.load_ns = 0
        """How long loading took; written by whoever loads the model."""

        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        self.compute_requests = 0
        self.queue_ns = 0
        self.compute_input_ns = 0
        self.compute_ns = 0
        self.compute_output_ns = 0
        self.batch_sizes: dict[int, list[int]] = {}
        """Batch size -> [runs, input ns, compute ns, output ns]."""

        self.success_ns = 0
        self.waited_ns = 0
        self.request_buckets = [0] * (len(DURATION_BOUNDS_NS) + 1)
        """Answered requests by duration; the last bucket has no upper bound. Their sum is the success count."""
        self.queue_buckets = [0] * (len(DURATION_BOUNDS_NS) + 1)

        self.responses: list[dict[str, list[int]]] = []
        """By response index: kind, or part of the time -> [count, ns]. Only decoupled models have any."""

        self.failures: dict[str, int] = dict.fromkeys(FailureReason, 0)
        self.fail_ns = 0
        self.cache_hit_count = 0
        self.cache_hit_ns = 0
        self.cache_miss_count = 0
        self.cache_miss_ns = 0
        self.cache_coalesced = 0
        """Of the hits, those answered by an equal request's run that was under way."""
        self.cache_insertions = 0

    def batch_done(
        self,
        *,
        requests: int,
        rows: int,
        queue_ns: int,
        input_ns: int,
        compute_ns: int,
        output_ns: int,
        now_ms: int,
    ) -> None:
        """Counts a batch that ran well. `queue_ns` is the sum over its requests, the rest is the batch's own."""
        self.last_inference_ms = now_ms
        self.inference_count += rows
        self.execution_count += 1
        self.compute_requests += requests
        self.queue_ns += queue_ns
        self.compute_input_ns += input_ns * requests
        self.compute_ns += compute_ns * requests
        self.compute_output_ns += output_ns * requests
        of_size = self.batch_sizes.get(rows)
        if of_size is None:
            of_size = self._new_batch_size(rows)
        of_size[0] += 1
        of_size[1] += input_ns
        of_size[2] += compute_ns
        of_size[3] += output_ns

    def requests_passed(self, *, requests: int, rows: int, queue_ns: int, compute_ns: int, now_ms: int) -> None:
        """Counts requests of `rows` each that other models ran one by one, as `batch_done` would; times are sums."""
        self.last_inference_ms = now_ms
        self.inference_count += rows * requests
        self.execution_count += requests
        self.compute_requests += requests
        self.queue_ns += queue_ns
        self.compute_ns += compute_ns
        of_size = self.batch_sizes.get(rows)
        if of_size is None:
            of_size = self._new_batch_size(rows)
        of_size[0] += requests
        of_size[2] += compute_ns

    def request_done(self, duration_ns: int, queue_ns: int, requests: int = 1) -> None:
        """Counts a request answered well: `duration_ns` from arrival to answer, `queue_ns` of it waiting.

        This is the per-request cost of statistics, so it is two binary searches and four additions. Several `requests`
        have the same times.
        """
        self.success_ns += duration_ns * requests
        self.waited_ns += queue_ns * requests
        self.request_buckets[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += requests
        self.queue_buckets[bisect_left(DURATION_BOUNDS_NS, queue_ns)] += requests

    def requests_done(self, arrivals_ns: Sequence[int], started_ns: int, ended_ns: int) -> int:
        """Counts requests (at least one) that began and ended together, as `request_done` would one by one.

        Answers how long they waited, all together.
        """
        requests = len(arrivals_ns)
        arrived_ns = sum(arrivals_ns)
        waited_ns = started_ns * requests - arrived_ns
        self.success_ns += ended_ns * requests - arrived_ns
        self.waited_ns += waited_ns
        ascending = sorted(arrivals_ns)
        _count(self.request_buckets, ascending, ended_ns)
        _count(self.queue_buckets, ascending, started_ns)
        return waited_ns

    def response(self, index: int, kind: ResponseKind, infer_ns: int, output_ns: int) -> None:
        """Counts the n-th response of a request: time the model took for it since the one before, and its way out."""
        index = min(index, RESPONSES_COUNTED_MAX - 1)
        while index >= len(self.responses):
            self.responses.append({})
        of_index = self.responses[index]
        for what, ns in ((kind, infer_ns + output_ns), ("compute_infer", infer_ns), ("compute_output", output_ns)):
            if what.startswith("compute") and kind not in (ResponseKind.SUCCESS, ResponseKind.FAIL):
                continue
            count_ns = of_index.setdefault(what, [0, 0])
            count_ns[0] += 1
            count_ns[1] += ns

    def failed(self, reason: str, count: int = 1, duration_ns: int = 0) -> None:
        """Counts requests that got an error. `duration_ns` is their sum; an unlisted reason counts as OTHER."""
        failures = self.failures
        failures[reason if reason in failures else FailureReason.OTHER] += count
        self.fail_ns += duration_ns

    def cache_hit(self, duration_ns: int = 0) -> None:
        """Counts a request answered from the response cache (which is a success too: call `request_done`)."""
        self.cache_hit_count += 1
        self.cache_hit_ns += duration_ns

    def cache_miss(self, duration_ns: int = 0) -> None:
        """Counts a look-up in the response cache that found nothing."""
        self.cache_miss_count += 1
        self.cache_miss_ns += duration_ns

    @property
    def success_count(self) -> int:
        return sum(self.request_buckets)

    @property
    def fail_count(self) -> int:
        return sum(self.failures.values())

    def copy(self) -> "ModelStatistics":
        """An independent copy of this moment, which another thread may read."""
        twin = ModelStatistics.__new__(ModelStatistics)
        for field in ModelStatistics.__slots__:
            setattr(twin, field, getattr(self, field))
        twin.batch_sizes = {size: counts.copy() for size, counts in self.batch_sizes.items()}
        twin.request_buckets = self.request_buckets.copy()
        twin.queue_buckets = self.queue_buckets.copy()
        twin.failures = self.failures.copy()
        twin.responses = [{what: count.copy() for what, count in one.items()} for one in self.responses]
        if self.sequences is not None:
            twin.sequences = msgspec.structs.replace(self.sequences)
        if self.frames is not None:
            twin.frames = self.frames.copy()
        return twin

    def snapshot(self, name: str, version: str, namespace: str = "") -> StatisticsSnapshot:
        """What `GET /v2/models/{name}/versions/{version}/stats` says of this moment."""
        requests = self.compute_requests
        return StatisticsSnapshot(
            name=name,
            version=version,
            last_inference=self.last_inference_ms,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            inference_stats=InferenceStatistics(
                success=DurationStatistics(self.success_count, self.success_ns),
                fail=DurationStatistics(self.fail_count, self.fail_ns),
                queue=DurationStatistics(requests, self.queue_ns),
                compute_input=DurationStatistics(requests, self.compute_input_ns),
                compute_infer=DurationStatistics(requests, self.compute_ns),
                compute_output=DurationStatistics(requests, self.compute_output_ns),
                cache_hit=DurationStatistics(self.cache_hit_count, self.cache_hit_ns),
                cache_miss=DurationStatistics(self.cache_miss_count, self.cache_miss_ns),
            ),
            response_stats={str(index): _response_statistics(one) for index, one in enumerate(self.responses)},
            batch_stats=tuple(
                BatchStatistics(
                    batch_size=size,
                    compute_input=DurationStatistics(runs, input_ns),
                    compute_infer=DurationStatistics(runs, compute_ns),
                    compute_output=DurationStatistics(runs, output_ns),
                )
                for size, (runs, input_ns, compute_ns, output_ns) in sorted(self.batch_sizes.items())
            ),
            memory_usage=self.memory_usage,
            namespace=namespace,
        )

    def _new_batch_size(self, rows: int) -> list[int]:
        if len(self.batch_sizes) >= BATCH_SIZES_MAX:
            rows = 1 << max(rows - 1, 0).bit_length()
        return self.batch_sizes.setdefault(rows, [0, 0, 0, 0])


def _count(buckets: list[int], since_ns: Sequence[int], until_ns: int) -> None:
    """Counts durations that end together, by when they began, ascending: a search a bucket and not one a duration."""
    left = len(since_ns)  # those whose bucket is further on: the longest ones
    first = bisect_left(DURATION_BOUNDS_NS, until_ns - since_ns[-1])
    last = bisect_left(DURATION_BOUNDS_NS, until_ns - since_ns[0])
    for bucket in range(first, last):
        shorter = bisect_left(since_ns, until_ns - DURATION_BOUNDS_NS[bucket])
        buckets[bucket] += left - shorter
        left = shorter
    buckets[last] += left


def _response_statistics(counts: dict[str, list[int]]) -> ResponseStatistics:
    return ResponseStatistics(
        **{what: DurationStatistics(*counts.get(what, (0, 0))) for what in ResponseStatistics.__struct_fields__}
    )
