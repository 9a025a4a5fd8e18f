"""Frames of streams in the queue of everyone else: carries out what `batching.frames` decides, for one model version.

A frame does not stand in the model's queue itself: a *place* does, one among the other requests, in its turn as they
are. Which frame runs in it is settled when an instance is ready to take it, and a newer or more urgent one may have
come meanwhile. So streams and ordinary requests share the instances by the queue's own rules (priority levels, then
arrival), and what runs is always the best there is. Order and accounts of one stream belong to `runtime.frame_stream`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol

from farthing.batching.batcher import Run, Wait
from farthing.batching.crossing import Lane
from farthing.batching.frames import ENDED, RIDING, Frame, Frames, Kind, Stream, on_time
from farthing.batching.instances import Scheduler
from farthing.batching.queue import Waiter
from farthing.telemetry.frame_counts import FrameCounts
from farthing.types.errors import DeadlineExceeded, FarthingError, Overloaded
from farthing.types.frames import DropReason, FrameOptions, FrameOutcome
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor

NO_TENSORS: Final[dict[str, Tensor]] = {}

TRY_AGAIN_NS: Final = 1_000_000_000
"""A frame that could not be on time by what runs took so far is run all the same when no frame ran for so long: a model
whose frames are all dropped is never measured, and one that was slow for a moment would be condemned for good."""

OVERRUN_QUANTILE: Final = 0.9
OVERRUN_STEP: Final = 0.1
OVERRUN_STEP_NS_MIN: Final = 100_000
"""Answers come later than the run's undisturbed time says: hand-overs, an event loop with other work, cores that are
shared. How much later nine in ten are at most is followed in steps of a tenth of a run (Robbins and Monro, 1951)."""


class Host(Protocol):
    """The batch loop, as frames need it."""

    def submit(self, waiter: Waiter) -> None: ...

    def withdraw(self, waiter: Waiter) -> None:
        """Takes a waiter out of the queue, or lets what it runs be for nothing."""

    def expected_ns(self, signature: Hashable, rows: int) -> int:
        """How long a run of so many rows takes; 0 while nothing is known."""

    def places_worth(self, signature: Hashable, rows: int) -> int:
        """How many requests of so many rows fill a batch of the size that pays best."""


class Place(Waiter):
    """A place in the queue for whichever frame is best when its turn comes."""

    comes_back = False  # who sends frames sends them at a pace of their own

    __slots__ = ("end_ns", "frame", "kind", "run_ns")

    def __init__(
        self, kind: Kind, model: str, now_ns: int, done: Callable[["Place", InferResponse | FarthingError], None]
    ):
        request = InferRequest(model_name=model, inputs=NO_TENSORS, priority=kind.priority)
        super().__init__(request, NO_TENSORS, kind.rows, kind.signature, now_ns, lambda answer: done(self, answer))
        self.kind = kind
        self.frame: Frame | None = None
        self.run_ns = self.end_ns = 0
        """How long its run should take, and until when."""


class FrameDesk:
    """All streams of one model version; lives on the event-loop thread."""

    def __init__(
        self,
        host: Host,
        model: str,
        counts: FrameCounts,
        scheduler: Scheduler,
        now_ns: Callable[[], int],
        lane: Lane | None = None,
    ) -> None:
        """`lane` is where other models hear that there are deadlines."""
        self._host = host
        self._model = model
        self.counts = counts
        self._scheduler = scheduler
        self._now_ns = now_ns
        self._lane = lane
        self.frames = Frames()
        self._places: dict[Kind, list[Place]] = {}
        """Those in the queue."""
        self._riding: set[Place] = set()
        self._picked: dict[Place, Frame] = {}
        """What `settle` found for the places at the head of the queue."""
        self._boarded_ns = now_ns()
        self._overrun_ns = 0.0
        """How much later than expected answers come."""
        self._timer: Any = None
        self._timer_ns = 0

    # -- streams -------------------------------------------------------------------------------------------------

    def open(self, options: FrameOptions) -> Stream:
        """A new stream."""
        self.counts.streams_open += 1
        stream = Stream(options)
        if self._lane is not None:
            self._lane.open(stream)
        return stream

    def close(self, stream: Stream) -> None:
        """Nothing more will come of a stream; what it has under way goes on."""
        self.counts.streams_open -= 1
        if self._lane is not None:
            self._lane.close(stream)

    def withdraw(self, stream: Stream) -> None:
        """Drops what a stream has under way. Nobody is told what becomes of it."""
        gone = self.frames.remove(stream)
        for place in [place for place in self._riding if place.frame is not None and place.frame.stream is stream]:
            assert place.frame is not None
            gone.append(place.frame)
            self._riding.discard(place)
            self._host.withdraw(place)
        for frame in gone:
            frame.state = ENDED
        self.counts.dropped[DropReason.GONE] += len(gone)
        for kind in {frame.kind for frame in gone}:
            self._fit_places(kind)

    def offer(
        self,
        stream: Stream,
        kind: Kind,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        arrival_ns: int,
        deadline_ns: int,
        done: Callable[[FrameOutcome], None],
    ) -> None:
        """Takes a frame in; what becomes of it is told later, or at once if it is nothing."""
        frame = Frame(stream, kind, request, inputs, arrival_ns, deadline_ns, done)
        dropped = self.frames.add(frame)
        if dropped is not None:
            self._end(*dropped)
            if dropped[0].kind != kind:
                self._fit_places(dropped[0].kind)
        self._drop_late(kind, self._now_ns())
        self._fit_places(kind)
        self._set_timer()

    # -- called by the batch loop --------------------------------------------------------------------------------

    @property
    def due_ns(self) -> int:
        """No deadline of a frame that waits is earlier; 0: none has one."""
        return min(filter(None, map(self.frames.earliest_ns, self.frames.kinds())), default=0)

    def settle(self, head: Sequence[Waiter], decision: Run | Wait, now_ns: int) -> Run | Wait | None:
        """The batcher's decision, bent to the frames that would run; None if the queue's head has changed meanwhile."""
        places = [waiter for waiter in head if isinstance(waiter, Place)]
        if not places:
            return decision
        kinds = {place.kind for place in places}
        late = [kind for kind in kinds if self._drop_late(kind, now_ns)]
        for kind in late:
            self._fit_places(kind)
        if late:
            return None
        self._picked.clear()
        for kind in kinds:
            mine = [place for place in places if place.kind == kind]
            self._picked.update(zip(mine, self.frames.next(kind, len(mine)), strict=True))
        deadlines_ns = [self._picked[waiter].deadline_ns if isinstance(waiter, Place) else 0 for waiter in head]
        signature = head[0].signature
        return on_time(
            decision,
            [waiter.rows for waiter in head],
            deadlines_ns,
            lambda rows: self._expected_ns(signature, rows, now_ns),
            now_ns,
        )

    def board(self, waiters: Sequence[Waiter], now_ns: int) -> None:
        """Frames take their places: those that `settle` found, for waiters that leave the queue now."""
        kinds = set()
        run_ns = self._host.expected_ns(waiters[0].signature, sum([waiter.rows for waiter in waiters]))
        for place in waiters:
            if not isinstance(place, Place):
                continue
            frame = self._picked[place]
            self.frames.take(frame)
            self._places[place.kind].remove(place)
            place.frame = frame
            place.request = frame.request
            place.inputs = frame.inputs
            place.arrival_ns = frame.arrival_ns
            place.run_ns, place.end_ns = run_ns, now_ns + run_ns
            self._riding.add(place)
            kinds.add(place.kind)
            self._boarded_ns = now_ns
        for kind in kinds:
            self._fit_places(kind)

    # -- places --------------------------------------------------------------------------------------------------

    def _fit_places(self, kind: Kind) -> None:
        """Holds as many places as frames can use.

        Each stream may have a frame in the next batch, and together they may fill one; those behind wait here, where
        they can still be overtaken.
        """
        places = self._places.get(kind)
        if places is None:
            places = self._places[kind] = []
        while len(places) > self._wanted(kind):
            self._host.withdraw(places.pop())
        while len(places) < self._wanted(kind):
            place = Place(kind, self._model, self._now_ns(), self._answered)
            try:
                self._host.submit(place)
            except FarthingError as error:
                if not places:
                    self._refuse(kind, error)
                break
            places.append(place)
        if not places:
            self._places.pop(kind, None)

    def _wanted(self, kind: Kind) -> int:
        waiting = self.frames.waiting(kind)
        return min(waiting, max(self.frames.streams(kind), self._host.places_worth(kind.signature, kind.rows)))

    def _refuse(self, kind: Kind, error: FarthingError) -> None:
        """The queue takes no place, and there is none: nothing would ever call these frames."""
        lost = self.frames.next(kind, self.frames.waiting(kind))
        for frame in lost:
            self.frames.drop(frame)
        for frame in lost:
            self._end(frame, DropReason.OVERLOAD if isinstance(error, Overloaded | DeadlineExceeded) else error)

    def _answered(self, place: Place, answer: InferResponse | FarthingError) -> None:
        frame = place.frame
        if frame is not None:
            self._riding.discard(place)
            # Between the steps of an ensemble a frame may run out of time, or find no room.
            is_late = isinstance(answer, DeadlineExceeded)
            if place.run_ns and (is_late or isinstance(answer, InferResponse)):
                self._step_overrun(place.run_ns, is_more=self._now_ns() - place.end_ns > self._overrun_ns)
            dropped = DropReason.OVERLOAD if isinstance(answer, Overloaded) else None
            self._end(frame, DropReason.LATE if is_late else dropped or answer)
            return
        # The queue gave the place up: its time in it is over, or the model is going.
        places = self._places.get(place.kind)
        if places is None or place not in places:
            return
        places.remove(place)
        for lost in self.frames.next(place.kind, 1):
            self.frames.drop(lost)
            self._end(lost, DropReason.LATE if isinstance(answer, DeadlineExceeded) else answer)
        self._fit_places(place.kind)

    # -- time ----------------------------------------------------------------------------------------------------

    def _drop_late(self, kind: Kind, now_ns: int) -> bool:
        late = self.frames.late(kind, now_ns, self._expected_ns(kind.signature, kind.rows, now_ns))
        for frame in late:
            self._step_overrun(self._host.expected_ns(kind.signature, kind.rows), is_more=False)  # or nobody would try
            self._end(frame, DropReason.LATE)
        return bool(late)

    def _expected_ns(self, signature: Hashable, rows: int, now_ns: int) -> int:
        """From now to the answer of what runs now, in nine cases of ten; 0 while nothing is known."""
        if now_ns - self._boarded_ns > TRY_AGAIN_NS:
            return 0
        run_ns = self._host.expected_ns(signature, rows)
        return run_ns + int(self._overrun_ns) if run_ns else 0

    def _step_overrun(self, run_ns: int, *, is_more: bool) -> None:
        step_ns = max(OVERRUN_STEP * run_ns, OVERRUN_STEP_NS_MIN)
        change_ns = step_ns * (OVERRUN_QUANTILE if is_more else OVERRUN_QUANTILE - 1)
        self._overrun_ns = max(0.0, self._overrun_ns + change_ns)

    def _set_timer(self) -> None:
        due_ns = 0
        for kind in self.frames.kinds():
            if earliest_ns := self.frames.earliest_ns(kind):
                start_ns = earliest_ns - self._expected_ns(kind.signature, kind.rows, self._now_ns())
                due_ns = min(due_ns, start_ns) if due_ns else start_ns
        if self._timer is not None and (not due_ns or due_ns < self._timer_ns):
            self._timer.cancel()
            self._timer = None
        if due_ns and self._timer is None:
            self._timer_ns = due_ns
            self._timer = self._scheduler.call_later(max(0, due_ns + 1 - self._now_ns()) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_ns = self._now_ns()
        for kind in self.frames.kinds():
            if self._drop_late(kind, now_ns):
                self._fit_places(kind)
        self._set_timer()

    def _end(self, frame: Frame, outcome: FrameOutcome) -> None:
        """Counts what became of a frame, and tells it."""
        was_riding, frame.state = frame.state == RIDING, ENDED
        counts = self.counts
        if isinstance(outcome, DropReason):
            counts.dropped[outcome] += 1
        elif isinstance(outcome, FarthingError):
            counts.failed += 1
        elif was_riding:
            now_ns = self._now_ns()
            counts.answered(now_ns - frame.arrival_ns, is_on_time=not 0 < frame.deadline_ns < now_ns)
        frame.done(outcome)
