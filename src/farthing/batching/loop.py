"""The thin loop that carries out what the batcher decides, for one model version.

Lives on the event-loop thread: requests are submitted and answered there. Batches run in `batching.instances`, or on
the event loop itself when a run is shorter than a hand-off to a thread would be. Deciding belongs to
`batching.batcher`, order and bounds to `batching.queue`, the run itself to `batching.run`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from farthing.batching.batch_spans import note_batch
from farthing.batching.batcher import Callers, Limits, Run, Wait, decide
from farthing.batching.crossing import Lane
from farthing.batching.frame_desk import FrameDesk
from farthing.batching.instances import Instances, InstanceThreads, Job, Scheduler
from farthing.batching.queue import ENDED, FIXED_SHAPES, SIGNATURE_ALONE, Queue, Waiter
from farthing.batching.rate_limiter import Turns
from farthing.batching.rider import Onward, Pumped, Rider, riders_of
from farthing.batching.row_times import RowTimes
from farthing.batching.run import Ran, run_in_parts
from farthing.engines.contract import Executable
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.frame_counts import FrameCounts
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import DeadlineExceeded, FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferResponse, Timing

LOOP_RUN_NS_MAX: Final = 60_000
LOOP_RUN_NS_PER_REQUEST: Final = 4_000
"""A batch expected to take no longer than this, plus so much for each of its requests, runs on the event loop. Handing
it to a thread and back was measured at 24 us on one core and 52 us on two, most of it CPU; a request's own way through
the server costs some 20 us on the loop anyway, so nobody is kept waiting for long."""

WAIT_NS_MAX: Final = 30_000_000_000
"""A request that would wait longer than this in the queue is answered `Overloaded` at once; few clients wait 30 s."""

LAG_SMOOTHING: Final = 0.1
"""Weight of the newest lag, from answers to a next request, in their mean."""

LAG_NS_MAX: Final = 100_000_000
"""A longer lag counts as this long: nobody waits so long for company, and a quiet hour must be forgotten soon."""

LOOP_BUSY_NS_MAX: Final = 2_000_000
"""Runs on the event loop take turns with everything else there once they have taken so long together."""

SIGNATURES_MAX: Final = 256
"""Row shapes whose times are remembered; clients choose shapes, so there is an end to it. The one met first goes."""

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
        self.times = RowTimes() if times is None else times
        """Of the row shapes that ran last."""
        has_batch_axis = limits.rows_max > 0
        self._times_of: dict[Hashable, RowTimes] = {FIXED_SHAPES if has_batch_axis else SIGNATURE_ALONE: self.times}
        self._executable = executable
        self._limits = limits
        self._queue = queue
        self._scheduler = scheduler
        self._now_ns = (clock or MonotonicClock()).now_ns
        can_run_inline = executable.can_run_on_event_loop and _is_time_told_by_signature(spec)
        self._run_inline_ns_max = run_inline_ns_max if can_run_inline else 0
        self._has_batch_axis = has_batch_axis
        self._head_max = limits.rows_max or 1
        self._version = str(spec.version)

        self.instances = instances
        """How many may run at a time; some beyond may still be running their last batch."""
        self._leaving: set[int] = set()
        """Those beyond, as long as they run or rest."""
        self._on_shrunk: Callable[[], None] | None = None
        self._threads = make_instances(f"{spec.name}/{spec.version}", self._execute, self._done_elsewhere, scheduler)
        self._idle = list(range(instances))
        self.turns = turns
        if turns is not None:
            turns.wake = self.pump_soon
        self._lane = lane
        if lane is not None:
            lane.wake = self.pump_soon
        self._running: dict[int, Job] = {}
        self._is_pump_due = False
        self._timer: Any = None
        self._timer_ns = 0
        self._lag_ns = 0.0
        self._free_ns = 0
        self._away = 0
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
        arrival = waiter.arrival_ns
        if self._away and waiter.comes_back:
            self._away -= 1
            self._lag_ns += LAG_SMOOTHING * (min(arrival - self._free_ns, LAG_NS_MAX) - self._lag_ns)
        queue = self._queue
        if queue.requests and (waiter.request.timeout_us or queue.has_timeouts or queue.requests > self._head_max):
            self._check_in_time(waiter)
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
        if self._away:
            back = min(self._away, len(riders))
            self._away -= back
            lag_ns = min(riders[0].arrival_ns - self._free_ns, LAG_NS_MAX)
            self._lag_ns += (1 - (1 - LAG_SMOOTHING) ** back) * (lag_ns - self._lag_ns)
        queue.add_all(riders)
        return True

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

    def expected_ns(self, signature: Hashable, rows: int) -> int:
        """How long a run of so many rows takes, as far as is known; 0 while nothing is."""
        times = self._times_of.get(signature)
        return times.estimate_ns(rows) if times is not None else 0

    def places_worth(self, signature: Hashable, rows: int) -> int:
        """How many requests of so many rows fill a batch of the size that pays best."""
        rows_max = self._limits.rows_max
        if not rows_max or not rows:
            return 1
        is_configured = self._limits.delay_ns_max is not None
        return max(1, (rows_max if is_configured else self._times_for(signature).best_rows(rows_max)) // rows)

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait_s(self, rows: int | None = None) -> float:
        """How long a request behind so many rows (None: all that wait) waits before it runs, as far as is known."""
        if not self.times:
            return 0.0
        if rows is None:
            rows = max(self._queue.rows, self._queue.requests)
        best = self.times.best_rows(self._limits.rows_max) if self._limits.rows_max else 1
        per_row_ns = self.times.estimate_ns(best) / best
        return rows * per_row_ns / self.instances / 1e9

    def _times_for(self, signature: Hashable) -> RowTimes:
        """Times depend on the shape of a row (a sentence's length), so each signature has its own."""
        times = self._times_of.get(signature)
        if times is None:
            if len(self._times_of) >= SIGNATURES_MAX:
                self._times_of.pop(next(iter(self._times_of)))
            times = self._times_of[signature] = RowTimes(self.times.best_rows(self._limits.rows_max or 1))
        return times

    def running(self) -> Iterable[Running]:
        """Batches inside the engine now, or requests that wait although there is none, for the watchdog."""
        what = f"model `{self.spec.name}` version {self._version}"
        is_held_up = any(gate is not None and gate.is_waiting for gate in (self.turns, self._lane))
        if is_held_up and not self._running:
            return []  # others run, and are looked at themselves
        if self._queue.requests and not self._running:
            [first] = self._queue.head(1)
            return [Running(what, max(first.arrival_ns, self._free_ns), "has had requests waiting and none running")]
        return [Running(what, job.started_ns) for job in self._running.values()]

    @property
    def is_empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue.requests and not self._running

    # -- more and fewer instances --------------------------------------------------------------------------------

    can_resize = True

    def grow(self, instances: int) -> None:
        """There are so many now, the new ones idle."""
        self._idle += range(self.instances, instances)
        self.instances = instances
        if self._queue.requests:
            self.pump_soon()

    def shrink(self, instances: int, gone: Callable[[], None]) -> None:
        """From now on only the first `instances` get work; `gone` is called once the others run nothing."""
        beyond = set(range(instances, self.instances))
        self.instances = instances
        self._on_shrunk = gone
        self._leaving = beyond - set(self._idle)
        self._idle = [instance for instance in self._idle if instance < instances]
        for instance in beyond - self._leaving:
            self._threads.retire(instance)
        self._tell_if_shrunk()

    def _tell_if_shrunk(self) -> None:
        if not self._leaving and self._on_shrunk is not None:
            self._scheduler.call_soon(self._on_shrunk)
            self._on_shrunk = None

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
        waiters += [waiter for job in self._running.values() for waiter in job.waiters if waiter.state != ENDED]
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
        loops: list[Pumped] = [self]
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
                Callers(self._away, int(self._lag_ns), self._free_ns),
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
                    now = self._free_ns
            elif isinstance(decision, Wait):
                due_ns = decision.until_ns
                break
            else:
                break
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

    def _dispatch(self, waiters: list[Waiter], instance: int, times: RowTimes, now: int) -> bool:
        """Runs a batch on the event loop, if it is short, or hands it to a thread. Whether it ran already."""
        rows = 0
        for waiter in waiters:
            rows += waiter.rows
        job = Job(waiters, rows, instance, times, now)
        part_rows = times.part_rows(rows)
        if part_rows != rows and not any(waiter.goes_on for waiter in waiters):
            job.part_rows = part_rows
        expected_ns = times.estimate_ns(rows) if self._run_inline_ns_max else 0
        if 0 < expected_ns <= self._run_inline_ns_max + LOOP_RUN_NS_PER_REQUEST * job.requests:
            self._done(job, self._execute(job))
            return True
        self._running[job.instance] = job
        if self._lane is not None:
            self._lane.began(instance, rows, times.estimate_ns, now)
        self._threads.run(job)
        return False

    def _execute(self, job: Job) -> Ran:
        return run_in_parts(
            self._executable,
            self.spec.outputs,
            job.waiters,
            job.instance,
            has_batch_axis=self._has_batch_axis,
            part_rows=job.part_rows,
            now_ns=self._now_ns,
        )

    def _done(self, job: Job, ran: Ran) -> None:
        was_elsewhere = self._running.pop(job.instance, None) is not None
        if self.turns is not None:
            self.turns.ran(job.instance)
        if self._lane is not None and self._lane.running:
            self._lane.ended(job.instance, self._now_ns())
        if self.instances > 1 and (rest_s := self._rest_s(ran)):
            self._scheduler.call_later(rest_s, self._after_rest, job.instance)
        else:
            self._rested(job.instance)
        self._free_ns = end_ns = self._now_ns()
        self._away = job.requests if self._frames is None else sum([waiter.comes_back for waiter in job.waiters])
        for waiter in job.waiters:
            if waiter.request.trace is not None:
                note_batch(self.spec, job, ran)
                break
        timing_rest = (ran.input_ns, ran.compute_ns, ran.output_ns, job.rows, job.requests)
        queue_ns = 0
        answered = 0
        name, version, statistics = self.spec.name, self._version, self.statistics
        going_on = riders_of(job.waiters) if ran.whole is not None else {}
        for riders in going_on.values():
            answered += len(riders)
            for arrival_ns, requests in Counter([rider.arrival_ns for rider in riders]).items():
                waited_ns = ran.started_ns - arrival_ns
                queue_ns += waited_ns * requests
                statistics.request_done(end_ns - arrival_ns, waited_ns, requests)
        for waiter, result in zip(job.waiters, ran.results, strict=True):
            if result is None or waiter.state == ENDED:
                continue  # it goes on below, or runs again, or its client left meanwhile
            if isinstance(result, FarthingError):
                statistics.failed(_reason(result), 1, end_ns - waiter.arrival_ns)
                self._answer(waiter, result)
                continue
            waited_ns = ran.started_ns - waiter.arrival_ns - waiter.ran_ns
            queue_ns += waited_ns
            answered += 1
            statistics.request_done(end_ns - waiter.arrival_ns, waited_ns)
            self._answer(
                waiter,
                InferResponse(
                    model_name=name,
                    model_version=version,
                    id=waiter.request.id,
                    outputs=result[0],
                    parameters=result[1],
                    timing=Timing(waited_ns, *timing_rest),
                ),
            )
        if answered:
            if job.rows and answered == job.requests:
                self.times = job.times
                run_ns = ran.input_ns + ran.compute_ns + ran.output_ns
                job.times.observe(job.part_rows, run_ns * job.part_rows // job.rows)
                if was_elsewhere:
                    job.times.observe_hand_over(self._now_ns() - job.started_ns - run_ns)
            statistics.batch_done(
                requests=answered,
                rows=job.rows if self._has_batch_axis else answered,
                queue_ns=queue_ns,
                input_ns=ran.input_ns,
                compute_ns=ran.compute_ns,
                output_ns=ran.output_ns,
                now_ms=time.time_ns() // 1_000_000,
            )
        if ran.whole is not None:
            self._go_on(going_on, ran)
        if self._on_empty:
            self._tell_if_empty()

    def _go_on(self, going_on: Mapping[Onward, Sequence[Rider]], ran: Ran) -> None:
        assert ran.whole is not None
        for onward, riders in going_on.items():
            waiting = [rider for rider in riders if rider.state != ENDED]  # one that was answered may withdraw another
            for rider in waiting:
                rider.state = ENDED
            reached = onward.arrived(waiting, ran.whole, ran) if waiting else None
            if reached is not None:
                self._reached.append(reached)

    def _rest_s(self, ran: Ran) -> float:
        """How long to give an instance no work. One that is down answers at once, and would draw all the work there is.

        While no other instance is up it gets none: then being told at once is the best a request can have.
        """
        first = ran.results[0]
        if isinstance(first, Unavailable) and (self._idle or self._running):
            return first.retry_after_s or 0.0
        return 0.0

    def _after_rest(self, instance: int) -> None:
        self._rested(instance)
        if self._queue.requests:
            self.pump_soon()

    def _rested(self, instance: int) -> None:
        """An instance may run again, unless there are fewer by now."""
        if instance < self.instances:
            self._idle.append(instance)
        else:
            self._leaving.discard(instance)
            self._threads.retire(instance)
            self._tell_if_shrunk()

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

    def _check_in_time(self, waiter: Waiter) -> None:
        """Refuses a request that can already be seen to wait too long."""
        wait_ns = int(self.wait_s(self._queue.rows_before(waiter)) * 1e9)
        timeout_ns = self._queue.refused_after_ns(waiter)
        if timeout_ns and wait_ns > timeout_ns:
            self.statistics.failed(FailureReason.REJECTED)
            raise DeadlineExceeded(
                f"Request timeout expired: model `{self.spec.name}` would start this request in about "
                f"{wait_ns / 1e6:.0f} ms, and its timeout is {timeout_ns / 1e6:.0f} ms",
                hint="allow more time, or come back later",
                retry_after_s=wait_ns / 1e9,
            )
        if wait_ns > WAIT_NS_MAX:
            self.statistics.failed(FailureReason.REJECTED)
            raise Overloaded(
                f"Exceeds maximum queue size: {self._queue.requests} requests wait for model `{self.spec.name}`, "
                f"about {wait_ns / 1e9:.0f} s of work",
                hint="come back after the time in Retry-After",
                retry_after_s=wait_ns / 1e9,
            )

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


def _is_time_told_by_signature(spec: ModelSpec) -> bool:
    """Whether requests of one signature take about one time, so that a short run may be expected to be short.

    Texts may have any length whatever their shape, and requests that run alone all have the same signature.
    """
    if any(tensor.datatype == "BYTES" for tensor in spec.inputs):
        return False
    return spec.batch_rows_max > 0 or all(-1 not in tensor.shape for tensor in spec.inputs)


def _reason(error: FarthingError) -> FailureReason:
    if isinstance(error, InvalidInput):
        return FailureReason.INVALID
    return FailureReason.UNAVAILABLE if isinstance(error, Unavailable) else FailureReason.BACKEND
