"""Where batches run: a thread an instance, started when it is first needed.

An instance runs one batch at a time and hands what came of it back to the event loop. Which batch, and what becomes of
the answers, is up to `batching.loop`.
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from farthing.batching.queue import ENDED, Waiter
from farthing.batching.row_times import RowTimes
from farthing.batching.run import Ran

log = logging.getLogger(__name__)


class Scheduler(Protocol):
    """What batching needs of an event loop; asyncio's and uvloop's have it."""

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> Any: ...

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> Any: ...

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any: ...


class Job:
    """A batch under way on an instance."""

    __slots__ = ("instance", "is_ahead", "part_rows", "requests", "rows", "started_ns", "times", "waiters")

    def __init__(self, waiters: list[Waiter], rows: int, instance: int, times: RowTimes, started_ns: int) -> None:
        self.waiters = waiters
        self.requests = len(waiters)
        self.rows = rows
        self.part_rows = rows
        """Rows of each of its runs."""
        self.instance = instance
        self.times = times
        self.started_ns = started_ns
        self.is_ahead = False
        """Whether it was handed over while its instance ran another."""

    def leave_ended(self) -> None:
        """Leaves out those whose clients have left since it was handed over. On the instance's thread."""
        waiters = [waiter for waiter in self.waiters if waiter.state != ENDED]
        if len(waiters) == self.requests:
            return
        is_whole = self.part_rows == self.rows
        self.waiters, self.requests = waiters, len(waiters)
        self.rows = sum([waiter.rows for waiter in waiters])
        if is_whole:
            self.part_rows = self.rows


class Instances(Protocol):
    """Runs batches somewhere else than on the event loop."""

    def run(self, job: Job) -> None:
        """Begins a batch; the event loop is told when it ended, unless that never happens."""

    def retire(self, instance: int) -> None:
        """An instance that runs nothing gets no more work, unless it is asked again."""

    def close(self, timeout_s: float) -> bool:
        """Lets go of what it holds. Blocks. False if a batch is still running after `timeout_s`."""


class InstanceThreads:
    """One thread an instance."""

    def __init__(
        self,
        name: str,
        execute: Callable[[Job], Ran],
        hand_back: Callable[[Job, Ran], None],
        scheduler: Scheduler,
    ) -> None:
        self._name = name
        self._execute = execute
        self._hand_back = hand_back
        self._scheduler = scheduler
        self._threads: dict[int, tuple[threading.Thread, SimpleQueue[Job | None]]] = {}

    def run(self, job: Job) -> None:
        """Hands the batch to its instance's thread."""
        if job.instance not in self._threads:
            self._start(job.instance)
        self._threads[job.instance][1].put(job)

    def retire(self, instance: int) -> None:
        """Ends the instance's thread, if it has one."""
        thread_and_jobs = self._threads.pop(instance, None)
        if thread_and_jobs is not None:
            thread_and_jobs[1].put(None)

    def close(self, timeout_s: float) -> bool:
        """Ends the threads; one still inside the engine after `timeout_s` is left behind."""
        for _, jobs in self._threads.values():
            jobs.put(None)
        until = time.monotonic() + timeout_s
        for thread, _ in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.warning("model %s: an instance is still running; left behind", self._name)
                return False
        return True

    def _start(self, instance: int) -> None:
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        thread = threading.Thread(target=self._serve, args=(jobs,), name=f"{self._name}#{instance}", daemon=True)
        self._threads[instance] = (thread, jobs)
        thread.start()

    def _serve(self, jobs: "SimpleQueue[Job | None]") -> None:
        while (job := jobs.get()) is not None:
            ran = self._execute(job)
            try:
                self._scheduler.call_soon_threadsafe(self._hand_back, job, ran)
            except RuntimeError:  # the event loop is closed: nobody is left to answer
                return
