"""A model version that answers a request as often as it likes: zero, one or many times (Triton's "decoupled" models).

A `ServedVersion` that is asked with `stream`; who asks for one answer is told that there is no such thing. `stream_of`
asks any model this way, for endpoints that do not care. Who runs when belongs to `batching`.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

from farthing.batching.frame_desk import FrameDesk
from farthing.batching.instances import Scheduler
from farthing.batching.stream_loop import HearResponse, StreamLoop, StreamWaiter
from farthing.engines.streaming import StreamingExecutable
from farthing.runtime.check import RequestCheck
from farthing.runtime.load import LoadedVersion
from farthing.runtime.served import Served, ServedVersion, queue_of
from farthing.types.errors import FarthingError, Unsupported
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse


class Stream(Protocol):
    """What is being said to one request."""

    def withdraw(self) -> None:
        """The client left: nothing more is heard, and the model is told."""

    def taken(self) -> None:
        """One more response, in order, has been dealt with. A model makes only some that nobody has taken."""


class Streaming:
    """A version that answers a request as often as it likes."""

    spec: ModelSpec

    def check_stream(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its batching signature. Raises `InvalidInput` if it does not fit the model."""
        raise NotImplementedError

    def stream(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, hear: HearResponse
    ) -> Stream:
        """Takes a checked request; `hear` gets what is said to it, later, on the event loop.

        Raises that there is no room or no time for it.
        """
        raise NotImplementedError


class ServedStreams(ServedVersion, Streaming):
    """A loaded version of a decoupled model; lives on the event-loop thread."""

    def __init__(self, loaded: LoadedVersion, **settings: Any) -> None:
        """`settings` are those of `ServedVersion`."""
        super().__init__(loaded, **settings)
        self._refuse = RequestCheck(loaded.spec, is_decoupled=True)

    def _make_loop(self, loaded: LoadedVersion, queue_requests_max: int, scheduler: Scheduler) -> StreamLoop:
        assert isinstance(loaded.executable, StreamingExecutable)
        self._loop = StreamLoop(
            spec=loaded.spec,
            executable=loaded.executable,
            instances=loaded.instances,
            limits=loaded.limits,
            queue=queue_of(loaded, queue_requests_max),
            statistics=self.statistics,
            scheduler=scheduler,
            times=loaded.times,
            turns=self._turns,
        )
        return self._loop

    @property
    def frames(self) -> FrameDesk:
        """None here: a frame has one answer."""
        raise Unsupported(
            f"model `{self.spec.name}` is decoupled, and a frame has one answer",
            hint="send its requests over ModelStreamInfer without frame metadata",
        )

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Raises `Unsupported`: there is not one answer to a request. `stream` is what to call."""
        return self._refuse(request)

    def check_stream(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its batching signature. Raises `InvalidInput` if it does not fit the model."""
        return super().check(request)

    def stream(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, hear: HearResponse
    ) -> Stream:
        """Queues a checked request; `hear` gets what is said to it, later, on the event loop.

        Raises that there is no room or no time for it.
        """
        if self._reshapes_out:
            hear = partial(self._hear_reshaped, hear)
        inputs = self.reshaped(request.inputs) if self.reshapes_in else request.inputs
        waiter = self._waiter(request, inputs, rows, signature, arrival_ns, hear)
        self._loop.submit(waiter)
        return _Streamed(self._loop, waiter)

    def _waiter(self, request: InferRequest, *told: Any) -> StreamWaiter:
        return StreamWaiter(request, *told)

    def _hear_reshaped(self, hear: HearResponse, said: StreamedResponse) -> None:
        if isinstance(said.answer, InferResponse):
            self.reshape_back(lambda _: None, said.answer)
        hear(said)


class _Streamed:
    """One request of a decoupled model."""

    __slots__ = ("_loop", "_waiter")

    def __init__(self, loop: StreamLoop, waiter: StreamWaiter) -> None:
        self._loop = loop
        self._waiter = waiter

    def withdraw(self) -> None:
        self._loop.cancel(self._waiter)

    def taken(self) -> None:
        self._loop.taken(self._waiter)


class _Once:
    """One request of a model that answers once."""

    __slots__ = ("withdraw",)

    def __init__(self, withdraw: Callable[[], None]) -> None:
        self.withdraw = withdraw

    def taken(self) -> None:
        """There is no other."""


def check_any(served: Served, request: InferRequest) -> tuple[int, Hashable]:
    """Rows of a request to any model and its batching signature. Raises `InvalidInput` if it does not fit."""
    return served.check_stream(request) if isinstance(served, Streaming) else served.check(request)


def stream_of(
    served: Served, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, hear: HearResponse
) -> Stream:
    """Asks any model and hears what it says, once or often. Raises as its `submit` or `stream` does."""
    if isinstance(served, Streaming):
        return served.stream(request, rows, signature, arrival_ns, hear)

    def done(answer: InferResponse | FarthingError) -> None:
        hear(StreamedResponse(answer, is_last=True))

    return _Once(served.submit(request, rows, signature, arrival_ns, done))
