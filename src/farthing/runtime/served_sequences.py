"""A model version that serves sequences: requests that belong together, each with the state the last one left.

A `ServedVersion` whose requests say which sequence they are of. Who runs when belongs to `batching`.
"""

from collections.abc import Callable, Hashable
from functools import partial

from farthing.batching.frame_desk import FrameDesk
from farthing.batching.instances import Scheduler
from farthing.batching.rate_limiter import Turns
from farthing.batching.sequence import SequenceId, SequenceWaiter
from farthing.batching.sequence_loop import SequenceLoop
from farthing.batching.sequences import Sequences
from farthing.runtime.load import LoadedVersion
from farthing.runtime.load_sequences import SequencePlan
from farthing.runtime.served import Done, ServedVersion
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.requests import InferRequest


class ServedSequences(ServedVersion):
    """A loaded version with `sequence_batching`; lives on the event-loop thread."""

    def __init__(
        self,
        loaded: LoadedVersion,
        plan: SequencePlan,
        *,
        queue_requests_max: int,
        scheduler: Scheduler,
        statistics: ModelStatistics,
        turns: Turns | None = None,
    ) -> None:
        self._plan = plan
        super().__init__(
            loaded, queue_requests_max=queue_requests_max, scheduler=scheduler, statistics=statistics, turns=turns
        )

    def _make_loop(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> SequenceLoop:
        rules = self._plan.rules
        return SequenceLoop(
            rules=rules,
            tensors=self._plan.tensors,
            sequences=Sequences(
                model=loaded.spec.name,
                instances=loaded.instances,
                slots=rules.slots,
                idle_ns=rules.idle_ns,
                requests_max=queue_requests_max,
            ),
            spec=loaded.spec,
            executable=loaded.executable,
            instances=loaded.instances,
            statistics=self.statistics,
            scheduler=scheduler,
            times=loaded.times,
            turns=self._turns,
        )

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
            self._plan.tensors.check_id(self.spec.name, _sequence_id(request))
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
        waiter = SequenceWaiter(
            request,
            self.reshaped(request.inputs) if self.reshapes_in else request.inputs,
            rows,
            signature,
            arrival_ns,
            done,
            sequence_id=_sequence_id(request),
            is_start=request.parameters.get("sequence_start") is True,
            is_end=request.parameters.get("sequence_end") is True,
        )
        self.loop.submit(waiter)
        return partial(self.loop.cancel, waiter)


def _sequence_id(request: InferRequest) -> SequenceId:
    """The request's correlation id. Raises `InvalidInput` if it has none."""
    sequence_id = request.parameters.get("sequence_id", 0)
    if not sequence_id or not isinstance(sequence_id, int | str):
        raise InvalidInput(
            f"inference request to model '{request.model_name}' must specify a non-zero or non-empty correlation ID",
            hint="send the parameter `sequence_id`, a number or text that no other sequence has",
        )
    return sequence_id
