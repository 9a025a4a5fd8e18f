"""Batches that another model has just made: run here and now, without a place in the queue for each request.

That is what would become of them anyway if nobody waits, nothing tells one request from another, and the run is short
enough for the event loop: they would be queued, and leave the queue before anything else happens. Nothing else is done
here; everything out of the ordinary, failures too, is for `batching.loop`, which takes them in as riders.
"""

import time
from collections.abc import Callable, Hashable, Sequence

from farthing.batching.batcher import Limits, Run, decide
from farthing.batching.crew import Crew
from farthing.batching.forecast import Forecast, is_short
from farthing.batching.queue import Queue
from farthing.batching.returning import Returning
from farthing.batching.run import Ran, run_whole
from farthing.engines.contract import Batch, Executable
from farthing.telemetry.statistics import ModelStatistics


class AtOnce:
    """The way past the queue of one model version, whose parts are its loop's."""

    def __init__(
        self,
        *,
        executable: Executable,
        limits: Limits,
        queue: Queue,
        crew: Crew,
        forecast: Forecast,
        returning: Returning,
        statistics: ModelStatistics,
        inline_ns_max: int,
        now_ns: Callable[[], int],
    ) -> None:
        """The executable is pure: what went wrong may be run again."""
        self._executable = executable
        self._limits = limits
        self._queue = queue
        self._crew = crew
        self._forecast = forecast
        self._returning = returning
        self._statistics = statistics
        self._inline_ns_max = inline_ns_max
        self._now_ns = now_ns

    def takes(self, rows: Sequence[int], signature: Hashable, now_ns: int, *, is_last: bool) -> int:
        """How many requests of so many rows each, from the first on, may be `run`; 0: they have to be queued.

        As many as would run first if they were queued. Unless they are the last that come, that has to be about as many
        as pay best: the others may ride with them.
        """
        queue = self._queue
        if queue.requests or not self._crew.idle or not queue.takes_at_once(len(rows)):
            return 0
        rows = rows[: self._limits.rows_max]
        requests = len(rows)
        times = self._forecast.times_for(signature)
        callers = self._returning.callers(requests)
        decision = decide(rows, [now_ns] * requests, self._limits, times, callers, now_ns)
        if not isinstance(decision, Run):
            return 0
        taken = decision.requests
        total = sum(rows[:taken])
        if not is_last and taken == requests and self._forecast.places_worth(signature, total) > 1:
            return 0
        return taken if is_short(times, total, taken, self._inline_ns_max) else 0

    def run(self, batch: Batch, rows: int, signature: Hashable, now_ns: int) -> Ran | None:
        """Runs requests that were taken, of so many rows together, and counts them; what they get is in `whole`.

        None if that went wrong: then nothing is counted, and once they are queued each is told what concerns it.
        """
        ran = run_whole(self._executable, batch, rows, self._crew.idle[-1], now_ns=self._now_ns)
        if ran is None:
            return None
        requests = len(batch.members)
        returning, statistics = self._returning, self._statistics
        returning.all_came(requests, now_ns)
        returning.away = requests
        returning.free_ns = end_ns = self._now_ns()
        times = self._forecast.latest = self._forecast.times_for(signature)
        times.observe(rows, ran.input_ns + ran.compute_ns + ran.output_ns)
        waited_ns = ran.started_ns - now_ns
        statistics.request_done(end_ns - now_ns, waited_ns, requests)
        statistics.batch_done(
            requests=requests,
            rows=rows,
            queue_ns=waited_ns * requests,
            input_ns=ran.input_ns,
            compute_ns=ran.compute_ns,
            output_ns=ran.output_ns,
            now_ms=time.time_ns() // 1_000_000,
        )
        return ran
