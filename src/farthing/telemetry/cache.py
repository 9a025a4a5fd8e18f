"""What the response cache holds and has let go, for the metrics. Plain attributes, as `counters`' are."""

import msgspec


class CacheCounters(msgspec.Struct, gc=False):
    """Of the whole server; hits, misses and insertions are counted with each model's statistics."""

    bytes_max: int = 0
    bytes_used: int = 0
    entries: int = 0
    evictions: int = 0
    """Answers that went to make room."""
