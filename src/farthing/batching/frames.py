"""Which frames of which streams run next, and which are not worth running any more?

The table of all frames that wait for one model version. It is given the time and what a run is expected to take; it
waits for nothing and calls nobody. Carrying out is up to `batching.frame_desk`, and why it decides as it does is told
in docs/decisions/0014.

Streams share by start-time fair queueing (Goyal, Vin and Cheng, 1996), counted in rows: whoever had fewest goes first,
so that a fast stream cannot keep a slow one waiting for longer than one frame of each other stream. Among streams that
are even, the earliest deadline goes first.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from math import inf
from typing import Final

import msgspec

from farthing.batching.batcher import Run, Wait
from farthing.types.frames import DropReason, FrameOptions, FrameOutcome, FramePolicy
from farthing.types.requests import InferRequest
from farthing.types.tensors import Tensor

TIMER_NS: Final = 1_000_000
"""Event loops keep time in milliseconds: a frame that must start at a certain time is looked at so much sooner."""

INTERVAL_SMOOTHING: Final = 0.1
"""Weight of the newest time between two frames in their mean."""

WAITING, RIDING, ENDED = 0, 1, 2


class Kind(msgspec.Struct, frozen=True):
    """What frames must have in common for one to run in another's place."""

    signature: Hashable
    rows: int
    priority: int


class Stream:
    """One stream's account with a model version."""

    __slots__ = ("interval_ns", "last_ns", "options", "turn", "waiting")

    def __init__(self, options: FrameOptions) -> None:
        self.options = options
        self.interval_ns = 0
        """Between frames lately, in the mean; 0 while nothing is known."""
        self.last_ns = 0
        """When the last one came."""
        self.turn = 0
        """Rows it had, and what it may not have saved up while it had nothing to run."""
        self.waiting = 0

    def came(self, arrival_ns: int) -> None:
        """One more frame; learns their pace."""
        if self.last_ns:
            interval_ns = arrival_ns - self.last_ns
            known_ns = self.interval_ns or interval_ns
            self.interval_ns = known_ns + int(INTERVAL_SMOOTHING * (interval_ns - known_ns))
        self.last_ns = arrival_ns


class Frame:
    """One frame on its way; `done` is called once with what became of it, unless its stream was closed before."""

    __slots__ = ("arrival_ns", "deadline_ns", "done", "inputs", "kind", "request", "state", "stream")

    def __init__(
        self,
        stream: Stream,
        kind: Kind,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        arrival_ns: int,
        deadline_ns: int,
        done: Callable[[FrameOutcome], None],
    ) -> None:
        self.stream = stream
        self.kind = kind
        self.request = request
        self.inputs = inputs
        self.arrival_ns = arrival_ns
        self.deadline_ns = deadline_ns
        """When its answer should be there; 0 for never."""
        self.done = done
        self.state = WAITING


class _Line:
    """Frames of one kind, by stream."""

    __slots__ = ("by_stream", "earliest_ns", "waiting")

    def __init__(self) -> None:
        self.by_stream: dict[Stream, deque[Frame]] = {}
        self.waiting = 0
        self.earliest_ns = 0
        """No deadline is earlier; 0 while there is none. Frames that left may have had it."""


