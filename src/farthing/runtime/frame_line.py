"""Where frames enter an ensemble: their places wait here as they do in a model's queue, and one at a time begins.

Which frame takes the next place, and which is late, is settled by `batching.frame_desk` as it is before a single model.
A frame under way is a `Passage` that ends when it cannot be on time any more: before a step begins, or in the queue of
a step's model, which knows the deadline too.
"""

from collections.abc import Callable, Hashable
from typing import Final, Protocol

from msgspec.structs import replace

from farthing.batching.batcher import Run
from farthing.batching.crossing import Lane
from farthing.batching.frame_desk import TRY_AGAIN_NS, FrameDesk, Place
from farthing.batching.frames import Kind, Stream
from farthing.batching.instances import Scheduler
from farthing.batching.queue import ENDED, Queue, Waiter
from farthing.batching.row_times import RowTimes
from farthing.runtime.passage import Owner, Passage
from farthing.telemetry.frame_counts import FrameCounts
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import DeadlineExceeded, FarthingError, Unavailable
from farthing.types.frames import FrameOutcome
from farthing.types.requests import InferRequest, InferResponse

KINDS_MAX: Final = 64
"""Shapes of frames whose times are remembered; clients choose shapes. The one met first goes."""


class FramesOwner(Owner, Protocol):
    """The ensemble that frames pass through."""

    def began(self, under_way: Passage) -> None: ...


