"""The thin loop of a model that answers its requests as often as it likes.

A batch loop whose batches do not end with an answer each: an instance is idle again as soon as the model takes the next
batch, and what is said to the requests comes meanwhile, from a thread of the engine's. A request ends with its last
part, when its client leaves, or when its process dies. Queueing and batching are `loop.BatchLoop`'s.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from farthing.batching.answers import reason_of
from farthing.batching.instances import Job
from farthing.batching.loop import BatchLoop
from farthing.batching.mailbox import Mailbox
from farthing.batching.queue import ENDED, Waiter
from farthing.batching.row_times import RowTimes
from farthing.batching.run import NO_PARAMETERS, MemberResult, Ran, as_error, cannot_reschedule, gather
from farthing.engines.contract import MemberAnswer
from farthing.engines.streaming import Part, StreamedBatch, StreamingExecutable
from farthing.telemetry.statistics import FailureReason, ResponseKind
from farthing.telemetry.watchdog import Running
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse, Timing
from farthing.types.tensors import Tensor

STREAMS_MAX: Final = 256
"""Requests that one instance answers at a time; the others wait in the queue, which is bounded."""

log = logging.getLogger(__name__)

HearResponse = Callable[[StreamedResponse], None]
"""Gets what is said to one request, on the event loop; exactly one of them, the last, `is_last`."""

BEGUN: Final[MemberResult] = ({}, NO_PARAMETERS)


class StreamWaiter(Waiter):
    """One request of a stream."""

    __slots__ = ("begun_ns", "failure", "hear", "is_in_batch", "job", "place", "said", "said_ns")

    def __init__(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        signature: Hashable,
        arrival_ns: int,
        hear: HearResponse,
        **of_sequence: Any,
    ) -> None:
        super().__init__(request, inputs, rows, signature, arrival_ns, self._answered_at_once, **of_sequence)
        self.hear = hear
        self.job: StreamJob | None = None
        """Its batch, once it runs."""
        self.is_in_batch = False
        self.begun_ns = 0
        """When the first of its batches began."""
        self.place = 0
        self.said = 0
        """Responses so far."""
        self.said_ns = 0
        """When the last of them was made."""
        self.failure: FarthingError | None = None
        """The first error among them."""

    def _answered_at_once(self, answer: InferResponse | FarthingError) -> None:
        self.hear(StreamedResponse(answer, is_last=True))


class StreamJob(Job):
    """A batch whose members are being answered."""

    __slots__ = ("answered", "begun_ns", "has_returned", "holds_turn", "input_ns", "left", "queue_ns", "running")

    def __init__(self, waiters: list[StreamWaiter], rows: int, instance: int, times: RowTimes, now: int) -> None:
        super().__init__(list(waiters), rows, instance, times, now)
        self.running: StreamedBatch | None = None
        self.left = len(waiters)
        self.answered = 0
        self.has_returned = False
        self.holds_turn = True
        """Of those that take turns at resources: it holds what its instance needs."""
        self.begun_ns = now
        self.input_ns = 0
        self.queue_ns = 0
        for place, waiter in enumerate(waiters):
            waiter.job, waiter.place, waiter.said_ns, waiter.is_in_batch = self, place, now, True
            waiter.begun_ns = waiter.begun_ns or now


class StreamLoop(BatchLoop):
    """Queue, instances and streams of one loaded model version."""

    can_resize = False
    """An instance that goes would have to end what it is answering: such models are loaded anew."""

    def __init__(self, *, executable: StreamingExecutable, streams_max: int = STREAMS_MAX, **settings: Any) -> None:
        """`streams_max` requests of each instance are answered at a time."""
        super().__init__(executable=executable, **settings)
        self._streaming = executable
        self._mailbox = Mailbox(self._scheduler)
        self._streams: set[StreamWaiter] = set()
        """Requests whose batch was begun and that have not ended."""
        self._streams_max = streams_max * self.instances
        self._parked: list[int] = []
        """Instances that could begin a batch, while there are as many streams as there may be."""

    @property
    def is_empty(self) -> bool:
        """Nothing waits, nothing runs, and nobody is being answered."""
        return super().is_empty and not self._streams

    def taken(self, waiter: StreamWaiter) -> None:
        """One more of its responses has been dealt with: another may be made."""
        if waiter.job is not None and waiter.job.running is not None:
            waiter.job.running.take(waiter.place)

    def cancel(self, waiter: Waiter) -> None:
        """The client is gone: the request is dropped from the queue, or the model told."""
        assert isinstance(waiter, StreamWaiter)
        if waiter.state == ENDED:
            return
        if waiter.job is None:
            super().cancel(waiter)
            return
        self.statistics.failed(FailureReason.CANCELED)
        now = self._now_ns()
        self.statistics.response(waiter.said, ResponseKind.CANCEL, max(0, now - waiter.said_ns), 0)
        self._stop_hearing(waiter)
        self._end(waiter, now)

    def fail_all(self, error: FarthingError) -> None:
        """Ends everyone who waits or is being answered with an error."""
        streams = list(self._streams)
        for waiter in streams:
            self._stop_hearing(waiter)
            self.statistics.failed(FailureReason.OTHER)
            self._answer(waiter, error)
            self._end(waiter, self._now_ns())
        super().fail_all(error)

    def running(self) -> Iterable[Running]:
        """As `BatchLoop.running`; a batch that still says something makes progress."""
        if not self._running:
            return () if self._parked else super().running()
        what = f"model `{self.spec.name}` version {self._version}"
        return [
            Running(what, max([job.started_ns, *(w.said_ns for w in job.waiters if isinstance(w, StreamWaiter))]))
            for job in self._running.values()
        ]

    # -- a batch -------------------------------------------------------------------------------------------------

    def _dispatch(self, waiters: list[Waiter], instance: int, times: RowTimes, now: int) -> bool:
        streams = [waiter for waiter in waiters if isinstance(waiter, StreamWaiter)]
        job = StreamJob(streams, sum(waiter.rows for waiter in waiters), instance, times, now)
        self._streams.update(streams)
        self._running[job.instance] = job
        self._threads.run(job)
        return False

    def _execute(self, job: Job) -> Ran:
        """Begins a batch, and returns when its instance can take the next one."""
        assert isinstance(job, StreamJob)
        started = ready = self._now_ns()
        result = BEGUN
        try:
            batch = gather(self.spec.outputs, job.waiters)
            ready = self._now_ns()
            job.begun_ns, job.input_ns = started, ready - started
            hears = [partial(self._hear, waiter) for waiter in job.waiters]
            running = job.running = self._streaming.begin(batch, job.instance, hears)
            # Whoever left before `running` was there for the loop to see is seen here.
            for place, waiter in enumerate(job.waiters):
                if waiter.state == ENDED:
                    running.cancel(place)
            running.wait()
        except BaseException as error:
            result = as_error(error)
        return Ran([result] * job.requests, started, ready - started, self._now_ns() - ready, 0)

    def _done(self, job: Job, ran: Ran) -> None:
        assert isinstance(job, StreamJob)
        self._running.pop(job.instance, None)
        job.has_returned = True
        self._returning.free_ns = now = self._now_ns()
        error = ran.results[0]
        rest_s = self._rest_s(ran) if self.instances > 1 else 0.0
        if isinstance(error, FarthingError):
            for waiter in job.waiters:
                if isinstance(waiter, StreamWaiter) and waiter.state != ENDED:
                    self._stop_hearing(waiter)
                    self.statistics.failed(reason_of(error), 1, now - waiter.arrival_ns)
                    self._answer(waiter, error)
                    self._end(waiter, now)
        self._maybe_free_turn(job)
        if rest_s:
            self._scheduler.call_later(rest_s, self._after_rest, job.instance)
        elif len(self._streams) >= self._streams_max:
            self._parked.append(job.instance)
        else:
            self._idle.append(job.instance)
        self._tell_if_empty()

    def _maybe_free_turn(self, job: StreamJob) -> None:
        """Gives back what the instance needed once the model is through with a batch, as far as can be seen."""
        is_through = job.has_returned and not (job.left and self._streaming.returns_at_once)
        if self.turns is not None and is_through and job.holds_turn:
            job.holds_turn = False
            self.turns.ran(job.instance)

    # -- what is said --------------------------------------------------------------------------------------------

    def _hear(self, waiter: Waiter, part: Part) -> None:
        """On the engine's thread."""
        self._mailbox.post(self._heard, (waiter, part, self._now_ns()))

    def _heard(self, letter: tuple[StreamWaiter, Part, int]) -> None:
        waiter, part, made_ns = letter
        job = waiter.job
        if waiter.state == ENDED or job is None:
            return
        if part.is_rescheduled:
            part = Part(cannot_reschedule(), is_last=True)
        infer_ns = max(0, made_ns - waiter.said_ns)
        waiter.said_ns = made_ns
        answer = part.answer
        statistics = self.statistics
        kind = ResponseKind.FAIL if isinstance(answer, FarthingError) else ResponseKind.SUCCESS
        if answer is None or (isinstance(answer, MemberAnswer) and not answer.outputs):
            kind = ResponseKind.EMPTY
        index, waiter.said = waiter.said, waiter.said + 1
        if isinstance(answer, FarthingError):
            waiter.failure = waiter.failure or answer
        said = self._response(waiter, job, answer, made_ns) if isinstance(answer, MemberAnswer) else answer
        try:
            waiter.hear(StreamedResponse(said, part.is_last))
        except Exception:  # one client's trouble: not the others', and not the model's
            log.exception("model %s: handing over a response failed", self.spec.name)
            self.cancel(waiter)
        now = self._now_ns()
        statistics.response(index, kind, infer_ns, max(0, now - made_ns))
        if not part.is_last or waiter.state == ENDED:
            return
        if waiter.failure is not None:
            statistics.failed(reason_of(waiter.failure), 1, now - waiter.arrival_ns)
        else:
            waited_ns = job.begun_ns - waiter.arrival_ns - waiter.ran_ns
            statistics.request_done(now - waiter.arrival_ns, waited_ns)
            job.answered += 1
            job.queue_ns += waited_ns
        self._end(waiter, now)

    def _response(self, waiter: StreamWaiter, job: StreamJob, answer: MemberAnswer, made_ns: int) -> InferResponse:
        asked = [output.name for output in waiter.request.outputs]
        outputs = answer.outputs
        return InferResponse(
            model_name=self.spec.name,
            model_version=self._version,
            id=waiter.request.id,
            outputs={name: outputs[name] for name in asked if name in outputs} if asked else outputs,
            parameters=answer.parameters,
            timing=Timing(
                job.begun_ns - waiter.arrival_ns - waiter.ran_ns,
                job.input_ns,
                made_ns - job.begun_ns,
                0,
                job.rows,
                job.requests,
            ),
        )

    def _stop_hearing(self, waiter: StreamWaiter) -> None:
        waiter.state = ENDED
        if waiter.job is not None and waiter.job.running is not None:
            waiter.job.running.cancel(waiter.place)

    def _end(self, waiter: StreamWaiter, now: int) -> None:
        """Nothing more is said to this request."""
        waiter.state = ENDED
        self._streams.discard(waiter)
        trace = waiter.request.trace
        if trace is not None:
            error = type(waiter.failure).__name__ if waiter.failure is not None else ""
            trace.note("queue", waiter.arrival_ns, waiter.begun_ns)
            trace.note("stream", waiter.begun_ns, now, {"farthing.responses": waiter.said}, error=error)
        self._leave_batch(waiter, now)
        if self._parked and len(self._streams) < self._streams_max:
            self._idle += self._parked
            self._parked.clear()
            self.pump_soon()
        self._tell_if_empty()

    def _leave_batch(self, waiter: StreamWaiter, now: int) -> None:
        """Nothing more is said to this request in its batch, which is counted when that holds for all."""
        job = waiter.job
        if job is None or not waiter.is_in_batch:
            return
        waiter.is_in_batch = False
        job.left -= 1
        if not job.left and job.answered:
            self.statistics.batch_done(
                requests=job.answered,
                rows=job.rows if self._has_batch_axis else job.answered,
                queue_ns=job.queue_ns,
                input_ns=job.input_ns,
                compute_ns=now - job.begun_ns - job.input_ns,
                output_ns=0,
                now_ms=time.time_ns() // 1_000_000,
            )
        self._maybe_free_turn(job)
