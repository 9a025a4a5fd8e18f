"""The requests of a chain of models that go from step to step together.

In a chain each step reads nothing but what the one before it made, so a whole batch can be the next model's batch as it
is. If that model is idle and quick the batch runs there at once (`batching.at_once`) and nothing is done for each
request but at both ends of the chain; else they wait there together (`batching.rider`). Whatever is out of the ordinary
(a trace, a timeout, a model with a cache, one that answers one by one) is taken, or taken over, by a `Passage`, request
by request. Lives on the event loop.
"""

import time
from collections.abc import Hashable, Mapping, Sequence

from farthing.batching.at_once import AtOnce
from farthing.batching.loop import LOOP_BUSY_NS_MAX, BatchLoop
from farthing.batching.queue import ENDED, FIXED_SHAPES
from farthing.batching.rider import Arrival, Pumped, Rider
from farthing.batching.run import members_of
from farthing.engines.contract import Batch
from farthing.runtime.chain import Link
from farthing.runtime.passage import told
from farthing.runtime.served import Done, Served, ServedVersion
from farthing.runtime.trip import Convoy, Convoying, Ride, Trip
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import Tensor


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
        self._keeps_names = len(self.link.reads) == len(ensemble.spec.inputs) and all(
            name == tensor for name, tensor in self.link.reads
        )
        """Of the first stage: whether what the ensemble is given is what its model is given."""
        self._wanted = tuple(output.name for output in self.link.step.asked)
        self._door: Served | None = None
        self._is_door_open = False

    # -- the first model -----------------------------------------------------------------------------------------------

    def begin(self, request: InferRequest, rows: int, signature: object, arrival_ns: int, done: Done) -> Trip | None:
        """Starts a checked request; None if it has to go by itself."""
        if request.trace is not None or request.timeout_us or request.priority or request.origin is not None:
            return None
        ensemble, step = self._ensemble, self.link.step
        try:
            served = ensemble.resolve(step.model, step.version, step.namespace)
        except FarthingError:
            return None
        if served is not self._door:
            self._door, self._is_door_open = served, self._fits(served)
        # Only of models whose shapes are fixed is the ensemble's own check the model's too, whatever its inputs' names.
        if not self._is_door_open or signature is not FIXED_SHAPES:
            return None
        inputs = request.inputs
        if not self._keeps_names:
            inputs = {name: inputs[tensor] for name, tensor in self.link.reads}
        loop: BatchLoop = served.loop  # type: ignore[attr-defined]  # as `_fits` has seen
        trip = Trip(ensemble, self, loop, request, self._asked(request), inputs, rows, arrival_ns, done)
        ensemble.under_way.add(trip)
        try:
            loop.submit(trip)
        except FarthingError as error:
            trip.state = ENDED
            trip.fail(told(error, step), FailureReason.REJECTED)
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

    def arrived(
        self, riders: Sequence[Rider], outputs: Mapping[str, Tensor], ran: Arrival, *, is_last: bool
    ) -> Sequence[Pumped]:
        """A batch has run; these were in it, and their clients wait. Answers whose turn it is now."""
        trips = []
        for rider in riders:
            if isinstance(rider, Ride):
                trip = rider.trip
                trip.ride = None
                trip.start = rider.start
                trips.append(trip)
            else:
                assert isinstance(rider, Trip)
                trips.append(rider)
        convoy = Convoy(trips, outputs, ran.started_ns, ran.input_ns + ran.compute_ns + ran.output_ns)
        return self._go_on(convoy, is_last=is_last)

    def _go_on(self, convoy: Convoy, *, is_last: bool) -> Sequence[Pumped]:
        """Takes them as far as they can go in this turn."""
        now_ns = self._ensemble.now_ns
        until_ns = now_ns() + LOOP_BUSY_NS_MAX
        reached: list[Pumped] = []
        under_way = [(self, convoy, is_last)]
        may_have_left = False
        while under_way:
            stage, convoy, is_last = under_way.pop()
            if may_have_left:  # one that was told may withdraw another
                convoy.trips = [trip for trip in convoy.trips if not trip.is_over]
                if not convoy.trips:
                    continue
            later = stage._next
            if later is None:
                stage._finish(convoy)
                may_have_left = True
                continue
            entry = later._entry(convoy)
            if entry is None:
                stage._part(convoy)
                may_have_left = True
                continue
            loop, signature, inputs = entry
            now = now_ns()
            rows = [trip.rows for trip in convoy.trips]
            at_once = loop.at_once() if now < until_ns else None
            trips = at_once.takes(rows, signature, now, is_last=is_last) if at_once is not None else 0
            if at_once is None or not trips:
                later._queue(convoy, loop, signature, inputs)
                reached.append(loop)
                may_have_left = True
                continue
            if trips < len(rows):
                convoy, rest = convoy.cut(trips)
                under_way.append((stage, rest, is_last))
                is_last = False
            ran = later._run(at_once, convoy, sum(rows[:trips]), signature, inputs, now)
            if ran is None:
                later._queue(convoy, loop, signature, inputs)
                reached.append(loop)
                may_have_left = True
            else:
                under_way.append((later, ran, is_last))
        return reached

    def _entry(self, convoy: Convoy) -> tuple[BatchLoop, Hashable, Mapping[str, Tensor]] | None:
        """This model's loop, what the step before made for it, and with what signature.

        None if it cannot take that as it is.
        """
        ensemble, link = self._ensemble, self.link
        outputs = convoy.outputs
        inputs = {name: outputs[output] for name, output in link.reads}
        try:
            served = ensemble.resolve(link.step.model, link.step.version, link.step.namespace)
            if (
                not isinstance(served, ServedVersion)
                or not served.takes_riders
                or ensemble.spec.batch_rows_max > served.spec.batch_rows_max
            ):
                return None
            trip = convoy.trips[0]
            first = {name: tensor[trip.start : trip.start + trip.rows] for name, tensor in inputs.items()}
            # Rows of one batch have one shape, so what is true of the first is true of all.
            _, signature = served.request_check(
                InferRequest(model_name=link.step.model, inputs=first, outputs=link.step.asked)
            )
        except FarthingError:
            return None  # each is told by itself
        return served.loop, signature, inputs

    def _run(
        self,
        at_once: AtOnce,
        convoy: Convoy,
        rows: int,
        signature: Hashable,
        inputs: Mapping[str, Tensor],
        now_ns: int,
    ) -> Convoy | None:
        """The same trips with what this model made; None if it went wrong, or others' rows lie between theirs."""
        trips = convoy.trips
        start, end = trips[0].start, trips[-1].start + trips[-1].rows
        if end - start != rows:
            return None
        for tensor in inputs.values():
            if len(tensor) != rows:
                inputs = {name: tensor[start:end] for name, tensor in inputs.items()}
                break
        ran = at_once.run(Batch(inputs, self._wanted, tuple(members_of(trips))), rows, signature, now_ns)
        if ran is None or ran.whole is None:
            return None
        if start:
            for trip in trips:
                trip.start -= start
        started_ns = convoy.started_ns + ran.started_ns - now_ns
        compute_ns = convoy.compute_ns + ran.input_ns + ran.compute_ns + ran.output_ns
        return Convoy(trips, ran.whole, started_ns, compute_ns)

    def _queue(self, convoy: Convoy, loop: BatchLoop, signature: Hashable, inputs: Mapping[str, Tensor]) -> None:
        """Has each of them wait for this model."""
        now_ns = self._ensemble.now_ns()
        rides = []
        for trip in convoy.trips:
            if trip.is_over:  # withdrawn by one that was told
                continue
            trip.from_ns += now_ns - convoy.started_ns
            trip.compute_ns += convoy.compute_ns
            rides.append(Ride(trip, self, loop, self._asked(trip.asked), inputs, signature, now_ns))
        if not rides:
            return
        if loop.submit_all(rides):
            for ride in rides:
                ride.trip.ride = ride
        else:
            for ride in rides:
                self._submit(loop, ride)

    def _submit(self, loop: BatchLoop, ride: Ride) -> None:
        trip = ride.trip
        if trip.is_over:  # withdrawn by one that was told
            return
        trip.ride = ride
        try:
            loop.submit(ride)
        except FarthingError as error:
            trip.ride = None
            trip.fail(told(error, self.link.step), FailureReason.REJECTED)

    def _part(self, convoy: Convoy) -> None:
        """The next model takes requests one by one: each goes on by itself."""
        for trip in convoy.trips:
            if trip.is_over:
                continue
            rows = slice(trip.start, trip.start + trip.rows)
            own = {name: tensor[rows] for name, tensor in convoy.outputs.items()}
            passage = trip.take_over(self.link, convoy.started_ns - trip.from_ns, trip.compute_ns + convoy.compute_ns)
            passage.go_on(self.link.place, own)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, convoy: Convoy) -> None:
        """Answers them."""
        ensemble, answers, outputs = self._ensemble, self._answers, convoy.outputs
        name, version, end_ns = ensemble.spec.name, ensemble.version, ensemble.now_ns()
        started_ns, compute_ns = convoy.started_ns, convoy.compute_ns
        only, whole = answers[0][0], outputs[answers[0][1]]
        has_one = len(answers) == 1
        ensemble.ended_all(convoy.trips)
        kind = None
        arrivals: list[int] = []
        arrivals_of: dict[tuple[int, int, int], list[int]] = {}
        for trip in convoy.trips:
            if trip.is_over:  # withdrawn by one that was told
                continue
            trip.is_over = True
            start, rows, asked, since_ns, run_ns = (
                trip.start,
                trip.rows,
                trip.asked,
                trip.from_ns,
                trip.compute_ns,
            )
            mine = (rows, since_ns - trip.arrival_ns, run_ns)
            if mine != kind:  # mostly all are of one
                kind = mine
                arrivals = arrivals_of.setdefault(mine, [])
            arrivals.append(trip.arrival_ns)
            if has_one:  # a comprehension is a call, and this is every request
                given = {only: whole[start : start + rows]}
            else:
                names = {output.name for output in asked.outputs} or ensemble.graph.outputs
                given = {tensor: outputs[made][start : start + rows] for tensor, made in answers if tensor in names}
            response = InferResponse(
                model_name=name,
                model_version=version,
                id=asked.id,
                outputs=given,
                timing=Timing(started_ns - since_ns, 0, run_ns + compute_ns, 0, rows, 1),
            )
            trip.tell(response)
        statistics, now_ms = ensemble.statistics, time.time_ns() // 1_000_000
        for (rows, later_ns, run_ns), arrivals in arrivals_of.items():
            requests = len(arrivals)
            statistics.requests_passed(
                requests=requests,
                rows=rows,
                queue_ns=statistics.requests_done(arrivals, started_ns - later_ns, end_ns),
                compute_ns=(run_ns + compute_ns) * requests,
                now_ms=now_ms,
            )
