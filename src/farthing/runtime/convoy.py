"""The requests of a chain of models that go from step to step together.

In a chain each step reads nothing but what the one before it made, so a whole batch can be the next model's batch as it
is (`batching.rider`): one look-up of the model, one check and one place in its queue's turn for all of them, where a
`Passage` takes each request by itself. Each is still one request: it is counted, refused, withdrawn and answered alone.
Whatever is out of the ordinary (a trace, a timeout, a model with a cache, one that answers one by one) is taken, or
taken over, by a `Passage`. Lives on the event loop.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES
from farthing.batching.rider import Arrival, Rider
from farthing.runtime.graph import Graph, Step
from farthing.runtime.passage import Owner, Passage, told
from farthing.runtime.served import Done, Served, ServedVersion
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import FarthingError
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import Tensor

log = logging.getLogger(__name__)


class Link(NamedTuple):
    """One step of a chain."""

    place: int
    """Of the step in its graph."""
    step: Step
    reads: tuple[tuple[str, str], ...]
    """(The model's input, the output of the step before; of the first step: the ensemble's input)."""
    asked: InferRequest
    """What the model is asked, of all requests that say nothing of their own."""


def links_of(graph: Graph, spec: ModelSpec) -> tuple[Link, ...]:
    """The steps of a graph one after the other; none unless it is a chain of at least two."""
    steps, plan = graph.steps, graph.plan_for(graph.outputs)
    if graph.has_items or len(plan.first) != 1 or len(plan.after) < 2:
        return ()
    links = []
    made = {tensor.name: tensor.name for tensor in spec.inputs if not tensor.is_optional}
    ahead: tuple[int, ...] = plan.first
    while ahead:
        place = ahead[0]
        step = steps[place]
        if len(ahead) > 1 or not all(tensor in made for _, tensor in step.inputs) or not step.asked:
            return ()
        asked = InferRequest(model_name=step.model, model_version=step.version, inputs={}, outputs=step.asked)
        links.append(Link(place, step, tuple((name, made[tensor]) for name, tensor in step.inputs), asked))
        made = {tensor: name for name, tensor in step.outputs}
        ahead = plan.after[place]
    return tuple(links) if len(links) == len(plan.after) and graph.outputs <= made.keys() else ()


class Convoying(Owner, Protocol):
    """The ensemble whose requests go together."""

    def began(self, under_way: "Trip | Passage") -> None: ...

    def ended(self, under_way: "Trip | Passage") -> None: ...


class Trip:
    """One request on its way through a chain."""

    __slots__ = (
        "arrival_ns", "compute_ns", "done", "ensemble", "is_over", "loop", "passage", "queue_ns", "request", "rider",
        "rows", "stage",
    )  # fmt: skip

    def __init__(
        self, ensemble: Convoying, stage: "Stage", request: InferRequest, rows: int, arrival_ns: int, done: Done
    ) -> None:
        self.ensemble = ensemble
        self.stage = stage
        self.request = request
        self.rows = rows
        self.arrival_ns = arrival_ns
        self.done = done
        self.queue_ns = self.compute_ns = 0
        self.is_over = False
        self.loop: BatchLoop | None = None
        self.rider: Rider | None = None
        """Its place in the model it is in now, as long as it has one."""
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
        _tell(self, error)

    def _end(self) -> None:
        self.is_over = True
        rider, self.rider = self.rider, None
        if rider is not None and self.loop is not None:
            self.loop.cancel(rider)
        self.ensemble.ended(self)

    def answered(self, answer: InferResponse | FarthingError) -> None:
        """Its model answered it alone: with an error, or because it answers its requests one by one."""
        self.rider = None
        if self.is_over:
            return
        if isinstance(answer, FarthingError):
            self.fail(told(answer, self.stage.link.step), FailureReason.BACKEND)
        else:
            self.take_over().step_done(self.stage.link.place, answer)

    def take_over(self) -> Passage:
        """It goes on as a `Passage`, for which its step is under way."""
        ensemble = self.ensemble
        passage = Passage(ensemble, self.request, self.rows, self.arrival_ns, self.done)
        passage.resume(self.stage.link.place, self.queue_ns, self.compute_ns)
        self.passage = passage
        self.is_over = True
        ensemble.began(passage)
        ensemble.ended(self)
        return passage


class Stage:
    """One step of an ensemble's chain, and what lies behind it."""

    def __init__(self, ensemble: Convoying, links: Sequence[Link]) -> None:
        self.link = links[0]
        self._ensemble = ensemble
        self._next = Stage(ensemble, links[1:]) if len(links) > 1 else None
        made = {tensor: name for name, tensor in self.link.step.outputs}
        self._answers = tuple(
            (tensor.name, made[tensor.name]) for tensor in ensemble.spec.outputs if tensor.name in made
        )
        """(The ensemble's output, the model's), of the last stage."""
        self._door: Served | None = None
        self._is_door_open = False

    # -- the first model -----------------------------------------------------------------------------------------------

    def begin(self, request: InferRequest, rows: int, signature: object, arrival_ns: int, done: Done) -> Trip | None:
        """Starts a checked request; None if it has to go by itself."""
        if request.trace is not None or request.timeout_us or request.priority or request.origin is not None:
            return None
        ensemble, link = self._ensemble, self.link
        try:
            served = ensemble.resolve(link.step.model, link.step.version, link.step.namespace)
        except FarthingError:
            return None
        if served is not self._door:
            self._door, self._is_door_open = served, self._fits(served)
        # Only of models whose shapes are fixed is the ensemble's own check the model's too, whatever its inputs' names.
        if not self._is_door_open or signature is not FIXED_SHAPES:
            return None
        assert isinstance(served, ServedVersion)
        trip = Trip(ensemble, self, request, rows, arrival_ns, done)
        trip.loop = served.loop
        given = request.inputs
        inputs = {name: given[tensor] for name, tensor in link.reads}
        now_ns = ensemble.now_ns()
        rider = Rider(self._asked(request), inputs, -1, rows, FIXED_SHAPES, now_ns, trip, self)
        trip.rider = rider
        ensemble.began(trip)
        try:
            served.loop.submit(rider)
        except FarthingError as error:
            trip.rider = None
            trip.fail(told(error, link.step), FailureReason.REJECTED)
        return trip

    def _fits(self, served: Served) -> bool:
        """Whether what the ensemble takes fits its first model, always."""
        if not isinstance(served, ServedVersion) or not served.takes_riders:
            return False
        own = {tensor.name: tensor for tensor in self._ensemble.spec.inputs}
        theirs = {tensor.name: tensor for tensor in served.spec.inputs}
        return (
            self._ensemble.spec.batch_rows_max <= served.spec.batch_rows_max
            and len(self.link.reads) == len(theirs)
            and all(
                name in theirs
                and (theirs[name].datatype, theirs[name].shape) == (own[tensor].datatype, own[tensor].shape)
                for name, tensor in self.link.reads
            )
        )

    def _asked(self, request: InferRequest) -> InferRequest:
        if not (request.id or request.parameters or request.tenant):
            return self.link.asked
        step = self.link.step
        return InferRequest(
            model_name=step.model,
            model_version=step.version,
            id=request.id,
            inputs={},
            outputs=step.asked,
            parameters=request.parameters,
            tenant=request.tenant,
        )

    # -- from model to model -------------------------------------------------------------------------------------------

    def arrived(self, riders: Sequence[Rider], outputs: Mapping[str, Tensor], ran: Arrival) -> BatchLoop | None:
        """A batch has run; these were in it, and their clients wait. Answers whose turn it is now."""
        compute_ns = ran.input_ns + ran.compute_ns + ran.output_ns
        trips: list[tuple[Trip, int]] = []
        for rider in riders:
            trip = rider.trip
            trip.rider = None
            trip.queue_ns += ran.started_ns - rider.arrival_ns
            trip.compute_ns += compute_ns
            trips.append((trip, rider.start))
        if self._next is None:
            self._finish(trips, outputs)
            return None
        loop = self._next.enter(trips, outputs)
        if loop is None:
            for trip, start in trips:
                if not trip.is_over:
                    own = {name: tensor[start : start + trip.rows] for name, tensor in outputs.items()}
                    trip.take_over().go_on(self.link.place, own)
        return loop

    def enter(self, trips: Sequence[tuple[Trip, int]], outputs: Mapping[str, Tensor]) -> BatchLoop | None:
        """Has what the step before made run here; None if this model cannot take it as it is."""
        ensemble, link = self._ensemble, self.link
        trip, start = trips[0]
        inputs = {name: outputs[output] for name, output in link.reads}
        try:
            served = ensemble.resolve(link.step.model, link.step.version, link.step.namespace)
            if (
                not isinstance(served, ServedVersion)
                or not served.takes_riders
                or ensemble.spec.batch_rows_max > served.spec.batch_rows_max
            ):
                return None
            first = {name: tensor[start : start + trip.rows] for name, tensor in inputs.items()}
            # Rows of one batch have one shape, so what is true of the first is true of all.
            _, signature = served.request_check(
                InferRequest(model_name=link.step.model, inputs=first, outputs=link.step.asked)
            )
        except FarthingError:
            return None  # each is told by itself
        now_ns = ensemble.now_ns()
        loop = served.loop
        riders = []
        for trip, start in trips:
            rider = Rider(self._asked(trip.request), inputs, start, trip.rows, signature, now_ns, trip, self)
            trip.rider = rider
            trip.loop = loop
            trip.stage = self
            riders.append(rider)
        if not loop.submit_all(riders):
            for rider in riders:
                rider.trip.rider = None  # as long as it is not queued, it cannot be taken out
            for rider in riders:
                self._submit(loop, rider)
        return loop

    def _submit(self, loop: BatchLoop, rider: Rider) -> None:
        trip = rider.trip
        if trip.is_over:  # withdrawn by one that was told
            return
        trip.rider = rider
        try:
            loop.submit(rider)
        except FarthingError as error:
            trip.rider = None
            trip.fail(told(error, self.link.step), FailureReason.REJECTED)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, trips: Sequence[tuple[Trip, int]], outputs: Mapping[str, Tensor]) -> None:
        ensemble = self._ensemble
        name, version, statistics, answers = ensemble.spec.name, ensemble.version, ensemble.statistics, self._answers
        end_ns, ended = ensemble.now_ns(), ensemble.ended
        only = answers[0] if len(answers) == 1 else None
        passed: dict[int, list[int]] = {}
        for trip, start in trips:
            if trip.is_over:  # withdrawn by one that was told
                continue
            trip.is_over = True
            ended(trip)
            rows, queue_ns, compute_ns, request = trip.rows, trip.queue_ns, trip.compute_ns, trip.request
            statistics.request_done(end_ns - trip.arrival_ns, queue_ns)
            of_rows = passed.get(rows)
            if of_rows is None:
                of_rows = passed[rows] = [0, 0, 0]
            of_rows[0] += 1
            of_rows[1] += queue_ns
            of_rows[2] += compute_ns
            if only is not None:  # a comprehension is a call, and this is every request
                given = {only[0]: outputs[only[1]][start : start + rows]}
            else:
                asked = {output.name for output in request.outputs} or ensemble.graph.outputs
                given = {tensor: outputs[output][start : start + rows] for tensor, output in answers if tensor in asked}
            response = InferResponse(
                model_name=name,
                model_version=version,
                id=request.id,
                outputs=given,
                timing=Timing(queue_ns, 0, compute_ns, 0, rows, 1),
            )
            _tell(trip, response)
        now_ms = time.time_ns() // 1_000_000
        for rows, (requests, queue_ns, compute_ns) in passed.items():
            statistics.requests_passed(
                requests=requests, rows=rows, queue_ns=queue_ns, compute_ns=compute_ns, now_ms=now_ms
            )


def _tell(trip: Trip, answer: InferResponse | FarthingError) -> None:
    try:
        trip.done(answer)
    except Exception:
        # One client's trouble must not take the answers of those who ride with it.
        log.exception("model %s: handing over an answer failed", trip.ensemble.spec.name)