class FrameLine:
    """The frames of one ensemble; lives on the event loop. The host of their `FrameDesk`."""

    def __init__(self, ensemble: FramesOwner, *, places_max: int, scheduler: Scheduler, lane: Lane | None) -> None:
        self._ensemble = ensemble
        self._scheduler = scheduler
        self._lane = lane
        self._queue = Queue(model=ensemble.spec.name, requests_max=places_max)
        self._passages: dict[Waiter, FramePassage] = {}
        self._times: dict[Hashable, RowTimes] = {}
        self._rest: dict[int, RowTimes] = {}
        """From a step's beginning to the answer, by the step's place."""
        self._answered_ns = 0
        self._is_closed = self._is_pump_due = False
        counts = ensemble.statistics.frames = ensemble.statistics.frames or FrameCounts()
        self.desk = FrameDesk(self, ensemble.spec.name, counts, scheduler, ensemble.now_ns, lane)

    def offer(
        self,
        stream: Stream,
        request: InferRequest,
        rows: int,
        signature: Hashable,
        arrival_ns: int,
        deadline_ns: int,
        done: Callable[[FrameOutcome], None],
    ) -> None:
        """Takes in a checked frame of a stream opened at `desk`; `done` gets what becomes of it, now or later."""
        kind = Kind(signature, rows, request.priority)
        self.desk.offer(stream, kind, request, request.inputs, arrival_ns, deadline_ns, done)

    def close(self) -> None:
        """Nothing more begins; what waits is told."""
        self._is_closed = True
        for waiter in self._queue.drain():
            waiter.state = ENDED
            waiter.done(self._unavailable())

    # -- for the desk ----------------------------------------------------------------------------------------------

    def submit(self, waiter: Waiter) -> None:
        """Queues a place."""
        if self._is_closed:
            raise self._unavailable()
        self._queue.add(waiter)
        self.pump_soon()

    def withdraw(self, waiter: Waiter) -> None:
        """Takes a place out, or the frame that has it."""
        if not self._queue.remove(waiter):
            passage = self._passages.get(waiter)
            if passage is not None:
                passage.withdraw()

    def expected_ns(self, signature: Hashable, rows: int) -> int:
        """How long a frame is on its way; 0 while nothing is known."""
        times = self._times.get(signature)
        return times.estimate_ns(rows or 1) if times is not None else 0

    def places_worth(self, signature: Hashable, rows: int) -> int:
        """Frames begin one by one."""
        return 1

    # -- frames under way --------------------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """Looks in the next turn of the event loop whether one may begin."""
        if not self._is_pump_due:
            self._is_pump_due = True
            self._scheduler.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        while self._queue.requests and self._has_room():
            now_ns = self._ensemble.now_ns()
            head = self._queue.head(1)
            if self.desk.settle(head, Run(1), now_ns) is None:
                continue
            self._queue.take(head)
            self.desk.board(head, now_ns)
            [place] = head
            assert isinstance(place, Place)
            self._begin(place, now_ns)

    def _has_room(self) -> bool:
        """A frame begins when the one before has left the first steps behind, and there are no more than steps."""
        passages = self._passages.values()
        return len(passages) < max(1, len(self._ensemble.graph.steps)) and not any(p.is_in_first for p in passages)

    def _begin(self, place: Place, now_ns: int) -> None:
        assert place.frame is not None
        due_ns = place.frame.deadline_ns
        timeout_us = max(1, (due_ns - place.arrival_ns) // 1000) if due_ns else 0
        request = replace(place.request, timeout_us=timeout_us, due_ns=due_ns)
        passage = self._passages[place] = FramePassage(self, self._ensemble, place, request, now_ns)
        self._ensemble.began(passage)
        passage.start()

    def ended(self, passage: "FramePassage") -> None:
        """A frame is not under way any more."""
        self._passages.pop(passage.place, None)
        self.pump_soon()

    def answered(self, passage: "FramePassage", began_ns: int, steps_ns: dict[int, int]) -> None:
        """Notes how long a frame and what was left of it at each step took."""
        now_ns = self._answered_ns = self._ensemble.now_ns()
        times = self._times.get(passage.place.kind.signature)
        if times is None:
            if len(self._times) >= KINDS_MAX:
                self._times.pop(next(iter(self._times)))
            times = self._times[passage.place.kind.signature] = RowTimes()
        rows = passage.place.kind.rows or 1
        times.observe(rows, now_ns - began_ns)
        for place, start_ns in steps_ns.items():
            self._rest.setdefault(place, RowTimes()).observe(1, now_ns - start_ns)
        if self._lane is not None:
            self._lane.frames_take(times.estimate_ns(rows))

    def is_late(self, step: int, due_ns: int, now_ns: int) -> bool:
        """Whether a frame that is due then need not begin this step. When none was answered for a while it does, so
        that a moment's slowness is not believed for good."""
        rest = self._rest.get(step)
        if not due_ns or rest is None or now_ns - self._answered_ns > TRY_AGAIN_NS:
            return 0 < due_ns <= now_ns
        return now_ns + rest.estimate_ns(1) > due_ns

    def _unavailable(self) -> Unavailable:
        spec = self._ensemble.spec
        return Unavailable(f"model `{spec.name}` version {spec.version} is being unloaded", retry_after_s=1)


class FramePassage(Passage):
    """A frame on its way through the graph."""

    __slots__ = ("_began_ns", "_due_ns", "_first_left", "_line", "_steps_ns", "_tell", "place")

    def __init__(self, line: FrameLine, ensemble: Owner, place: Place, request: InferRequest, now_ns: int) -> None:
        super().__init__(ensemble, request, place.rows, place.arrival_ns, self._answered)
        self._line = line
        self.place = place
        self._tell = place.done
        self._due_ns = request.due_ns
        self._began_ns = now_ns
        self._steps_ns: dict[int, int] = {}
        self._first_left = set(self._plan.first)

    @property
    def is_in_first(self) -> bool:
        """Whether it holds up the next frame."""
        return bool(self._first_left)

    def _begin(self, place: int) -> None:
        now_ns = self._ensemble.now_ns()
        if place not in self._first_left and self._line.is_late(place, self._due_ns, now_ns):
            late = DeadlineExceeded(f"the frame's time ran out before step `{self._ensemble.graph.steps[place].model}`")
            self.fail(late, FailureReason.REJECTED)
            return
        self._steps_ns[place] = now_ns
        super()._begin(place)

    def _after(self, place: int) -> None:
        if place in self._first_left:
            self._first_left.discard(place)
            if not self._first_left:
                self._line.pump_soon()
        super()._after(place)

    def _answered(self, answer: InferResponse | FarthingError) -> None:
        if isinstance(answer, InferResponse):
            self._line.answered(self, self._began_ns, self._steps_ns)
        self._tell(answer)

    def _end(self) -> None:
        super()._end()
        self._line.ended(self)
