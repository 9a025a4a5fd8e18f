"""How long will a run of this model take, and a request wait for it?

Times are learned from the runs (`batching.row_times`), apart for each row shape. What to do with the answer is up to
`batching.batcher`, `batching.loop` and those who ask them.
"""

from collections.abc import Hashable
from typing import Final

from farthing.batching.batcher import Limits
from farthing.batching.queue import FIXED_SHAPES, SIGNATURE_ALONE, Queue, Waiter
from farthing.batching.row_times import RowTimes
from farthing.types.errors import DeadlineExceeded, FarthingError, Overloaded
from farthing.types.models import ModelSpec

LOOP_RUN_NS_MAX: Final = 60_000
LOOP_RUN_NS_PER_REQUEST: Final = 4_000
"""A batch expected to take no longer than this, plus so much for each of its requests, runs on the event loop. Handing
it to a thread and back was measured at 24 us on one core and 52 us on two, most of it CPU; a request's own way through
the server costs some 20 us on the loop anyway, so nobody is kept waiting for long."""

WAIT_NS_MAX: Final = 30_000_000_000
"""A request that would wait longer than this in the queue is answered `Overloaded` at once; few clients wait 30 s."""

SIGNATURES_MAX: Final = 256
"""Row shapes whose times are remembered; clients choose shapes, so there is an end to it. The one met first goes."""


class Forecast:
    """What is known of one model version's times."""

    def __init__(self, model: str, limits: Limits, times: RowTimes | None) -> None:
        """`times` are those measured when it was loaded."""
        self.latest = RowTimes() if times is None else times
        """Of the row shapes that ran last."""
        self.by_signature: dict[Hashable, RowTimes] = {
            FIXED_SHAPES if limits.rows_max > 0 else SIGNATURE_ALONE: self.latest
        }
        self._model = model
        self._limits = limits

    def times_for(self, signature: Hashable) -> RowTimes:
        """Times depend on the shape of a row (a sentence's length), so each signature has its own."""
        times = self.by_signature.get(signature)
        if times is None:
            if len(self.by_signature) >= SIGNATURES_MAX:
                self.by_signature.pop(next(iter(self.by_signature)))
            times = RowTimes(self.latest.best_rows(self._limits.rows_max or 1))
            self.by_signature[signature] = times
        return times

    def run_ns(self, signature: Hashable, rows: int) -> int:
        """How long a run of so many rows takes, as far as is known; 0 while nothing is."""
        times = self.by_signature.get(signature)
        return times.estimate_ns(rows) if times is not None else 0

    def places_worth(self, signature: Hashable, rows: int) -> int:
        """How many requests of so many rows fill a batch of the size that pays best."""
        rows_max = self._limits.rows_max
        if not rows_max or not rows:
            return 1
        is_configured = self._limits.delay_ns_max is not None
        return max(1, (rows_max if is_configured else self.times_for(signature).best_rows(rows_max)) // rows)

    def wait_s(self, rows: int, instances: int) -> float:
        """How long a request behind so many rows waits before it runs, as far as is known."""
        times = self.latest
        if not times:
            return 0.0
        best = times.best_rows(self._limits.rows_max) if self._limits.rows_max else 1
        per_row_ns = times.estimate_ns(best) / best
        return rows * per_row_ns / instances / 1e9

    def refusal(self, waiter: Waiter, queue: Queue, instances: int) -> FarthingError | None:
        """What to tell a request that is not queued yet if it can already be seen to wait too long."""
        wait_ns = int(self.wait_s(queue.rows_before(waiter), instances) * 1e9)
        timeout_ns = queue.refused_after_ns(waiter)
        if timeout_ns and wait_ns > timeout_ns:
            return DeadlineExceeded(
                f"Request timeout expired: model `{self._model}` would start this request in about "
                f"{wait_ns / 1e6:.0f} ms, and its timeout is {timeout_ns / 1e6:.0f} ms",
                hint="allow more time, or come back later",
                retry_after_s=wait_ns / 1e9,
            )
        if wait_ns > WAIT_NS_MAX:
            return Overloaded(
                f"Exceeds maximum queue size: {queue.requests} requests wait for model `{self._model}`, "
                f"about {wait_ns / 1e9:.0f} s of work",
                hint="come back after the time in Retry-After",
                retry_after_s=wait_ns / 1e9,
            )
        return None


def is_time_told_by_signature(spec: ModelSpec) -> bool:
    """Whether requests of one signature take about one time, so that a short run may be expected to be short.

    Texts may have any length whatever their shape, and requests that run alone all have the same signature.
    """
    if any(tensor.datatype == "BYTES" for tensor in spec.inputs):
        return False
    return spec.batch_rows_max > 0 or all(-1 not in tensor.shape for tensor in spec.inputs)


def is_short(times: RowTimes, rows: int, requests: int, inline_ns_max: int) -> bool:
    """Whether a batch is known to be short enough for the event loop, where one request's may take `inline_ns_max`."""
    return 0 < times.estimate_ns(rows) <= inline_ns_max + LOOP_RUN_NS_PER_REQUEST * requests
