"""The thin loop that carries out what the batcher decides, for one model version.

Lives on the event-loop thread: requests are submitted and answered there. Batches run in `batching.instances`, or on
the event loop itself when a run is shorter than a hand-off to a thread would be. Deciding belongs to
`batching.batcher`, order and bounds to `batching.queue`, the run itself to `batching.run`, what is told of it to
`batching.answers`, how long things take to `batching.forecast`, more and fewer instances to `batching.crew`.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from farthing.batching.ahead import RUN_NS_MAX, Ahead
from farthing.batching.answers import answer_batch
from farthing.batching.at_once import AtOnce
from farthing.batching.batch_spans import note_batch
from farthing.batching.batcher import Limits, Run, Wait, decide, full_batch
from farthing.batching.crew import Crew
from farthing.batching.crossing import Lane
from farthing.batching.forecast import LOOP_RUN_NS_MAX, Forecast, is_short, is_time_told_by_signature
from farthing.batching.frame_desk import FrameDesk
from farthing.batching.instances import Instances, InstanceThreads, Job, Scheduler
from farthing.batching.queue import ENDED, Queue, Waiter
from farthing.batching.rate_limiter import Turns
from farthing.batching.returning import Returning
from farthing.batching.rider import Onward, Pumped, Rider, riders_of
from farthing.batching.row_times import RowTimes
from farthing.batching.run import Ran, run_in_parts
from farthing.engines.contract import Executable
from farthing.engines.cores import cores_available
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.frame_counts import FrameCounts
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import DeadlineExceeded, FarthingError, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferResponse

LOOP_BUSY_NS_MAX: Final = 2_000_000
"""Runs on the event loop take turns with everything else there once they have taken so long together."""

log = logging.getLogger(__name__)


class BatchLoop:
    """Queue, instances and answers of one loaded model version."""

    def __init__(
        self,
        *,
        spec: ModelSpec,
        executable: Executable,
        instances: int,
        limits: Limits,
        queue: Queue,
        statistics: ModelStatistics,
        scheduler: Scheduler,
        times: RowTimes | None = None,
        clock: Clock | None = None,
        run_inline_ns_max: int = LOOP_RUN_NS_MAX,
        make_instances: Callable[..., Instances] = InstanceThreads,
        turns: Turns | None = None,
        lane: Lane | None = None,
    ) -> None:
        """`turns` holds instances back until what they need is free, `lane` lets frames of other models go first; None:
        nothing is needed."""
        self.spec = spec
        self.statistics = statistics
        self.forecast = Forecast(spec.name, limits, times)
        self._times_for = self.forecast.times_for
        self._executable = executable
        self._limits = limits
        self._queue = queue
        self._scheduler = scheduler
        self._now_ns = (clock or MonotonicClock()).now_ns
        can_run_inline = executable.can_run_on_event_loop and is_time_told_by_signature(spec)
        self._run_inline_ns_max = run_inline_ns_max if can_run_inline else 0
        self._has_batch_axis = limits.rows_max > 0
        self._head_max = limits.rows_max or 1
        self._version = str(spec.version)

        self._threads = make_instances(f"{spec.name}/{spec.version}", self._execute, self._done_elsewhere, scheduler)
        self.crew = Crew(instances, self._threads, scheduler)
        self._idle = self.crew.idle
        self.turns = turns
        if turns is not None:
            turns.wake = self.pump_soon
        self._lane = lane
        if lane is not None:
            lane.wake = self.pump_soon
        self._returning = Returning()
        self._at_once: AtOnce | None = None
        if self._run_inline_ns_max and executable.is_pure and spec.batch_rows_max:
            self._at_once = AtOnce(
                executable=executable,
                limits=limits,
                queue=queue,
                crew=self.crew,
                forecast=self.forecast,
                returning=self._returning,
                statistics=statistics,
                inline_ns_max=self._run_inline_ns_max,
                now_ns=self._now_ns,
            )
        self._running: dict[int, Job] = {}
        may_run_ahead = executable.is_pure and executable.can_run_on_event_loop and turns is None
        self._ahead = Ahead(self.crew) if may_run_ahead and cores_available() > 1 else None
        self._is_pump_due = False
        self._timer: Any = None
        self._timer_ns = 0
        self._closed = False
        self._reached: list[Pumped] = []
        """Where riders went on to since the last pump began."""
        self._on_empty: list[Callable[[], None]] = []
        self._frames: FrameDesk | None = None

    # -- requests ------------------------------------------------------------------------------------------------

    def submit(self, waiter: Waiter) -> None:
        """Queues a request. Raises `Overloaded`, `DeadlineExceeded` or `Unavailable` when that is already clear."""
        if self._closed:
            self.statistics.failed(FailureReason.REJECTED)
            raise Unavailable(f"model `{self.spec.name}` version {self._version} is being unloaded", retry_after_s=1)
        if self._returning.away and waiter.comes_back:
            self._returning.came(waiter.arrival_ns)
        queue = self._queue
        if queue.requests and (waiter.request.timeout_us or queue.has_timeouts or queue.requests > self._head_max):
            late = self.forecast.refusal(waiter, queue, self.crew.size)
            if late is not None:
                self.statistics.failed(FailureReason.REJECTED)
                raise late
        try:
            queue.add(waiter)
        except Overloaded as full:
            full.retry_after_s = self.wait_s() or full.retry_after_s
            self.statistics.failed(FailureReason.REJECTED)
            raise
        self.pump_soon()

    def submit_all(self, riders: Sequence[Rider]) -> bool:
        """Queues riders of one signature that come together, as `submit` would one by one; False: they have to.

        `pump_once` or `pump_soon` has to follow.
        """
        queue = self._queue
        if self._closed or not queue.takes_at_once(len(riders)) or queue.requests + len(riders) > self._head_max:
            return False
        self._returning.all_came(len(riders), riders[0].arrival_ns)
        queue.add_all(riders)
        return True

    def at_once(self) -> AtOnce | None:
        """Where batches that another model made run now; None: their requests have to wait."""
        return None if self._closed or self.turns is not None or self._frames is not None else self._at_once

    def pump_soon(self) -> None:
        """Looks at the queue in the next turn of the event loop."""
        if not self._is_pump_due:
            self._is_pump_due = True
            self._scheduler.call_soon(self._pump)

    def cancel(self, waiter: Waiter) -> None:
        """The client is gone: a request that waits is dropped, one that runs will not be answered."""
        if waiter.state != ENDED:
            self.statistics.failed(FailureReason.CANCELED)
            self.withdraw(waiter)

    # -- streams of frames ---------------------------------------------------------------------------------------

    @property
    def frames(self) -> FrameDesk:
        """Where streams of frames are taken in; made for the first one."""
        if self._frames is None:
            counts = self.statistics.frames = self.statistics.frames or FrameCounts()
            self._frames = FrameDesk(self, self.spec.name, counts, self._scheduler, self._now_ns, self._lane)
        return self._frames

    def withdraw(self, waiter: Waiter) -> None:
        """Takes a waiter out of the queue, or lets what it runs be for nothing."""
        if not self._queue.remove(waiter):
            waiter.state = ENDED
        self._gauges()
        self._tell_if_empty()

    @property
    def times(self) -> RowTimes:
        """Of the row shapes that ran last."""
        return self.forecast.latest

    def expected_ns(self, signature: Hashable, rows: int) -> int:
        """How long a run of so many rows takes, as far as is known; 0 while nothing is."""
        return self.forecast.run_ns(signature, rows)

    def places_worth(self, signature: Hashable, rows: int) -> int:
        """How many requests of so many rows fill a batch of the size that pays best."""
        return self.forecast.places_worth(signature, rows)

    def wait_s(self, rows: int | None = None) -> float:
        """How long a request behind so many rows (None: all that wait) waits before it runs, as far as is known."""
        queue = self._queue
        return self.forecast.wait_s(max(queue.rows, queue.requests) if rows is None else rows, self.crew.size)

    def running(self) -> Iterable[Running]:
        """Batches inside the engine now, or requests that wait although there is none, for the watchdog."""
        what = f"model `{self.spec.name}` version {self._version}"
        is_held_up = any(gate is not None and gate.is_waiting for gate in (self.turns, self._lane))
        if is_held_up and not self._running:
            return []  # others run, and are looked at themselves
        if self._queue.requests and not self._running:
            [first] = self._queue.head(1)
            since_ns = max(first.arrival_ns, self._returning.free_ns)
            return [Running(what, since_ns, "has had requests waiting and none running")]
        return [Running(what, job.started_ns) for job in self._running.values()]

    @property
    def is_empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue.requests and not self._running

    # -- more and fewer instances --------------------------------------------------------------------------------

    can_resize = True

    @property
    def instances(self) -> int:
        """How many may run at a time."""
        return self.crew.size

    def grow(self, instances: int) -> None:
        """There are so many now, the new ones idle."""
        self.crew.grow(instances)
        if self._queue.requests:
            self.pump_soon()

    def shrink(self, instances: int, gone: Callable[[], None]) -> None:
        """From now on only the first `instances` get work; `gone` is called once the others run nothing."""
        self.crew.shrink(instances, gone)

    # -- the end -------------------------------------------------------------------------------------------------

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Calls back once nothing waits and nothing runs; new requests are refused from now on."""
        self._closed = True
        for gate in (self.turns, self._lane):
            if gate is not None:
                callback = partial(_both, gate.leave, callback)
        if self.is_empty:
            self._scheduler.call_soon(callback)
        else:
            self._on_empty.append(callback)

    def fail_all(self, error: FarthingError) -> None:
        """Answers everyone who waits or whose batch runs with an error: a drain that ran out of time."""
        waiters = self._queue.drain()
        ahead = self._ahead.jobs.values() if self._ahead is not None else ()
        waiters += [w for job in (*self._running.values(), *ahead) for w in job.waiters if w.state != ENDED]
        self.statistics.failed(FailureReason.OTHER, len(waiters))
        for waiter in waiters:
            self._answer(waiter, error)
        self._gauges()
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self._on_empty and self.is_empty:
            for callback in self._on_empty:
                self._scheduler.call_soon(callback)
            self._on_empty.clear()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Ends the instances' threads and the engine. Blocks; call it off the event loop, with nothing running.

        Answers False when a thread is still inside the engine after `timeout_s`: then nothing is freed.
        """
        self._closed = True
        if not self._threads.close(timeout_s):
            return False
        self._executable.close()
        return True

    # -- the loop ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Runs what waits, and in the same turn, as long as it is short, what waits for that in other models."""
        began = self._now_ns()
        # This one whatever the time: it is due now, so that `pump_soon` would not call it again.
        loops = list(self.pump_once())
        for loop in loops:
            if self._now_ns() - began > LOOP_BUSY_NS_MAX:
                loop.pump_soon()
            else:
                loops += loop.pump_once()

    def pump_once(self) -> Sequence[Pumped]:
        """Runs what waits, if it is time; answers the loops of other models where riders are queued because of that."""
        self._is_pump_due = False
        queue = self._queue
        began = now = self._now_ns()
        self._expire(now)
        due_ns = 0
        is_held_up = is_crossing = False
        while self._idle and queue.requests:
            if now - began > LOOP_BUSY_NS_MAX:
                self.pump_soon()
                break
            head = queue.head(self._head_max)
            times = self._times_for(head[0].signature)
            decision = decide(
                [waiter.rows for waiter in head],
                [waiter.arrival_ns for waiter in head],
                self._limits,
                times,
                self._returning.callers(),
                now,
            )
            if self._frames is not None and decision is not None:
                decision = self._frames.settle(head, decision, now)
                if decision is None:
                    continue
            if self._lane is not None and self._lane.is_watched and isinstance(decision, Run):
                decision = self._right_of_way(self._lane, decision, head, times, now)
                is_crossing = isinstance(decision, Wait)
            if isinstance(decision, Run):
                instance = self._idle[-1] if self.turns is None else self.turns.pick(self._idle)
                if instance is None:
                    is_held_up = True
                    break
                self._idle.remove(instance)
                waiters = head[: decision.requests]
                queue.take(waiters)
                if self._frames is not None:
                    self._frames.board(waiters, now)
                if self._dispatch(waiters, instance, times, now):
                    now = self._now_ns()  # riders may have run on
            elif isinstance(decision, Wait):
                due_ns = decision.until_ns
                break
            else:
                break
        if self._ahead is not None and not self._idle and queue.requests:
            self._hand_over_ahead(self._ahead, now)
        if self.turns is not None:
            self.turns.settle(is_asking=is_held_up)
        if self._lane is not None and self._lane.is_waiting:
            self._lane.settle(now, is_asking=is_crossing)
        self._set_timer(due_ns, now)
        self._gauges()
        reached, self._reached = self._reached, []
        return reached

    def _right_of_way(self, lane: Lane, decision: Run, head: Sequence[Waiter], times: RowTimes, now: int) -> Run | Wait:
        """What of a batch may start while frames of other models are to be on time."""
        due_ns = min((waiter.request.due_ns for waiter in head if waiter.request.due_ns), default=0)
        if self._frames is not None and (frame_ns := self._frames.due_ns):
            due_ns = min(due_ns or frame_ns, frame_ns)
        return lane.ask([waiter.rows for waiter in head[: decision.requests]], times.estimate_ns, due_ns, now)

    def _hand_over_ahead(self, ahead: Ahead, now: int) -> None:
        """Hands full batches to instances that still run others, where nobody could have a right to go first."""
        queue, limits = self._queue, self._limits
        if self._frames is not None or not queue.is_plain or (self._lane is not None and self._lane.is_watched):
            return
        while queue.requests and (instance := ahead.pick(self._running)) is not None:
            head = queue.head(self._head_max)
            times = self._times_for(head[0].signature)
            waiters = head[: full_batch([waiter.rows for waiter in head], limits, times)]
            if not waiters or not 0 < times.estimate_ns(sum([waiter.rows for waiter in waiters])) <= RUN_NS_MAX:
                return
            queue.take(waiters)
            job = self._job(waiters, instance, times, now)
            job.is_ahead = True
            ahead.jobs[instance] = job
            self._threads.run(job)

    def _job(self, waiters: list[Waiter], instance: int, times: RowTimes, now: int) -> Job:
        rows = 0
        for waiter in waiters:
            rows += waiter.rows
        job = Job(waiters, rows, instance, times, now)
        part_rows = times.part_rows(rows)
        if part_rows != rows and not any(waiter.goes_on for waiter in waiters):
            job.part_rows = part_rows
        return job

    def _dispatch(self, waiters: list[Waiter], instance: int, times: RowTimes, now: int) -> bool:
        """Runs a batch on the event loop, if it is short, or hands it to a thread. Whether it ran already."""
        job = self._job(waiters, instance, times, now)
        rows = job.rows
        if self._is_short(times, rows, job.requests):
            self._done(job, self._execute(job))
            return True
        self._running[job.instance] = job
        if self._lane is not None:
            self._lane.began(instance, rows, times.estimate_ns, now)
        self._threads.run(job)
        return False

    def _is_short(self, times: RowTimes, rows: int, requests: int) -> bool:
        """Whether a batch is short enough for the event loop."""
        return self._run_inline_ns_max > 0 and is_short(times, rows, requests, self._run_inline_ns_max)

    def _execute(self, job: Job) -> Ran:
        if job.is_ahead:
            job.leave_ended()
            if not job.waiters:
                return Ran((), self._now_ns(), 0, 0, 0)
        return run_in_parts(
            self._executable,
            self.spec.outputs,
            job.waiters,
            job.instance,
            has_batch_axis=self._has_batch_axis,
            part_rows=job.part_rows,
            axes=self._limits.axes,
            now_ns=self._now_ns,
        )

    def _done(self, job: Job, ran: Ran) -> None:
        was_elsewhere = self._running.pop(job.instance, None) is not None
        if self.turns is not None:
            self.turns.ran(job.instance)
        if self._lane is not None and self._lane.running:
            self._lane.ended(job.instance, self._now_ns())
        following = (
            self._ahead.begin(job.instance, self._now_ns()) if self._ahead is not None and was_elsewhere else None
        )
        if following is not None:
            self._running[job.instance] = following
            if self._lane is not None:
                self._lane.began(job.instance, following.rows, following.times.estimate_ns, following.started_ns)
        elif self.crew.size > 1 and (rest_s := self._rest_s(ran)):
            self._scheduler.call_later(rest_s, self._after_rest, job.instance)
        else:
            self.crew.rested(job.instance)
        returning = self._returning
        returning.free_ns = end_ns = self._now_ns()
        returning.away = job.requests if self._frames is None else sum([waiter.comes_back for waiter in job.waiters])
        for waiter in job.waiters:
            if waiter.request.trace is not None:
                note_batch(self.spec, job, ran)
                break
        statistics = self.statistics
        going_on = riders_of(job.waiters) if ran.whole is not None else {}
        answered, queue_ns = answer_batch(
            job, ran, going_on.values(), end_ns, statistics, (self.spec.name, self._version), self._answer
        )
        if answered:
            if job.rows and answered == job.requests:
                self.forecast.latest = job.times
                run_ns = ran.input_ns + ran.compute_ns + ran.output_ns
                job.times.observe(job.part_rows, run_ns * job.part_rows // job.rows)
                if was_elsewhere and not job.is_ahead:
                    job.times.observe_hand_over(self._now_ns() - job.started_ns - run_ns)
            statistics.batch_done(
                requests=answered,
                rows=job.rows if self.spec.batch_rows_max else answered,
                queue_ns=queue_ns,
                input_ns=ran.input_ns,
                compute_ns=ran.compute_ns,
                output_ns=ran.output_ns,
                now_ms=time.time_ns() // 1_000_000,
            )
        if ran.whole is not None:
            self._go_on(going_on, ran, is_last=was_elsewhere or not self._queue.requests)
        if self._on_empty:
            self._tell_if_empty()

    def _go_on(self, going_on: Mapping[Onward, Sequence[Rider]], ran: Ran, *, is_last: bool) -> None:
        assert ran.whole is not None
        left = len(going_on)
        for onward, riders in going_on.items():
            left -= 1
            waiting = []
            for rider in riders:
                if rider.state != ENDED:  # one that was answered may withdraw another
                    rider.state = ENDED
                    waiting.append(rider)
            if waiting:
                self._reached += onward.arrived(waiting, ran.whole, ran, is_last=is_last and not left)

    def _rest_s(self, ran: Ran) -> float:
        """How long to give an instance no work. One that is down answers at once, and would draw all the work there is.

        While no other instance is up it gets none: then being told at once is the best a request can have.
        """
        first = ran.results[0] if ran.results else None
        if isinstance(first, Unavailable) and (self._idle or self._running):
            return first.retry_after_s or 0.0
        return 0.0

    def _after_rest(self, instance: int) -> None:
        self.crew.rested(instance)
        if self._queue.requests:
            self.pump_soon()

    def _answer(self, waiter: Waiter, answer: InferResponse | FarthingError) -> None:
        waiter.state = ENDED
        try:
            waiter.done(answer)
        except Exception:
            # One client's trouble must not take the answers of those who rode in the same batch.
            log.exception("model %s: handing over an answer failed", self.spec.name)

    def _expire(self, now: int) -> None:
        late = self._queue.expired(now)
        for waiter in late:
            self.statistics.failed(FailureReason.REJECTED, 1, now - waiter.arrival_ns)
            waited_ms = (now - waiter.arrival_ns) / 1e6
            if waiter.request.trace is not None:
                waiter.request.trace.note("queue", waiter.arrival_ns, now, error=DeadlineExceeded.__name__)
            self._answer(
                waiter,
                DeadlineExceeded(
                    f"Request timeout expired: waited {waited_ms:.1f} ms for model `{self.spec.name}`",
                    hint="the model is busy: allow more time, or come back later",
                    retry_after_s=self.wait_s(),
                ),
            )
        if late:
            self._tell_if_empty()

    def _set_timer(self, due_ns: int, now: int) -> None:
        deadline_ns = self._queue.next_deadline_ns()
        if deadline_ns and (not due_ns or deadline_ns < due_ns):
            due_ns = deadline_ns
        if due_ns == self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ns = due_ns
        if due_ns:
            self._timer = self._scheduler.call_later(max(0, due_ns - now) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_ns = 0
        self._pump()

    def _gauges(self) -> None:
        statistics = self.statistics
        statistics.pending_requests = self._queue.requests
        statistics.pending_rows = self._queue.rows
        statistics.running_batches = len(self._running)

    def _done_elsewhere(self, job: Job, ran: Ran) -> None:
        self._done(job, ran)
        reached, self._reached = self._reached, []
        for loop in reached:
            loop.pump_soon()
        if self._queue.requests and not self._is_pump_due:
            self._pump()
        else:
            self._gauges()


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
