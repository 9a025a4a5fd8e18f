"""What a generator has done so far, and what it is doing: its thread's counters, and a frozen copy for others."""

from bisect import bisect_left
from typing import Final

import msgspec

DURATION_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the histograms of times. A step takes from 3 ms on; readers notice from 50 ms a token."""

_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in DURATION_BOUNDS_S)


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by `DURATION_BOUNDS_S`, not cumulative; the last is of longer ones."""

    counts: tuple[int, ...]
    count: int
    sum_ns: int


class StepShape(msgspec.Struct, frozen=True, gc=False):
    """One run of the model."""

    sequences: int = 0
    rows: int = 0
    logits_rows: int = 0
    run_ns: int = 0
    """In the runner."""
    other_ns: int = 0
    """Planning, sampling and telling, before and after it."""


class GeneratorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's figures. Counters count since the start."""

    running: int
    """Generations (choices) in the batch."""
    waiting: int
    kv_blocks: int
    kv_blocks_used: int
    kv_blocks_cached: int
    """Free, and still found by their names."""
    kv_blocks_free: int
    """Free to be taken, cached ones included."""
    kv_block_tokens: int
    requests: int
    requests_finished: int
    requests_failed: int
    requests_cancelled: int
    requests_refused: int
    steps: int
    run_ns: int
    other_ns: int
    prompt_tokens: int
    """Of requests whose prompt was read, cached ones included."""
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    completion_tokens: int
    preemptions: int
    recomputed_tokens: int
    """Computed again after a preemption."""
    drafted_tokens: int
    accepted_tokens: int
    """Drafted tokens that turned out right."""
    first_token: Histogram
    """From arrival to the first token, a request."""
    between_tokens: Histogram
    """From token to token of a choice."""
    last_step: StepShape


class Counters:
    """As above, where it happens. Written by the generator's thread alone."""

    def __init__(self) -> None:
        self.requests = 0
        self.requests_finished = 0
        self.requests_failed = 0
        self.requests_cancelled = 0
        self.requests_refused = 0
        self.steps = 0
        self.run_ns = 0
        self.other_ns = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.preemptions = 0
        self.recomputed_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.last_step = StepShape()
        self.first_token = Durations()
        self.between_tokens = Durations()


class Durations:
    """A histogram being filled."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_NS) + 1)
        self.sum_ns = 0

    def add(self, duration_ns: int) -> None:
        self.counts[bisect_left(_BOUNDS_NS, duration_ns)] += 1
        self.sum_ns += duration_ns

    def snapshot(self) -> Histogram:
        counts = tuple(self.counts)
        return Histogram(counts=counts, count=sum(counts), sum_ns=self.sum_ns)
