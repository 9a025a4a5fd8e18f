"""One model version that answers requests: the check at its door, its batch loop, its counters.

Made by `runtime.catalog` from a `LoadedVersion`. Queueing and running belong to `batching`.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Protocol

from farthing.batching.crossing import Lane
from farthing.batching.frame_desk import FrameDesk
from farthing.batching.frames import Kind, Stream
from farthing.batching.instances import Scheduler
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import Policy, Queue, Waiter
from farthing.batching.rate_limiter import Turns
from farthing.config.model import ModelConfig, QueuePolicy, TimeoutAction
from farthing.runtime.check import RequestCheck
from farthing.runtime.load import LoadedVersion
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import FarthingError, InvalidInput
from farthing.types.frames import FrameOutcome
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor

Done = Callable[[InferResponse | FarthingError], None]


class Served(Protocol):
    """What the catalog and the endpoints need to know of a version that answers, whatever it answers with."""

    spec: ModelSpec
    config: ModelConfig
    statistics: ModelStatistics
    version: str

    def spec_now(self) -> ModelSpec: ...

    def check(self, request: InferRequest) -> tuple[int, Hashable]: ...

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]: ...

    def health(self) -> str:
        """Empty while all is well, else what is wrong."""

    def running(self) -> Iterable[Running]:
        """What is inside the engine now."""

    def when_empty(self, call: Callable[[], None]) -> None:
        """Calls once nothing is under way any more."""

    def fail_all(self, error: FarthingError) -> None:
        """Ends what is under way with an error."""

    def close(self, timeout_s: float) -> object:
        """Frees all it holds; blocks."""


class ServedVersion:
    """A loaded version and everything it needs to answer; lives on the event-loop thread."""

    def __init__(
        self,
        loaded: LoadedVersion,
        *,
        queue_requests_max: int,
        scheduler: Scheduler,
        statistics: ModelStatistics,
        turns: Turns | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.spec = loaded.spec
        self.config = loaded.config
        self.statistics = statistics
        self.executable = loaded.executable
        self.plan = loaded.plan
        """What it runs by, if anything."""
        self.version = str(loaded.spec.version)
        self.request_check = RequestCheck(loaded.spec, axes=loaded.limits.axes)
        """As `check`, without counting those that do not fit."""
        self.reshapes_in = loaded.reshapes_in
        self._reshapes_out = loaded.reshapes_out
        has_reshapes = bool(loaded.reshapes_in or loaded.reshapes_out)
        self.takes_riders = type(self) is ServedVersion and not has_reshapes and loaded.spec.batch_rows_max > 0
        """Whether `loop` may be given riders, since nothing but batching lies between a request and the model."""
        self._turns = turns
        self._lane = lane
        self.loop = self._make_loop(loaded, queue_requests_max, scheduler)
        self.running = self.loop.running
        self.when_empty = self.loop.when_empty
        self.fail_all = self.loop.fail_all
        self.close = self.loop.close

    def _make_loop(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> BatchLoop:
        return BatchLoop(
            spec=loaded.spec,
            executable=loaded.executable,
            instances=loaded.instances,
            limits=loaded.limits,
            queue=queue_of(loaded, queue_requests_max),
            statistics=self.statistics,
            scheduler=scheduler,
            times=loaded.times,
            turns=self._turns,
            lane=self._lane,
        )

    @property
    def is_busy(self) -> bool:
        """Whether requests are under way, streams of frames open, or sequences would lose their states."""
        statistics = self.statistics
        sequences, frames = statistics.sequences, statistics.frames
        return (
            not self.loop.is_empty
            or bool(frames and frames.streams_open)
            or bool(sequences and (sequences.active or sequences.backlog))
        )

    def spec_now(self) -> ModelSpec:
        """The spec, for those who ask later."""
        return self.spec

    def health(self) -> str:
        """Empty while all is well, else what is wrong."""
        return self.executable.health()

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its batching signature. Raises `InvalidInput` if it does not fit the model."""
        try:
            return self.request_check(request)
        except InvalidInput:
            self.statistics.failed(FailureReason.INVALID)
            raise

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """Queues a checked request; `done` gets its answer, later and exactly once, on the event loop.

        Answers a function that withdraws the request (its client left); then `done` is never called. Raises that
        there is no room or no time for it.
        """
        inputs: Mapping[str, Tensor] = request.inputs
        if self.reshapes_in:
            inputs = self.reshaped(inputs)
        if self._reshapes_out:
            done = partial(self.reshape_back, done)
        waiter = Waiter(request, inputs, rows, signature, arrival_ns, done)
        self.loop.submit(waiter)
        return partial(self.loop.cancel, waiter)

    @property
    def frames(self) -> FrameDesk:
        """Where streams of frames are taken in. Raises `Unsupported` if this model has none."""
        return self.loop.frames

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
        """Takes in a checked frame of a stream opened at `frames`; `done` gets what becomes of it, now or later."""
        inputs = self.reshaped(request.inputs) if self.reshapes_in else request.inputs
        if self._reshapes_out:
            done = partial(self._reshape_frame_back, done)
        kind = Kind(signature, rows, request.priority)
        self.frames.offer(stream, kind, request, inputs, arrival_ns, deadline_ns, done)

    def _reshape_frame_back(self, done: Callable[[FrameOutcome], None], outcome: FrameOutcome) -> None:
        if isinstance(outcome, InferResponse):
            self.reshape_back(done, outcome)
        else:
            done(outcome)

    def reshaped(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Inputs in the shapes the model sees."""
        reshapes = self.reshapes_in
        return {
            name: tensor.reshape(_whole(tensor.shape, reshapes[name], self.spec.batch_rows_max > 0))
            if name in reshapes
            else tensor
            for name, tensor in inputs.items()
        }

    def reshape_back(self, done: Done, answer: InferResponse | FarthingError) -> None:
        """Hands an answer on in the shapes clients see."""
        if isinstance(answer, InferResponse):
            outer = {tensor.name: tensor.shape for tensor in self.spec.outputs}
            answer.outputs = {
                name: tensor.reshape(_whole(tensor.shape, outer[name], self.spec.batch_rows_max > 0))
                if name in self._reshapes_out
                else tensor
                for name, tensor in answer.outputs.items()
            }
        done(answer)


def _whole(found: tuple[int, ...], wanted: tuple[int, ...], has_batch_axis: bool) -> tuple[int, ...]:
    """The wanted shape with the batch dimension as it is, so that numpy can solve for one other -1."""
    return (found[0], *wanted[1:]) if has_batch_axis else wanted


def queue_of(loaded: LoadedVersion, queue_requests_max: int) -> Queue:
    """The queue that a version's configuration asks for."""
    dynamic = loaded.config.dynamic_batching
    if dynamic is None:
        return Queue(model=loaded.spec.name, requests_max=queue_requests_max)
    return Queue(
        model=loaded.spec.name,
        requests_max=queue_requests_max,
        levels=dynamic.priority_levels,
        level_default=dynamic.default_priority_level,
        policy=_policy(dynamic.default_queue_policy),
        level_policies={level: _policy(policy) for level, policy in dynamic.priority_queue_policy.items()},
    )


def _policy(configured: QueuePolicy | None) -> Policy:
    if configured is None:
        return Policy()
    return Policy(
        requests_max=configured.max_queue_size,
        timeout_ns=configured.default_timeout_microseconds * 1000,
        may_override=configured.allow_timeout_override,
        is_delayed=configured.timeout_action is TimeoutAction.DELAY,
    )
