"""One request through a graph of models: every step runs as soon as its inputs exist.

A step is a request to its model, so it waits in that model's queue and is batched there with everybody else's, whoever
sent them; tensors pass as they are. A step with `each` is as many requests as there are items (`runtime.fan_out`). What
the graph means is `runtime.graph`'s; all of this lives on the event loop.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Protocol

import numpy as np

from farthing.config.pipeline import PipelineStep
from farthing.runtime.fan_out import FanOut
from farthing.runtime.graph import Graph, Step, item_shape
from farthing.runtime.items import MadeItems, Part, items_of, parts
from farthing.runtime.served import Done, Served
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError, InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import Tensor
from farthing.types.trace import Trace

Resolve = Callable[[str, str, str], Served]
"""The model of a name, version and namespace (either may be empty)."""


class UnderWay(Protocol):
    """A request on its way, however it goes."""

    def fail(self, error: FarthingError) -> None:
        """Ends it with an error."""


class Owner(Protocol):
    """The ensemble that a request passes through."""

    spec: ModelSpec
    version: str
    graph: Graph
    statistics: ModelStatistics
    resolve: Resolve
    now_ns: Callable[[], int]

    def ended(self, under_way: "Passage") -> None: ...


class Passage:
    """A request on its way through the graph. `withdraw` and `fail` may come at any time."""

    __slots__ = (
        "_arrival_ns", "_compute_ns", "_done", "_ensemble", "_is_ended", "_outputs", "_plan", "_queue_ns", "_request",
        "_rows", "_tensors", "_under_way", "_waits",
    )  # fmt: skip

    def __init__(self, ensemble: Owner, request: InferRequest, rows: int, arrival_ns: int, done: Done) -> None:
        self._ensemble = ensemble
        self._request = request
        self._rows = rows
        self._arrival_ns = arrival_ns
        self._done = done
        self._is_ended = False
        self._tensors: dict[str, Tensor | Part] = dict(request.inputs)
        self._under_way: dict[int, Callable[[], None] | None] = {}
        """Steps that are due, wait in their models or run, and how to withdraw them, as far as their models have taken
        them. As long as there are any, an answer will come."""
        self._queue_ns = self._compute_ns = 0
        asked = request.outputs
        self._outputs = frozenset([output.name for output in asked]) if asked else ensemble.graph.outputs
        self._plan = ensemble.graph.plan_for(self._outputs)
        self._waits = dict(self._plan.waits)
        """Steps that have not begun: how many others each waits for."""

    def start(self) -> None:
        """Runs what needs the client's tensors alone."""
        self._begin_all(self._plan.first)

    def resume(self, place: int, queue_ns: int, compute_ns: int) -> None:
        """What is before a step has been done elsewhere, and took so long; the step is under way."""
        self._queue_ns, self._compute_ns = queue_ns, compute_ns
        self._under_way[place] = None

    def go_on(self, place: int, outputs: Mapping[str, Tensor]) -> None:
        """A step that is under way has made these; the next begin."""
        for name, tensor in self._ensemble.graph.steps[place].outputs:
            self._tensors[tensor] = outputs[name]
        self._after(place)

    def withdraw(self) -> None:
        """The client left: nothing more of it runs, and nobody is told."""
        if not self._is_ended:
            self._ensemble.statistics.failed(FailureReason.CANCELED)
            self._end()

    def fail(self, error: FarthingError, reason: str = FailureReason.OTHER) -> None:
        """Answers with an error; the other steps are withdrawn."""
        if self._is_ended:
            return
        ensemble = self._ensemble
        ensemble.statistics.failed(reason, 1, ensemble.now_ns() - self._arrival_ns)
        self._end()
        self._done(error)

    def _end(self) -> None:
        self._is_ended = True
        under_way, self._under_way = self._under_way, {}
        for withdraw in under_way.values():
            if withdraw is not None:
                withdraw()
        self._ensemble.ended(self)

    def _after(self, place: int) -> None:
        """A step has given its tensors: begins those that waited for nothing else."""
        under_way = self._under_way
        del under_way[place]
        waits = self._waits
        ready = []
        for later in self._plan.after[place]:
            waits[later] -= 1
            if not waits[later]:
                ready.append(later)
        if ready:
            self._begin_all(ready)
        elif not under_way:
            self._finish()

    def _begin_all(self, places: Sequence[int]) -> None:
        under_way = self._under_way
        for place in places:  # all of them first: one may be answered at once
            under_way[place] = None
        for place in places:
            if self._is_ended:
                return
            self._begin(place)
        if not under_way and not self._is_ended:  # no step is needed: an output that is an input
            self._finish()

    def _begin(self, place: int) -> None:
        ensemble = self._ensemble
        graph = ensemble.graph
        step = graph.steps[place]
        tensors = self._tensors
        try:
            served = ensemble.resolve(step.model, step.version, step.namespace)
            inputs: dict[str, Tensor] = {}
            for name, tensor in step.inputs:
                if tensor in tensors:  # else it is optional, and was left out
                    found = tensors[tensor]
                    inputs[name] = found.tensor() if isinstance(found, Part) else found
            if step.each:
                self._fan_out(place, step, served, inputs)
                return
            withdraw = self._ask(step, served, inputs, partial(self.step_done, place))
        except FarthingError as error:
            self.fail(told(error, step), FailureReason.REJECTED)
            return
        if place in self._under_way:  # an ensemble may have answered at once
            self._under_way[place] = withdraw

    def _ask(self, step: Step, served: Served, inputs: dict[str, Tensor], done: Done) -> Callable[[], None]:
        now_ns = self._ensemble.now_ns()
        request = self._request
        timeout_us = request.timeout_us
        if timeout_us:
            timeout_us -= (now_ns - self._arrival_ns) // 1000
            if timeout_us <= 0:
                raise DeadlineExceeded("the request's time ran out before it")
        trace = None
        if request.trace is not None:
            trace = request.trace.below()
            done = partial(self._traced, step, trace, now_ns, done)
        asked = InferRequest(
            model_name=step.model,
            model_version=step.version,
            id=request.id,
            inputs=inputs,
            outputs=step.asked,
            parameters=request.parameters,
            priority=request.priority,
            timeout_us=timeout_us,
            tenant=request.tenant,
            trace=trace,
            due_ns=request.due_ns,
            origin=request.origin,
        )
        return served.submit(asked, *served.check(asked), now_ns, done)

    def _traced(
        self, step: Step, trace: Trace, start_ns: int, done: Done, answer: InferResponse | FarthingError
    ) -> None:
        trace.note(
            f"step {step.model}",
            start_ns,
            self._ensemble.now_ns(),
            {"farthing.ensemble.name": self._ensemble.spec.name, "farthing.model.name": step.model},
            context=trace.context,
            error=type(answer).__name__ if isinstance(answer, FarthingError) else "",
        )
        done(answer)

    def _fan_out(self, place: int, step: Step, served: Served, whole: dict[str, Tensor]) -> None:
        given = self._request.inputs
        columns = {
            name: items_of(
                [self._tensors[tensor] for tensor in tensors],
                tensors,
                items_max=step.items_max,
                is_given=tensors[0] in given or tensors[-1] in given,
            )
            for name, tensors in step.each
            if tensors[0] in self._tensors and tensors[-1] in self._tensors
        }
        counts = {name: len(items) for name, items in columns.items()}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{count} of `{name}`" for name, count in counts.items()) or "nothing"
            raise InvalidInput(f"what it reads item by item differs in number: {listed}")
        has_rows = served.spec.batch_rows_max > 0

        def ask(item: int, done: Done) -> Callable[[], None]:
            inputs = dict(whole)
            for name, items in columns.items():
                inputs[name] = items[item][np.newaxis] if has_rows else items[item]
            return self._ask(step, served, inputs, done)

        count = next(iter(counts.values()))

        def fail(error: FarthingError, item: int, reason: str) -> None:
            self.fail(told(error, step, f", item {item} of {count}"), reason)

        items = FanOut(count, self._ensemble.graph.inflight_max, ask, partial(self._items_done, place, served), fail)
        self._under_way[place] = items.withdraw
        items.pump()

    def _items_done(self, place: int, served: Served, answers: Sequence[InferResponse]) -> None:
        step = self._ensemble.graph.steps[place]
        # The item that took longest: the others ran beside it.
        times = [(t.queue_ns, t.input_ns + t.compute_ns + t.output_ns) for t in (answer.timing for answer in answers)]
        queue_ns, compute_ns = max(times, key=sum, default=(0, 0))
        self._queue_ns += queue_ns
        self._compute_ns += compute_ns
        spec = served.spec
        has_rows = spec.batch_rows_max > 0
        outputs = {output.name: output for output in spec.outputs}
        made = []
        for name, tensors in step.makes:
            if name not in outputs or any(name not in answer.outputs for answer in answers):
                self.fail(EngineFailed(f"model `{step.model}` gave no output `{name}`"), FailureReason.BACKEND)
                return
            items = [answer.outputs[name][0, ...] if has_rows else answer.outputs[name] for answer in answers]
            shape = item_shape(outputs[name], has_rows=has_rows)
            made += parts(MadeItems(tensors[0], items, outputs[name].dtype, shape), tensors)
        self._tensors.update(made)
        self._after(place)

    def step_done(self, place: int, answer: InferResponse | FarthingError) -> None:
        """A step's model has answered."""
        if self._is_ended:
            return
        step = self._ensemble.graph.steps[place]
        if isinstance(answer, FarthingError):
            self._under_way[place] = None  # it has ended by itself
            self.fail(told(answer, step), FailureReason.BACKEND)
            return
        timing = answer.timing
        self._queue_ns += timing.queue_ns
        self._compute_ns += timing.input_ns + timing.compute_ns + timing.output_ns
        outputs = answer.outputs
        for name, tensor in step.outputs:
            if name not in outputs:
                self._under_way[place] = None
                missing = EngineFailed(f"model `{step.model}` gave no output `{name}`")
                self.fail(missing, FailureReason.BACKEND)
                return
            self._tensors[tensor] = outputs[name]
        self._after(place)

    def _finish(self) -> None:
        ensemble = self._ensemble
        try:
            outputs = {}
            for tensor in ensemble.spec.outputs:
                if tensor.name in self._outputs:
                    found = self._tensors[tensor.name]
                    outputs[tensor.name] = found.tensor() if isinstance(found, Part) else found
        except EngineFailed as error:  # items that are no rows of one tensor
            self.fail(error, FailureReason.BACKEND)
            return
        now_ns = ensemble.now_ns()
        statistics = ensemble.statistics
        statistics.request_done(now_ns - self._arrival_ns, self._queue_ns)
        statistics.requests_passed(
            requests=1,
            rows=self._rows or 1,
            queue_ns=self._queue_ns,
            compute_ns=self._compute_ns,
            now_ms=time.time_ns() // 1_000_000,
        )
        response = InferResponse(
            model_name=ensemble.spec.name,
            model_version=ensemble.version,
            id=self._request.id,
            outputs=outputs,
            timing=Timing(self._queue_ns, 0, self._compute_ns, 0, self._rows, 1),
        )
        self._end()
        self._done(response)


def told(error: FarthingError, step: Step | PipelineStep, item: str = "") -> FarthingError:
    """The same error, saying in which step it happened."""
    told = copy(error)
    told.message = f"in ensemble step `{step.model}`{item}: {error.message}"
    return told
