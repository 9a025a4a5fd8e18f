"""The thin loop of a model of sequences that answers its requests as often as it likes.

Who may run is up to `sequences`, as in `sequence_loop`; what is said is handed on as in `stream_loop`. What is added is
when a request's turn is over, so that the next of its sequence may run:

    the batch has returned     the next may run; this one may still be answered, as in Triton
    its last response          instead, where its sequence's states are the server's, or the model returns at once
    it is to run again         behind all that are ready (iterative sequences); not before its client has caught up
"""

from collections import deque
from functools import partial
from typing import Any, Final

from farthing.batching.instances import Job
from farthing.batching.queue import ENDED, WAITING, Waiter
from farthing.batching.row_times import RowTimes
from farthing.batching.run import Ran, as_error
from farthing.batching.sequence import SequenceWaiter
from farthing.batching.sequence_loop import SequenceLoop
from farthing.batching.sequence_run import States, gather_rows
from farthing.batching.sequence_tensors import Row
from farthing.batching.stream_loop import BEGUN, STREAMS_MAX, StreamJob, StreamLoop, StreamWaiter
from farthing.engines.contract import MemberAnswer
from farthing.engines.streaming import Part
from farthing.telemetry.statistics import FailureReason, ResponseKind
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.requests import InferResponse

AHEAD_RESPONSES_MAX: Final = 32
AHEAD_BYTES_MAX: Final = 4 << 20
"""With so many responses, or bytes of them, that its client has not taken, a request does not run again: as many as an
engine makes ahead in one run."""


class SequenceStreamWaiter(StreamWaiter, SequenceWaiter):
    """A request of a sequence that is answered as often as the model likes."""

    def __init__(self, *waiter: Any, **of_sequence: Any) -> None:
        super().__init__(*waiter, **of_sequence)
        self.untaken: deque[tuple[StreamJob, int, int]] = deque()
        """Of each response that nobody has taken: the batch it is from, the place there, its bytes."""
        self.untaken_bytes = 0
        self.states: States | None = None
        """What it has left so far."""

    @property
    def is_behind(self) -> bool:
        """Whether its client has yet to take what was said."""
        return len(self.untaken) >= AHEAD_RESPONSES_MAX or self.untaken_bytes >= AHEAD_BYTES_MAX


class SequenceStreamJob(StreamJob):
    """A batch whose members are being answered, row by row."""

    __slots__ = ("again", "by_row", "of_sequences")

    def __init__(
        self, by_row: list[Row], waiters: list[SequenceStreamWaiter], instance: int, times: RowTimes, now: int
    ) -> None:
        super().__init__(list(waiters), len(by_row), instance, times, now)
        self.by_row = by_row
        self.of_sequences = waiters
        self.again = 0
        """How many of them run again."""
        for place, row in enumerate(by_row):
            if isinstance(row, SequenceStreamWaiter):
                row.place = place


