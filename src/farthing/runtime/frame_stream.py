"""One client's stream of frames: each is numbered, handed in, and answered in the order it came.

What every protocol's streams have in common, without a socket. Which frames run is decided in `batching.frames`; bytes
and connections belong to `protocols` and `server`.
"""

import time
from collections import deque
from collections.abc import Callable

import msgspec

from farthing.batching.frame_desk import FrameDesk
from farthing.batching.frames import Stream
from farthing.protocols.kserve import check_outputs
from farthing.runtime.ensemble import Ensemble
from farthing.runtime.frame_line import FrameLine
from farthing.runtime.frame_tally import FrameSummary, FrameTally
from farthing.runtime.resting import Resting
from farthing.runtime.runtime import Runtime
from farthing.runtime.served import ServedVersion
from farthing.telemetry.frame_counts import FrameCounts
from farthing.types.errors import FarthingError, Unsupported
from farthing.types.frames import DropReason, FrameOptions, FrameOutcome
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse


class FrameAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of a frame."""

    number: int
    """Frames of a stream are counted from 1."""
    outcome: FrameOutcome
    is_on_time: bool
    latency_ns: int
    """From its arrival until that was known."""
    spec: ModelSpec


Tell = Callable[[FrameAnswer], None]


class _Pending:
    """A frame whose answer is not out."""

    __slots__ = ("answer", "arrival_ns", "deadline_ns", "number", "spec", "tell")

    def __init__(self, number: int, arrival_ns: int, spec: ModelSpec, tell: Tell) -> None:
        self.number = number
        self.arrival_ns = arrival_ns
        self.deadline_ns = 0
        self.spec = spec
        self.tell = tell
        self.answer: FrameAnswer | None = None


class FrameStream:
    """Lives on the event-loop thread. Frames under way are as many as whoever calls `offer` allows."""

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        version: str,
        options: FrameOptions,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises as `Runtime.resolve` does, and `Unsupported` for a model whose requests must not be dropped."""
        self._runtime = runtime
        self._model = model
        self._version = version
        self._options = options
        self._now_ns = now_ns
        self._in_order: deque[_Pending] = deque()
        self._tally = FrameTally()
        self._is_closed = False
        self._served, self._door, self._desk = self._resolve()
        self._stream = self._desk.open(options)
        self._before: tuple[FrameDesk, Stream] | None = None
        """Where frames may still be under way after the model was reloaded."""

    @property
    def under_way(self) -> int:
        """Frames that are not answered."""
        return len(self._in_order)

    @property
    def spec(self) -> ModelSpec:
        """Of the model version that answers now."""
        return self._served.spec

    def offer(self, request: InferRequest, arrival_ns: int, tell: Tell) -> None:
        """Takes the next frame. `tell` is called once, in the order of the frames, with what became of it.

        A request's own `timeout` is its deadline instead of the stream's. Whatever is wrong with it is its answer.
        """
        pending = self._begin(arrival_ns, tell)
        try:
            self._follow_reload()
            served = self._served
            pending.spec = served.spec
            rows, signature = served.check(request)
            check_outputs(request, served.spec)
        except FarthingError as error:
            self._counts.failed += 1
            self._settle(pending, error)
            return
        allowed_ns = request.timeout_us * 1000 or self._options.deadline_ns
        pending.deadline_ns = arrival_ns + allowed_ns if allowed_ns else 0
        request.timeout_us = 0
        request.due_ns = pending.deadline_ns
        self._door.offer(
            self._stream,
            request,
            rows,
            signature,
            arrival_ns,
            pending.deadline_ns,
            lambda outcome: self._settle(pending, outcome),
        )

    def fail(self, error: FarthingError, arrival_ns: int, tell: Tell) -> None:
        """Counts and answers, in its turn, a frame that cannot be understood."""
        self._counts.failed += 1
        self._settle(self._begin(arrival_ns, tell), error)

    def refuse(self, arrival_ns: int, tell: Tell) -> None:
        """Counts and answers, in its turn, a frame for which its sender has no room left."""
        self._counts.dropped[DropReason.OVERLOAD] += 1
        self._settle(self._begin(arrival_ns, tell), DropReason.OVERLOAD)

    def summary(self) -> FrameSummary:
        """What became of the frames so far."""
        return self._tally.summary()

    def close(self) -> None:
        """Ends the stream; what is under way is withdrawn, and nobody is told."""
        if self._is_closed:
            return
        self._is_closed = True
        self._in_order.clear()
        if self._before is not None:
            self._before[0].withdraw(self._before[1])
        self._desk.withdraw(self._stream)
        self._desk.close(self._stream)

    @property
    def _counts(self) -> FrameCounts:
        return self._desk.counts

    def _resolve(self) -> tuple[ServedVersion | Ensemble, ServedVersion | FrameLine, FrameDesk]:
        """What answers, where it takes frames in, and who decides which run."""
        served = self._runtime.resolve(self._model, self._version)
        if isinstance(served, Resting):
            raise served.come_back()
        if isinstance(served, Ensemble):
            return served, served.frames, served.frames.desk
        if not isinstance(served, ServedVersion):
            raise Unsupported(
                f"model `{self._model}` takes no streams of frames", hint="models that run tensors do, and ensembles"
            )
        return served, served, served.frames

    def _follow_reload(self) -> None:
        """Goes on with the version that answers now."""
        served, door, desk = self._resolve()
        if served is self._served:
            return
        self._desk.close(self._stream)
        self._before = (self._desk, self._stream)
        self._served, self._door, self._desk = served, door, desk
        self._stream = desk.open(self._options)

    def _begin(self, arrival_ns: int, tell: Tell) -> _Pending:
        self._tally.received += 1
        self._counts.received += 1
        pending = _Pending(self._tally.received, arrival_ns, self._served.spec, tell)
        self._in_order.append(pending)
        return pending

    def _settle(self, pending: _Pending, outcome: FrameOutcome) -> None:
        if self._is_closed:
            return
        latency_ns = self._now_ns() - pending.arrival_ns
        is_on_time = not 0 < pending.deadline_ns < pending.arrival_ns + latency_ns
        if isinstance(outcome, InferResponse):
            self._tally.answered(latency_ns, is_on_time=is_on_time)
        elif isinstance(outcome, DropReason):
            self._tally.dropped(outcome)
        else:
            self._tally.failed()
        pending.answer = FrameAnswer(
            number=pending.number, outcome=outcome, is_on_time=is_on_time, latency_ns=latency_ns, spec=pending.spec
        )
        waiting = self._in_order
        while waiting and waiting[0].answer is not None:
            first = waiting.popleft()
            assert first.answer is not None
            first.tell(first.answer)
