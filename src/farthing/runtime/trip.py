"""One request on its way through a chain: what it is in the queues of its models, and how it ends.

Each is counted, refused, withdrawn and answered alone, whoever goes with it; with whom, and how far, is up to
`runtime.convoy`. Where that ends, a `Passage` goes on in its stead. Lives on the event loop.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES, WAITING
from farthing.batching.rider import Onward, Rider
from farthing.runtime.chain import Link
from farthing.runtime.passage import Owner, Passage, UnderWay, told
from farthing.runtime.served import Done
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor

log = logging.getLogger(__name__)


class Convoying(Owner, Protocol):
    """The ensemble whose requests go together."""

    under_way: set[UnderWay]

    def ended(self, under_way: UnderWay) -> None: ...

    def ended_all(self, under_way: Iterable[UnderWay]) -> None: ...


class Station(Onward, Protocol):
    """The step of the chain whose model a trip is in."""

    link: Link


class Trip(Rider):
    """One request on its way through a chain, and its own rider in the first model."""

    __slots__ = ("asked", "compute_ns", "ensemble", "from_ns", "is_over", "loop", "passage", "reply", "ride")

    onward: Station

    def __init__(
        self,
        ensemble: Convoying,
        stage: Station,
        loop: BatchLoop,
        request: InferRequest,
        asked: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        arrival_ns: int,
        reply: Done,
    ) -> None:
        """`asked` by the client, who gets the `reply`; of the first model, the `request`."""
        self.ensemble = ensemble
        self.onward = stage
        self.loop = loop
        self.request = request
        self.asked = asked
        self.inputs = inputs
        self.start = -1
        self.rows = rows
        self.signature = FIXED_SHAPES
        self.arrival_ns = self.from_ns = arrival_ns
        """When it came, and when it would have come if all its waiting had been in one piece, until it last ran."""
        self.reply = reply
        self.deadline_ns = self.level = self.compute_ns = 0
        self.state = WAITING
        self.is_over = False
        self.ride: Ride | None = None
        """Its place in a later model, as long as it has one."""
        self.passage: Passage | None = None
        """What goes on in its stead."""

    def withdraw(self) -> None:
        """The client left: nothing more of it runs, and nobody is told."""
        if self.passage is not None:
            self.passage.withdraw()
        elif not self.is_over:
            self.ensemble.statistics.failed(FailureReason.CANCELED)
            self._end()

    def fail(self, error: FarthingError, reason: str = FailureReason.OTHER) -> None:
        """Answers with an error."""
        if self.is_over:
            return
        ensemble = self.ensemble
        ensemble.statistics.failed(reason, 1, ensemble.now_ns() - self.arrival_ns)
        self._end()
        self.tell(error)

    def tell(self, answer: InferResponse | FarthingError) -> None:
        """Hands it its answer. Never raises: one client's trouble must not take the answers of those who ride along."""
        try:
            self.reply(answer)
        except Exception:
            log.exception("model %s: handing over an answer failed", self.ensemble.spec.name)

    def _end(self) -> None:
        self.is_over = True
        ride, self.ride = self.ride, None
        if ride is None:
            self.loop.cancel(self)  # from its first model, if it is still there
        else:
            ride.loop.cancel(ride)
        self.ensemble.ended(self)

    def done(self, answer: InferResponse | FarthingError) -> None:
        """Its first model answered it alone: with an error, or because it answers its requests one by one."""
        self.answered(answer, self.onward.link, 0)

    def answered(self, answer: InferResponse | FarthingError, link: Link, queue_ns: int) -> None:
        """The same of any model; before it the trip had waited for `queue_ns`."""
        if self.is_over:
            return
        if isinstance(answer, FarthingError):
            self.fail(told(answer, link.step), FailureReason.BACKEND)
        else:
            self.take_over(link, queue_ns, self.compute_ns).step_done(link.place, answer)

    def take_over(self, link: Link, queue_ns: int, compute_ns: int) -> Passage:
        """It goes on as a `Passage`, for which this step is under way, and which has waited and run for so long."""
        ensemble = self.ensemble
        passage = Passage(ensemble, self.asked, self.rows, self.arrival_ns, self.reply)
        passage.resume(link.place, queue_ns, compute_ns)
        self.passage = passage
        self.is_over = True
        ensemble.under_way.add(passage)
        ensemble.ended(self)
        return passage


class Ride(Rider):
    """A trip's place in a model that is not its first."""

    __slots__ = ("loop", "trip")

    onward: Station

    def __init__(
        self,
        trip: Trip,
        stage: Station,
        loop: BatchLoop,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        signature: Hashable,
        now_ns: int,
    ) -> None:
        self.trip = trip
        self.onward = stage
        self.loop = loop
        self.request = request
        self.inputs = inputs
        self.start = trip.start
        self.rows = trip.rows
        self.signature = signature
        self.arrival_ns = now_ns
        self.deadline_ns = self.level = 0
        self.state = WAITING

    def done(self, answer: InferResponse | FarthingError) -> None:
        """Its model answered it alone."""
        trip = self.trip
        trip.ride = None
        trip.answered(answer, self.onward.link, self.arrival_ns - trip.from_ns)


class Convoy:
    """Trips whose rows one batch made; each begins at its `start`, in the order of their rows."""

    __slots__ = ("compute_ns", "outputs", "started_ns", "trips")

    def __init__(self, trips: Sequence[Trip], outputs: Mapping[str, Tensor], started_ns: int, compute_ns: int) -> None:
        """All that they waited for was over when their batch started, less what they waited later; they have run for
        `compute_ns` since."""
        self.trips = trips
        self.outputs = outputs
        self.started_ns = started_ns
        self.compute_ns = compute_ns

    def cut(self, trips: int) -> "tuple[Convoy, Convoy]":
        """The first so many, and the others."""
        return (
            Convoy(self.trips[:trips], self.outputs, self.started_ns, self.compute_ns),
            Convoy(self.trips[trips:], self.outputs, self.started_ns, self.compute_ns),
        )
