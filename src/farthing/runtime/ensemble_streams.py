"""An ensemble or pipeline one of whose steps answers more than once: it answers as often.

What the graph means is `stream_graph`'s, a request's way through it `flow`'s. This is the door, and what a request's
client is told; all of it lives on the event loop.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from farthing.batching.stream_loop import HearResponse
from farthing.runtime.check import RequestCheck
from farthing.runtime.ensemble import Ensemble, LoadedEnsemble
from farthing.runtime.flow import Flow, Tensors
from farthing.runtime.served_streams import Stream, Streaming
from farthing.telemetry.statistics import FailureReason, ResponseKind
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse, Timing

log = logging.getLogger(__name__)


class EnsembleStreams(Ensemble, Streaming):
    """A version of an ensemble that answers as often as one of its steps does."""

    def __init__(self, loaded: LoadedEnsemble, **settings: Any) -> None:
        """`settings` are those of `Ensemble`."""
        super().__init__(loaded, **settings)
        assert loaded.streams is not None
        self.streams = loaded.streams
        self._chain = None
        self._refuse = RequestCheck(loaded.spec, is_decoupled=True)

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Raises `Unsupported`: there is not one answer to a request. `stream` is what to call."""
        return self._refuse(request)

    def check_stream(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its signature. Raises `InvalidInput` if it does not fit."""
        return super().check(request)

    def stream(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, hear: HearResponse
    ) -> Stream:
        """Starts a checked request; `hear` gets what is said to it. Raises that there is no room for it."""
        self.let_in()
        journey = Journey(self, request, rows, arrival_ns, hear)
        self.under_way.add(journey)
        journey.start()
        return journey


class Journey:
    """A request of such an ensemble: `served_streams.Stream` to whoever asks, `flow.Whole` to its parts."""

    def __init__(
        self, ensemble: EnsembleStreams, request: InferRequest, rows: int, arrival_ns: int, hear: HearResponse
    ) -> None:
        self.ensemble = ensemble
        self.request = request
        self.arrival_ns = arrival_ns
        self.is_over = False
        self._rows = rows
        self._hear = hear
        self._flow = Flow(self, ensemble.streams, self._say, self._end)
        self._takers: deque[Callable[[], None]] = deque()
        """Of each answer that nobody has taken: whom to tell."""
        asked = request.outputs
        self.outputs = [output.name for output in asked] if asked else [t.name for t in ensemble.spec.outputs]
        self._said = 0
        self._said_ns = arrival_ns
        self.queue_ns = self.compute_ns = 0

    def start(self) -> None:
        self._flow.start(self.request.inputs, self.arrival_ns)

    def withdraw(self) -> None:
        """The client left: nothing more of it runs, and nobody is told."""
        if not self.is_over:
            statistics = self.ensemble.statistics
            statistics.failed(FailureReason.CANCELED)
            statistics.response(self._said, ResponseKind.CANCEL, max(0, self.ensemble.now_ns() - self._said_ns), 0)
            self._leave()

    def taken(self) -> None:
        """The oldest answer has been dealt with."""
        if self._takers:
            self._takers.popleft()()

    def fail(self, error: FarthingError, reason: str = FailureReason.OTHER) -> None:
        """Ends with an error; what is under way is withdrawn."""
        if self.is_over:
            return
        self._count(ResponseKind.FAIL)
        self.ensemble.statistics.failed(reason, 1, self.ensemble.now_ns() - self.arrival_ns)
        self._leave()
        self._tell(StreamedResponse(error, is_last=True))

    def _say(self, tensors: Tensors, taken: Callable[[], None]) -> None:
        if missing := [name for name in self.outputs if name not in tensors]:
            self.fail(EngineFailed(f"no step gave output `{missing[0]}`"), FailureReason.BACKEND)
            return
        self._takers.append(taken)
        self._count(ResponseKind.SUCCESS)
        answer = InferResponse(
            model_name=self.ensemble.spec.name,
            model_version=self.ensemble.version,
            id=self.request.id,
            outputs={name: tensors[name] for name in self.outputs},
            timing=Timing(self.queue_ns, 0, self.compute_ns, 0, self._rows, 1),
        )
        self._tell(StreamedResponse(answer, is_last=False))

    def _end(self) -> None:
        now_ns = self.ensemble.now_ns()
        statistics = self.ensemble.statistics
        self._count(ResponseKind.EMPTY)
        statistics.request_done(now_ns - self.arrival_ns, self.queue_ns)
        statistics.requests_passed(
            requests=1,
            rows=self._rows or 1,
            queue_ns=self.queue_ns,
            compute_ns=self.compute_ns,
            now_ms=time.time_ns() // 1_000_000,
        )
        self._leave()
        self._tell(StreamedResponse(None, is_last=True))

    def _tell(self, said: StreamedResponse) -> None:
        try:
            self._hear(said)
        except Exception:  # one client's trouble: what is under way for it ends
            log.exception("model %s: handing over a response failed", self.ensemble.spec.name)
            self.withdraw()

    def _count(self, kind: ResponseKind) -> None:
        now_ns = self.ensemble.now_ns()
        self.ensemble.statistics.response(self._said, kind, max(0, now_ns - self._said_ns), 0)
        self._said += 1
        self._said_ns = now_ns

    def _leave(self) -> None:
        self.is_over = True
        self._flow.withdraw()
        self.ensemble.ended(self)
