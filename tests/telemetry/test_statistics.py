import sys
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from farthing.telemetry.statistics import (
    BATCH_SIZES_MAX,
    DURATION_BOUNDS_NS,
    FailureReason,
    MemoryUsage,
    ModelStatistics,
)

durations = st.lists(st.tuples(st.integers(0, 10**11), st.integers(0, 10**11)), max_size=50)


def calls_made_by(function: Callable[[], object]) -> int:
    """How many calls, of Python and of C functions, one call of `function` leads to."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls - 2  # `function` itself and the `setprofile` that ends it


def two_batches() -> ModelStatistics:
    statistics = ModelStatistics()
    statistics.batch_done(requests=3, rows=4, queue_ns=60, input_ns=5, compute_ns=100, output_ns=7, now_ms=111)
    statistics.batch_done(requests=1, rows=1, queue_ns=40, input_ns=1, compute_ns=30, output_ns=2, now_ms=222)
    for duration_ns, queue_ns in ((150, 10), (160, 20), (170, 30), (90, 40)):
        statistics.request_done(duration_ns, queue_ns)
    return statistics


def test_a_batchs_compute_time_counts_for_each_of_its_requests_and_once_for_its_size() -> None:
    stats = two_batches().snapshot("resnet50", "3")
    assert (stats.inference_count, stats.execution_count, stats.last_inference) == (5, 2, 222)
    durations = stats.inference_stats
    assert (durations.success.count, durations.success.ns) == (4, 570)
    assert (durations.queue.count, durations.queue.ns) == (4, 100)
    assert (durations.compute_input.count, durations.compute_input.ns) == (4, 3 * 5 + 1)
    assert (durations.compute_infer.count, durations.compute_infer.ns) == (4, 3 * 100 + 30)
    assert (durations.compute_output.count, durations.compute_output.ns) == (4, 3 * 7 + 2)
    assert [(b.batch_size, b.compute_infer.count, b.compute_infer.ns) for b in stats.batch_stats] == [
        (1, 1, 30),
        (4, 1, 100),
    ]


def test_the_snapshot_has_the_fields_of_the_statistics_extension_and_the_namespace() -> None:
    statistics = two_batches()
    statistics.memory_usage = (MemoryUsage(type="CPU", id=0, byte_size=1024),)
    written: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(statistics.snapshot("m", "1")))
    assert set(written) == {
        "namespace",
        *("name", "version", "last_inference", "inference_count", "execution_count"),
        *("inference_stats", "response_stats", "batch_stats", "memory_usage"),
    }
    assert (written["name"], written["version"], written["response_stats"]) == ("m", "1", {})
    compute = {"compute_input", "compute_infer", "compute_output"}
    assert set(written["inference_stats"]) == {"success", "fail", "queue", "cache_hit", "cache_miss"} | compute
    assert set(written["batch_stats"][0]) == {"batch_size"} | compute
    assert written["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 1024}]


def test_zeros_are_written_as_numbers_because_perf_analyzer_reads_every_field() -> None:
    written: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ModelStatistics().snapshot("m", "1")))
    assert all(duration == {"count": 0, "ns": 0} for duration in written["inference_stats"].values())


def test_failures_are_counted_by_reason_and_an_unlisted_reason_is_other() -> None:
    statistics = ModelStatistics()
    statistics.failed("REJECTED", 3, 30)
    statistics.failed(FailureReason.BACKEND, duration_ns=12)
    statistics.failed("what a client wrote")
    assert {reason: count for reason, count in statistics.failures.items() if count} == {
        "REJECTED": 3,
        "BACKEND": 1,
        "OTHER": 1,
    }
    fail = statistics.snapshot("m", "1").inference_stats.fail
    assert (fail.count, fail.ns) == (5, 42)


def test_cache_hits_and_misses_are_counted_with_their_time() -> None:
    statistics = ModelStatistics()
    statistics.cache_hit(5)
    statistics.cache_hit(6)
    statistics.cache_miss(7)
    stats = statistics.snapshot("m", "1").inference_stats
    assert (stats.cache_hit.count, stats.cache_hit.ns) == (2, 11)
    assert (stats.cache_miss.count, stats.cache_miss.ns) == (1, 7)
    assert stats.compute_infer.count == 0


@given(durations)
def test_the_buckets_of_both_histograms_add_up_to_the_requests(observed: list[tuple[int, int]]) -> None:
    statistics = ModelStatistics()
    for duration_ns, queue_ns in observed:
        statistics.request_done(duration_ns, queue_ns)
    assert sum(statistics.request_buckets) == sum(statistics.queue_buckets) == len(observed)
    assert statistics.success_ns == sum(duration_ns for duration_ns, _ in observed)
    assert statistics.waited_ns == sum(queue_ns for _, queue_ns in observed)
    for index, bound_ns in enumerate(DURATION_BOUNDS_NS):
        within = sum(duration_ns <= bound_ns for duration_ns, _ in observed)
        assert sum(statistics.request_buckets[: index + 1]) == within


@given(
    st.lists(st.integers(0, 10**11) | st.sampled_from([10**11 - bound for bound in DURATION_BOUNDS_NS]), min_size=1),
    st.integers(0, 10**10),
)
def test_requests_that_end_together_are_counted_as_one_by_one(arrivals_ns: list[int], run_ns: int) -> None:
    started_ns = 10**11
    together, apart = ModelStatistics(), ModelStatistics()
    waited_ns = together.requests_done(arrivals_ns, started_ns, started_ns + run_ns)
    for arrival_ns in arrivals_ns:
        apart.request_done(started_ns + run_ns - arrival_ns, started_ns - arrival_ns)
    assert waited_ns == apart.waited_ns
    for field in ModelStatistics.__slots__:
        assert getattr(together, field) == getattr(apart, field), field


def test_a_request_on_a_buckets_bound_belongs_to_it() -> None:
    statistics = ModelStatistics()
    statistics.request_done(DURATION_BOUNDS_NS[3], DURATION_BOUNDS_NS[-1] + 1)
    assert statistics.request_buckets[3] == 1
    assert statistics.queue_buckets[-1] == 1


def test_a_client_that_sends_every_batch_size_there_is_cannot_grow_the_table_without_end() -> None:
    statistics = ModelStatistics()
    for rows in range(1, 5 * BATCH_SIZES_MAX):
        statistics.batch_done(requests=1, rows=rows, queue_ns=0, input_ns=0, compute_ns=1, output_ns=0, now_ms=0)
    assert len(statistics.batch_sizes) <= BATCH_SIZES_MAX + 64
    assert sum(counts[0] for counts in statistics.batch_sizes.values()) == statistics.execution_count
    assert statistics.batch_sizes[8 * BATCH_SIZES_MAX][0] == BATCH_SIZES_MAX - 1


def test_a_copy_stays_as_it_was() -> None:
    statistics = two_batches()
    statistics.failed("BACKEND")
    copy = statistics.copy()
    before = copy.snapshot("m", "1")
    assert before == statistics.snapshot("m", "1")
    statistics.batch_done(requests=1, rows=4, queue_ns=1, input_ns=1, compute_ns=1, output_ns=1, now_ms=9)
    statistics.request_done(1, 1)
    statistics.failed("BACKEND")
    assert copy.snapshot("m", "1") == before
    assert copy.failures["BACKEND"] == 1


def test_counting_a_request_costs_two_binary_searches_and_nothing_else() -> None:
    statistics = ModelStatistics()
    assert calls_made_by(lambda: statistics.request_done(1_234_567, 89_000)) == 3  # itself and two bisects


def test_counting_a_batch_of_a_known_size_costs_one_lookup() -> None:
    statistics = two_batches()
    counted = calls_made_by(
        lambda: statistics.batch_done(requests=1, rows=4, queue_ns=1, input_ns=1, compute_ns=1, output_ns=1, now_ms=1)
    )
    assert counted == 2  # itself and dict.get