class SequenceStreamLoop(StreamLoop, SequenceLoop):
    """Sequences, instances and streams of one loaded model version."""

    def __init__(self, *, streams_max: int = STREAMS_MAX, **settings: Any) -> None:
        """As the two loops'. Requests whose turn is not over need their instance to end, so they count for nothing."""
        super().__init__(streams_max=streams_max + settings["rules"].slots, **settings)
        self._turn_lasts = bool(self._tensors.states) or self._streaming.returns_at_once
        """Until the last response."""
        self._has_one_at_a_time = self._rules.is_in_order and not self._rules.is_iterative
        """Requests of an instance are answered one after the other: each has all its responses before the next."""
        if self._has_one_at_a_time:
            self._head_max = 1
            self._turn_lasts = True
        self._engaged: set[int] = set()
        """Instances that could begin a batch, and have one to answer first."""

    can_resize = False

    def taken(self, waiter: StreamWaiter) -> None:
        """One more of its responses has been dealt with: another may be made, and it may run again."""
        assert isinstance(waiter, SequenceStreamWaiter)
        if not waiter.untaken:
            return
        job, place, size = waiter.untaken.popleft()
        waiter.untaken_bytes -= size
        if job.running is not None:
            job.running.take(place)
        if waiter.is_held and not waiter.is_behind:
            self._sequences.go_on(waiter, self._now_ns())
            self.pump_soon()

    def cancel(self, waiter: Waiter) -> None:
        """The client is gone: the request is dropped, between its runs too, or the model told."""
        assert isinstance(waiter, SequenceStreamWaiter)
        if waiter.state == ENDED:
            return
        if waiter not in self._streams:
            SequenceLoop.cancel(self, waiter)
            return
        now = self._now_ns()
        self.statistics.failed(FailureReason.CANCELED)
        self.statistics.response(waiter.said, ResponseKind.CANCEL, max(0, now - waiter.said_ns), 0)
        self._let_go(waiter, now)
        self.pump_soon()

    def fail_all(self, error: FarthingError) -> None:
        """Ends everyone who waits or is being answered with an error."""
        now = self._now_ns()
        for waiter in list(self._streams):
            self.statistics.failed(FailureReason.OTHER)
            assert isinstance(waiter, SequenceStreamWaiter)
            self._let_go(waiter, now)
            super()._answer(waiter, error)
        super().fail_all(error)

    def _let_go(self, waiter: SequenceStreamWaiter, now: int) -> None:
        """Has a request that runs, or did, end without another word."""
        is_between_runs = waiter.state == WAITING
        if is_between_runs:
            self._sequences.remove(waiter, now)
        else:
            self._stop_hearing(waiter)
        self._end(waiter, now)
        if not is_between_runs and waiter.job is not None and waiter.job.has_returned:
            self._turn_is_over(waiter, now)

    # -- a batch -------------------------------------------------------------------------------------------------

    def _begin(
        self, by_row: list[Row], waiters: list[SequenceWaiter], instance: int, times: RowTimes, now: int
    ) -> SequenceStreamJob:
        streams = [waiter for waiter in waiters if isinstance(waiter, SequenceStreamWaiter)]
        self._streams.update(streams)
        return SequenceStreamJob(by_row, streams, instance, times, now)

    def _execute(self, job: Job) -> Ran:
        """Begins a batch, and returns when its instance can take the next one."""
        assert isinstance(job, SequenceStreamJob)
        started = ready = self._now_ns()
        result = BEGUN
        try:
            batch = gather_rows(self._tensors, self.spec.outputs, job.by_row)
            ready = self._now_ns()
            job.begun_ns, job.input_ns = started, ready - started
            hears = [partial(self._hear, row) if isinstance(row, StreamWaiter) else _drop for row in job.by_row]
            running = job.running = self._streaming.begin(batch, job.instance, hears)
            for place, row in enumerate(job.by_row):
                if row is None or row.state == ENDED:  # padding is not heard, nor who left meanwhile
                    running.cancel(place)
            running.wait()
        except BaseException as error:
            result = as_error(error)
        return Ran([result] * job.requests, started, ready - started, self._now_ns() - ready, 0)

    def _done(self, job: Job, ran: Ran) -> None:
        assert isinstance(job, SequenceStreamJob)
        StreamLoop._done(self, job, ran)
        self._last_instance = job.instance
        now = self._now_ns()
        for waiter in job.of_sequences:
            if waiter.state == ENDED or not self._turn_lasts:
                self._turn_is_over(waiter, now)
        if job.left and self._has_one_at_a_time and job.instance in self._idle:
            self._idle.remove(job.instance)
            self._engaged.add(job.instance)

    def _turn_is_over(self, waiter: SequenceStreamWaiter, now: int) -> None:
        """The next request of its sequence may run."""
        sequence = waiter.sequence
        if sequence.running is not waiter:
            return
        if waiter.states is not None and waiter.failure is None:
            self._keep(waiter, waiter.states)
        self._sequences.finished([waiter], now)
        self.pump_soon()

    # -- what is said --------------------------------------------------------------------------------------------

    def _heard(self, letter: tuple[StreamWaiter, Part, int]) -> None:
        waiter, part, made_ns = letter
        assert isinstance(waiter, SequenceStreamWaiter)
        job = waiter.job
        assert isinstance(job, SequenceStreamJob)
        if part.is_rescheduled and self._rules.is_iterative:
            if waiter.sequence.running is waiter:
                self._run_again(waiter, job)
                return
            part = Part(EngineFailed("the model wanted a request to run again after its run had ended"), is_last=True)
        if isinstance(part.answer, MemberAnswer) and self._tensors.states:
            part = self._without_states(waiter, part)
            if part.answer is None and not part.is_last:  # nothing but states: nobody's response
                if job.running is not None:
                    job.running.take(waiter.place)
                return
        if part.answer is not None and waiter.state != ENDED:
            size = _size(part.answer)
            waiter.untaken.append((job, waiter.place, size))
            waiter.untaken_bytes += size
        super()._heard((waiter, part, made_ns))
        if part.is_last or part.is_rescheduled:
            self._turn_is_over(waiter, self._now_ns())

    def _run_again(self, waiter: SequenceStreamWaiter, job: SequenceStreamJob) -> None:
        now = self._now_ns()
        if waiter.state == ENDED:
            self._turn_is_over(waiter, now)
            return
        if waiter.states is not None:
            self._keep(waiter, waiter.states)
        waiter.ran_ns += now - job.begun_ns
        job.again += 1
        self._leave_batch(waiter, now)
        self._sequences.again(waiter, now, is_held=waiter.is_behind)
        self.pump_soon()

    def _without_states(self, waiter: SequenceStreamWaiter, part: Part) -> Part:
        """What its client is told; states are kept for when its turn is over."""
        answer = part.answer
        assert isinstance(answer, MemberAnswer)
        if not self._tensors.has_states(answer.outputs):
            return part
        try:
            waiter.states = self._tensors.states_after(answer.outputs)
        except FarthingError as failed:
            return Part(failed, part.is_last)
        shown = {spec.name: answer.outputs[spec.name] for spec in self.spec.outputs if spec.name in answer.outputs}
        if not shown and not answer.parameters:
            return Part(None, part.is_last)
        return Part(MemberAnswer(shown, answer.parameters), part.is_last)

    def _leave_batch(self, waiter: StreamWaiter, now: int) -> None:
        job = waiter.job
        is_last = isinstance(job, SequenceStreamJob) and waiter.is_in_batch and job.left == 1
        statistics = self.statistics
        runs, rows = statistics.execution_count, statistics.inference_count
        super()._leave_batch(waiter, now)
        if not is_last:
            return
        assert isinstance(job, SequenceStreamJob)
        if job.again and not job.answered:
            self._ran_for_nobody_yet(job, Ran((), job.begun_ns, job.input_ns, now - job.begun_ns - job.input_ns, 0))
        if statistics.execution_count > runs:
            # Padding is nobody's row, and who runs again is counted by the last run.
            statistics.inference_count = rows + job.answered
        if job.instance in self._engaged:
            self._engaged.remove(job.instance)
            self._idle.append(job.instance)
            self.pump_soon()

    def _end(self, waiter: StreamWaiter, now: int) -> None:
        if waiter in self._streams:
            super()._end(waiter, now)

    def _answer(self, waiter: Waiter, answer: InferResponse | FarthingError) -> None:
        """An answer that is not the model's: also to one between its runs, whose time has run out."""
        super()._answer(waiter, answer)
        if isinstance(waiter, SequenceStreamWaiter):
            self._end(waiter, self._now_ns())


def _drop(part: Part) -> None:
    """What padding is told."""


def _size(answer: MemberAnswer | FarthingError) -> int:
    return sum(tensor.nbytes for tensor in answer.outputs.values()) if isinstance(answer, MemberAnswer) else 0
