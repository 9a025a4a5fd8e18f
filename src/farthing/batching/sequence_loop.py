"""The thin loop that runs sequences' requests: a batch loop whose queue is `sequences`.

Answers, statistics, instances and the end of a model are those of `loop.BatchLoop`. What differs: who may run is up
to `sequences`, what leaves together to `sequence_batcher`, states travel with their sequence, sequences that rest for
too long are ended, and a request of an iterative sequence may run again. Those that are answered more than once belong
to `sequence_stream_loop`.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from farthing.batching.batcher import NOBODY, Run, Wait
from farthing.batching.instances import Job
from farthing.batching.loop import LOOP_BUSY_NS_MAX, BatchLoop
from farthing.batching.queue import ENDED, RETRY_AFTER_S_DEFAULT, Queue, Waiter
from farthing.batching.row_times import RowTimes
from farthing.batching.run import Ran
from farthing.batching.sequence import SequenceWaiter
from farthing.batching.sequence_batcher import SequenceRules, decide_batch
from farthing.batching.sequence_run import States, run_sequences
from farthing.batching.sequence_tensors import Row, SequenceTensors
from farthing.batching.sequences import Sequences
from farthing.telemetry.statistics import FailureReason, SequenceCounts
from farthing.telemetry.watchdog import Running
from farthing.types.errors import DeadlineExceeded, FarthingError, InvalidInput

NEVER_NS: Final = 1 << 63
"""Later than any time."""


class SequenceJob(Job):
    """A batch under way, row by row."""

    __slots__ = ("by_row", "requests_of_sequences", "states")

    def __init__(
        self, by_row: list[Row], waiters: list[SequenceWaiter], instance: int, times: RowTimes, started_ns: int
    ) -> None:
        super().__init__(list(waiters), len(by_row), instance, times, started_ns)
        self.by_row = by_row
        self.requests_of_sequences = waiters
        self.states: Iterable[States | None] = ()
        """What each request left, once it has run."""


class SequenceLoop(BatchLoop):
    """Sequences, instances and answers of one loaded model version."""

    def __init__(
        self, *, rules: SequenceRules, tensors: SequenceTensors, sequences: Sequences, **settings: Any
    ) -> None:
        # All that the methods we keep ask of a queue, sequences answer too.
        super().__init__(limits=rules.limits, queue=cast("Queue", sequences), **settings)
        self._rules = rules
        self._tensors = tensors
        self._sequences = sequences
        if rules.is_direct:
            self._head_max = rules.slots
        self._last_instance = 0
        if self.statistics.sequences is None:
            self.statistics.sequences = SequenceCounts()
        self._counts = self.statistics.sequences

    can_resize = False
    """Sequences belong to an instance."""

    def submit(self, waiter: Waiter) -> None:
        """Queues a request; `InvalidInput` too when it continues a sequence that there is not."""
        try:
            super().submit(waiter)
        except InvalidInput:
            self.statistics.failed(FailureReason.INVALID)
            raise

    def cancel(self, waiter: Waiter) -> None:
        """The client is gone: a request that waits is dropped, one that runs will not be answered."""
        assert isinstance(waiter, SequenceWaiter)
        if waiter.state == ENDED:
            return
        if not self._sequences.remove(waiter, self._now_ns()):
            waiter.state = ENDED
        self.statistics.failed(FailureReason.CANCELED)
        self._answer_orphans(self._sequences.no_start)
        self.pump_soon()  # a slot may have come free, and a rest begun
        self._tell_if_empty()

    def running(self) -> Iterable[Running]:
        """As a batch loop's; requests that wait for a slot are not the engine's fault."""
        for job in self._running.values():
            yield Running(f"model `{self.spec.name}` version {self._version}", job.started_ns)

    def when_empty(self, callback: Callable[[], None]) -> None:
        """As a batch loop's; sequences at rest end at once."""
        super().when_empty(callback)
        self.pump_soon()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        self._is_pump_due = False
        sequences = self._sequences
        began = now = self._now_ns()
        self._expire(now)
        self._answer_orphans(_timed_out)
        if self._closed:
            sequences.end_idle(NEVER_NS)  # nobody can continue them
        else:
            self._counts.timed_out += sequences.end_idle(now)
        due_ns = 0
        is_held_up = False
        for instance in tuple(self._idle):
            while instance in self._idle and sequences.has_ready(instance):
                if now - began > LOOP_BUSY_NS_MAX:
                    self.pump_soon()
                    break
                ready, since_ns = sequences.runnable(instance, self._head_max)
                times = self._times_for(ready[0].signature)
                callers = self._returning.callers()
                decision = decide_batch(
                    since_ns, self._rules, times, callers if instance == self._last_instance else NOBODY, now
                )
                if isinstance(decision, Run):
                    if self.turns is not None and self.turns.pick((instance,)) is None:
                        is_held_up = True
                        break
                    if self._run(ready[: decision.requests], instance, times, now):
                        now = self._returning.free_ns
                    continue
                if isinstance(decision, Wait):
                    due_ns = min(due_ns, decision.until_ns) if due_ns else decision.until_ns
                break
        if self.turns is not None:
            self.turns.settle(is_asking=is_held_up)
        self._set_timer(due_ns, now)
        self._gauges()

    def _run(self, waiters: list[SequenceWaiter], instance: int, times: RowTimes, now: int) -> bool:
        """Runs a batch on the event loop, if it is short, or hands it to a thread. Whether it ran already."""
        sequences = self._sequences
        by_row: list[Row] = list(waiters)
        if self._rules.is_direct:
            waiters = sorted(waiters, key=lambda waiter: waiter.sequence.slot)  # answers come row by row
            by_row = [None] * (waiters[-1].sequence.slot + 1)
            for waiter in waiters:
                by_row[waiter.sequence.slot] = waiter
        sequences.take(waiters)
        self._idle.remove(instance)
        job = self._begin(by_row, waiters, instance, times, now)
        if self._is_short(times, job.rows, job.requests):
            self._done(job, self._execute(job))
            return True
        self._running[instance] = job
        self._threads.run(job)
        return False

    def _begin(self, by_row: list[Row], waiters: list[SequenceWaiter], instance: int, times: RowTimes, now: int) -> Job:
        return SequenceJob(by_row, waiters, instance, times, now)

    def _execute(self, job: Job) -> Ran:
        assert isinstance(job, SequenceJob)
        ran, job.states = run_sequences(
            self._executable,
            self._tensors,
            self.spec.outputs,
            job.by_row,
            job.instance,
            rows_are_slots=self._rules.is_direct,
            is_iterative=self._rules.is_iterative,
            now_ns=self._now_ns,
        )
        return ran

    def _done(self, job: Job, ran: Ran) -> None:
        assert isinstance(job, SequenceJob)
        now = self._now_ns()
        through: list[SequenceWaiter] = []
        again = 0
        # First, so that a client who hears of its answer finds its sequence ready for the next request.
        for waiter, left, result in zip(job.requests_of_sequences, job.states, ran.results, strict=True):
            if left is not None:
                self._keep(waiter, left)
            again += result is None
            if result is None and waiter.state != ENDED:
                waiter.ran_ns += now - ran.started_ns
                self._sequences.again(waiter, now)
            else:
                through.append(waiter)
        self._sequences.finished(through, now)
        self._last_instance = job.instance
        statistics = self.statistics
        runs, rows = statistics.execution_count, statistics.inference_count
        super()._done(job, ran)
        if again:
            self._returning.away -= again  # their callers still wait
            if statistics.execution_count == runs:
                self._ran_for_nobody_yet(job, ran)
        if statistics.execution_count > runs:
            # Padding is nobody's row, and who runs again is counted by the last run.
            statistics.inference_count = rows + sum(isinstance(result, tuple) for result in ran.results)

    def _keep(self, waiter: SequenceWaiter, states: States) -> None:
        """What a request has left for the next, or for its own next run."""
        waiter.sequence.states = states
        if self._tensors.has_free_states:
            waiter.sequence.state_shapes = tuple(tensor.shape for tensor in states.values())

    def _ran_for_nobody_yet(self, job: Job, ran: Ran) -> None:
        """A run that answered nobody, since all its requests run again."""
        if not any(isinstance(result, FarthingError) for result in ran.results):
            job.times.observe(job.rows, ran.input_ns + ran.compute_ns + ran.output_ns)
        self.statistics.batch_done(
            requests=0,
            rows=job.rows,
            queue_ns=0,
            input_ns=ran.input_ns,
            compute_ns=ran.compute_ns,
            output_ns=ran.output_ns,
            now_ms=time.time_ns() // 1_000_000,
        )

    def _done_elsewhere(self, job: Job, ran: Ran) -> None:
        self._done(job, ran)
        if not self._is_pump_due:
            self._pump()  # also when nothing waits: a sequence that rests from now on needs a timer

    def _answer_orphans(self, error: Callable[[SequenceWaiter], FarthingError]) -> None:
        """Answers those whose sequence can never begin."""
        for waiter in self._sequences.orphans():
            answer = error(waiter)
            reason = FailureReason.INVALID if isinstance(answer, InvalidInput) else FailureReason.REJECTED
            self.statistics.failed(reason)
            self._answer(waiter, answer)

    def _set_timer(self, due_ns: int, now: int) -> None:
        """As a batch loop's, but a timer that goes off early stays: nearly every request moves the next idle one."""
        deadline_ns = self._sequences.next_deadline_ns()
        due_ns = min(due_ns or deadline_ns, deadline_ns or due_ns)
        if self._timer is not None and not self._closed and (not due_ns or self._timer_ns <= due_ns):
            return
        super()._set_timer(due_ns, now)

    def _gauges(self) -> None:
        super()._gauges()
        self._counts.active = self._sequences.active
        self._counts.backlog = self._sequences.backlog


def _timed_out(waiter: SequenceWaiter) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"timeout of the corresponding sequence has been expired: the first request of sequence {waiter.sequence_id} "
        "waited for longer than its timeout",
        hint="start the sequence again, with more time or later",
        retry_after_s=RETRY_AFTER_S_DEFAULT,
    )
