"""A language model's generator as the metrics see it: a copy of its figures at one moment.

The generator counts (`llm.statistics`), `runtime` copies; how it looks to Prometheus belongs to `metrics`.
"""

from collections.abc import Mapping

import msgspec


class HistogramSample(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by upper bound, not cumulative; the last has none."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class GenerationSample(msgspec.Struct, frozen=True, kw_only=True):
    """One model version's generator. Counters count since it was loaded."""

    running: int
    """Generations (choices) in the batch."""
    waiting: int
    kv_usage: float
    """Share of the KV blocks that running generations hold, 0 to 1; cached prefixes can be evicted and do not count."""
    kv_tokens: int
    """Tokens the KV memory holds."""
    prompt_tokens: int
    """Of prompts that were read, found in the cache or not."""
    cached_tokens: int
    """Of those, found in the prefix cache."""
    generated_tokens: int
    preemptions: int
    steps: int
    drafted_tokens: int
    accepted_tokens: int
    first_token: HistogramSample
    """From arrival to the first token of a request, seconds."""
    inter_token: HistogramSample
    """Between tokens of one choice, seconds."""
    finished: Mapping[str, int]
    """Choices that ended, by reason; `abort`: the client left, or the server failed."""
