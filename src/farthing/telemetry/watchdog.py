"""Is the server still getting anywhere? Liveness means progress, not a process that exists.

A pure question about running work; keeping the list of it belongs to `batching`, and answering
`/v2/health/live` to `server`.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Running(NamedTuple):
    """Work that should end: a batch inside an engine since it went in, or a queue since nothing runs for it."""

    what: str
    """As a person would name it, such as ``model `resnet50` version 1``."""
    started_ns: int
    doing: str = "has been running one batch"


class Hung(NamedTuple):
    """The work that has been running longest, once that is too long."""

    what: str
    seconds: float
    doing: str = "has been running one batch"

    def __str__(self) -> str:
        return f"{self.what} {self.doing} for {self.seconds:.1f} s"


def progress(now_ns: int, running: Iterable[Running], limit_ns: int) -> Hung | None:
    """The longest-running work if it runs for more than `limit_ns`, else None. A limit of 0 never finds any."""
    oldest = min(running, key=lambda work: work.started_ns, default=None)
    if oldest is None or limit_ns <= 0 or now_ns - oldest.started_ns <= limit_ns:
        return None
    return Hung(oldest.what, (now_ns - oldest.started_ns) / 1e9, oldest.doing)
