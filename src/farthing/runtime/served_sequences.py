"""A model version that serves sequences: requests that belong together, each with the state the last one left.

A `ServedVersion` whose requests say which sequence they are of; where they are iterative each is one.
Models that also answer as often as they like are `ServedSequenceStreams`. Who runs when belongs to `batching`.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from farthing.batching.frame_desk import FrameDesk
from farthing.batching.instances import Scheduler
from farthing.batching.sequence import SequenceId, SequenceWaiter
from farthing.batching.sequence_loop import SequenceLoop
from farthing.batching.sequence_stream_loop import SequenceStreamLoop, SequenceStreamWaiter
from farthing.batching.sequences import Sequences
from farthing.runtime.load import LoadedVersion
from farthing.runtime.served import Done, ServedVersion
from farthing.runtime.served_streams import ServedStreams
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.requests import InferRequest


class ServedSequences(ServedVersion):
    """A loaded version with `sequence_batching`; lives on the event-loop thread."""

    def _make_loop(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> SequenceLoop:
        return SequenceLoop(**self._loop_settings(loaded, queue_requests_max, scheduler))

    def _loop_settings(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> dict[str, Any]:
        """All that a loop of sequences is made of."""
        plan = loaded.sequences
        assert plan is not None
        rules = plan.rules
        self._tensors = plan.tensors
        self._is_iterative = rules.is_iterative
        self._sequences = Sequences(
            model=loaded.spec.name,
            instances=loaded.instances,
            slots=rules.slots,
            idle_ns=rules.idle_ns,
            requests_max=queue_requests_max,
            is_in_order=rules.is_in_order,
        )
        return {
            "rules": rules,
            "tensors": plan.tensors,
            "sequences": self._sequences,
            "spec": loaded.spec,
            "executable": loaded.executable,
            "instances": loaded.instances,
            "statistics": self.statistics,
            "scheduler": scheduler,
            "times": loaded.times,
            "turns": self._turns,
        }

    @property
    def frames(self) -> FrameDesk:
        """None here: each request of a sequence counts for the next, so none may be dropped."""
        raise Unsupported(
            f"model `{self.spec.name}` serves sequences, whose requests all count; frame streams drop what is late",
            hint="send its requests with a `sequence_id` over ModelStreamInfer or HTTP",
        )

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request, always one, and its batching signature. Raises `InvalidInput`, in Triton's words."""
        rows, signature = super().check(request)
        try:
            if rows != 1:
                raise InvalidInput(
                    f"inference request to model '{self.spec.name}' must specify batch-size 1 due to requirements of "
                    f"sequence batcher; got {rows} rows",
                    hint="send one row a request; sequences share batches by themselves",
                )
            if not self._is_iterative or _has_id(request):
                self._tensors.check_id(self.spec.name, _sequence_id(request))
        except InvalidInput:
            self.statistics.failed(FailureReason.INVALID)
            raise
        return rows, signature

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """Queues a checked request behind those of its sequence; else as `ServedVersion.submit`."""
        if self._reshapes_out:
            done = partial(self.reshape_back, done)
        inputs = self.reshaped(request.inputs) if self.reshapes_in else request.inputs
        waiter = SequenceWaiter(request, inputs, rows, signature, arrival_ns, done, **self._place(request))
        self.loop.submit(waiter)
        return partial(self.loop.cancel, waiter)

    def _place(self, request: InferRequest) -> dict[str, Any]:
        """Which sequence a request is of, and where in it. An iterative one without an id begins its own."""
        if self._is_iterative and not _has_id(request):
            return {
                "sequence_id": self._sequences.new_id(),
                "is_start": True,
                "is_end": False,
                "is_iterative": True,
            }
        return {
            "sequence_id": _sequence_id(request),
            "is_start": request.parameters.get("sequence_start") is True,
            "is_end": request.parameters.get("sequence_end") is True,
            "is_iterative": self._is_iterative,
        }


class ServedSequenceStreams(ServedStreams, ServedSequences):
    """A loaded version with `sequence_batching` whose model is decoupled."""

    def _make_loop(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> SequenceStreamLoop:
        self._loop = SequenceStreamLoop(**self._loop_settings(loaded, queue_requests_max, scheduler))
        return self._loop

    def _waiter(self, request: InferRequest, *told: Any) -> SequenceStreamWaiter:
        return SequenceStreamWaiter(request, *told, **self._place(request))


def _has_id(request: InferRequest) -> bool:
    return bool(request.parameters.get("sequence_id"))


def _sequence_id(request: InferRequest) -> SequenceId:
    """The request's correlation id. Raises `InvalidInput` if it has none."""
    sequence_id = request.parameters.get("sequence_id", 0)
    if not sequence_id or not isinstance(sequence_id, int | str):
        raise InvalidInput(
            f"inference request to model '{request.model_name}' must specify a non-zero or non-empty correlation ID",
            hint="send the parameter `sequence_id`, a number or text that no other sequence has",
        )
    return sequence_id