class Frames:
    """Frames of one model version that have not been run yet."""

    def __init__(self) -> None:
        self._lines: dict[Kind, _Line] = {}
        self._turn = 0
        """Of the frame that ran last: where streams begin that had nothing to run."""

    def add(self, frame: Frame) -> tuple[Frame, DropReason] | None:
        """Lets a frame wait. Answers the one that is dropped for it, which may be itself."""
        stream = frame.stream
        stream.came(frame.arrival_ns)
        dropped: tuple[Frame, DropReason] | None = None
        if stream.waiting:
            if stream.options.policy is FramePolicy.LATEST:
                before = self._newest(stream)
                self._leave(before)
                dropped = (before, DropReason.SUPERSEDED)
            elif stream.waiting >= stream.options.waiting_max:
                frame.state = ENDED
                return frame, DropReason.OVERLOAD
        else:
            stream.turn = max(stream.turn, self._turn)
        line = self._lines.get(frame.kind)
        if line is None:
            line = self._lines[frame.kind] = _Line()
        mine = line.by_stream.get(stream)
        if mine is None:
            mine = line.by_stream[stream] = deque()
        mine.append(frame)
        line.waiting += 1
        stream.waiting += 1
        if frame.deadline_ns and (not line.earliest_ns or frame.deadline_ns < line.earliest_ns):
            line.earliest_ns = frame.deadline_ns
        return dropped

    def late(self, kind: Kind, now_ns: int, run_ns: int) -> list[Frame]:
        """Takes out the frames that could not be answered in time even if they ran now, for so long."""
        line = self._lines.get(kind)
        end_ns = now_ns + run_ns
        if line is None or not line.earliest_ns or line.earliest_ns >= end_ns:
            return []
        frames = [frame for mine in line.by_stream.values() for frame in mine]
        late = [frame for frame in frames if frame.deadline_ns and frame.deadline_ns < end_ns]
        for frame in late:
            self._leave(frame)
        line.earliest_ns = min((f.deadline_ns for f in frames if f.state == WAITING and f.deadline_ns), default=0)
        return late

    def next(self, kind: Kind, count: int) -> list[Frame]:
        """The frames of that kind, up to so many, that should run next, in order. They go on waiting."""
        line = self._lines.get(kind)
        if line is None:
            return []
        # A stream's own frames keep their order, whatever their deadlines. The index keeps streams from being compared.
        heads = [
            (stream.turn, mine[0].deadline_ns or inf, mine[0].arrival_ns, index, 0, mine)
            for index, (stream, mine) in enumerate(line.by_stream.items())
        ]
        heapify(heads)
        found: list[Frame] = []
        while heads and len(found) < count:
            turn, _, _, index, at, mine = heads[0]
            found.append(mine[at])
            if at + 1 < len(mine):
                after = mine[at + 1]
                later = (turn + (kind.rows or 1), after.deadline_ns or inf, after.arrival_ns, index, at + 1, mine)
                heapreplace(heads, later)
            else:
                heappop(heads)
        return found

    def take(self, frame: Frame) -> None:
        """Marks a frame as running; its stream pays for it."""
        self._leave(frame, RIDING)
        stream = frame.stream
        self._turn = max(self._turn, stream.turn)
        stream.turn += frame.kind.rows or 1

    def drop(self, frame: Frame) -> None:
        """Takes a frame out that will not run."""
        self._leave(frame)

    def remove(self, stream: Stream) -> list[Frame]:
        """Takes out all that a stream has waiting."""
        mine = [frame for line in self._lines.values() for frame in line.by_stream.get(stream, ())]
        for frame in mine:
            self._leave(frame)
        return mine

    def waiting(self, kind: Kind) -> int:
        """Frames of that kind."""
        line = self._lines.get(kind)
        return line.waiting if line is not None else 0

    def streams(self, kind: Kind) -> int:
        """Streams that have frames of that kind waiting."""
        line = self._lines.get(kind)
        return len(line.by_stream) if line is not None else 0

    def kinds(self) -> list[Kind]:
        """Of which some frame waits."""
        return list(self._lines)

    def earliest_ns(self, kind: Kind) -> int:
        """No deadline of a waiting frame is earlier; 0 for none."""
        line = self._lines.get(kind)
        return line.earliest_ns if line is not None else 0

    def check_integrity(self) -> None:
        """Asserts that the counters agree with the lists (for tests and simulations)."""
        by_stream: dict[Stream, int] = {}
        for line in self._lines.values():
            assert line.waiting == sum(map(len, line.by_stream.values())) > 0
            for stream, mine in line.by_stream.items():
                assert mine
                assert all(frame.state == WAITING and frame.stream is stream for frame in mine)
                by_stream[stream] = by_stream.get(stream, 0) + len(mine)
                deadlines = [frame.deadline_ns for frame in mine if frame.deadline_ns]
                assert not deadlines or 0 < line.earliest_ns <= min(deadlines)
        for stream, waiting in by_stream.items():
            assert waiting == stream.waiting
            assert waiting <= (1 if stream.options.policy is FramePolicy.LATEST else stream.options.waiting_max)

    def _newest(self, stream: Stream) -> Frame:
        """The only frame of a stream whose latest one counts."""
        [only] = (mine[-1] for line in self._lines.values() if (mine := line.by_stream.get(stream)))
        return only

    def _leave(self, frame: Frame, state: int = ENDED) -> None:
        frame.state = state
        line = self._lines[frame.kind]
        mine = line.by_stream[frame.stream]
        if mine[0] is frame:
            mine.popleft()
        else:
            mine.remove(frame)
        line.waiting -= 1
        frame.stream.waiting -= 1
        if not mine:
            del line.by_stream[frame.stream]
            if not line.by_stream:
                del self._lines[frame.kind]  # shapes are the client's choice: keep none that is unused


def on_time(
    decision: Run | Wait,
    rows: Sequence[int],
    deadlines_ns: Sequence[int],
    estimate_ns: Callable[[int], int],
    now_ns: int,
) -> Run | Wait:
    """Bends what the batcher decided to the deadlines of the frames at the head of the queue (0: none).

    No wait for company outlasts the last moment at which they can start, and no batch is so large that a frame in it
    becomes late: it is cut to what its frames bear, and leaves at least one request.
    """
    if isinstance(decision, Wait):
        due_ns = min(filter(None, deadlines_ns), default=0)
        start_ns = due_ns - estimate_ns(sum(rows)) - TIMER_NS
        if not due_ns or decision.until_ns <= start_ns:
            return decision
        if start_ns > now_ns:
            return Wait(start_ns)
        decision = Run(len(rows))
    requests = decision.requests
    total = sum(rows[:requests])
    while requests > 1 and _has_late(deadlines_ns[:requests], now_ns + estimate_ns(total)):
        requests -= 1
        total -= rows[requests]
    return Run(requests)


def _has_late(deadlines_ns: Iterable[int], end_ns: int) -> bool:
    return any(0 < deadline_ns < end_ns for deadline_ns in deadlines_ns)
