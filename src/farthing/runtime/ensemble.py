"""One request through a graph of models: every step runs as soon as its inputs exist.

A step is a request to its model, so it waits in that model's queue and is batched there with everybody else's, whoever
sent them; tensors pass as they are. An ensemble has no engine, no instances and no queue of its own. What its
configuration means is `runtime.graph`'s; all of this lives on the event loop.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from copy import copy
from functools import partial
from typing import Final

import msgspec

from farthing.config.model import ModelConfig, complete_config, tensor_specs
from farthing.repository import FoundModel, FoundVersion, read_labels
from farthing.runtime.check import RequestCheck
from farthing.runtime.graph import Graph, Step, faults
from farthing.runtime.served import Done, Served
from farthing.runtime.served_streams import ServedStreams
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import (
    DeadlineExceeded,
    EngineFailed,
    FarthingError,
    InvalidInput,
    LoadFailed,
    Overloaded,
    Unavailable,
)
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import Tensor
from farthing.types.trace import Trace

PLATFORM: Final = "ensemble"
BUSY_RETRY_S: Final = 1.0
"""When to come back to an ensemble that has as many requests under way as it may."""

Resolve = Callable[[str, str], Served]


class LoadedEnsemble(msgspec.Struct, frozen=True, kw_only=True):
    """An ensemble's version, whose models have not been looked at yet."""

    spec: ModelSpec
    config: ModelConfig
    graph: Graph
    load_s: float


def load_ensemble(found: FoundModel, version: FoundVersion) -> LoadedEnsemble:
    """Reads what the configuration says. Raises `LoadFailed` where it leaves out what no file can tell."""
    started = time.monotonic()
    config = found.config
    assert config.ensemble_scheduling is not None
    if not config.input or not config.output:
        raise LoadFailed(
            f"model `{found.name}`: an ensemble has no file that tells its tensors",
            hint="list `input` and `output` in its configuration",
        )
    rows_max = config.max_batch_size or 0
    inputs, outputs = tensor_specs(config, has_batch_dimension=rows_max > 0, labels=read_labels(found))
    spec = ModelSpec(
        name=found.name,
        version=version.number,
        platform=PLATFORM,
        inputs=inputs,
        outputs=outputs,
        batch_rows_max=rows_max,
    )
    return LoadedEnsemble(
        spec=spec,
        config=complete_config(config, spec, backend=""),
        graph=Graph(config.ensemble_scheduling, [tensor.name for tensor in outputs]),
        load_s=time.monotonic() - started,
    )


def check_models(loaded: LoadedEnsemble, resolve: Resolve) -> None:
    """Raises `LoadFailed` unless the models an ensemble names are there, fit, and do not lead back to it."""
    name = loaded.spec.name
    try:
        found = next(faults(loaded.spec, loaded.graph, lambda model, version: resolve(model, version).spec_now()), "")
        if not found and name in _all_models(loaded.graph, resolve):
            found = "its steps lead back to itself"
    except FarthingError as error:
        raise LoadFailed(f"ensemble `{name}`: {error.message}", hint=error.hint) from None
    if not found:
        decoupled = [s.model for s in loaded.graph.steps if isinstance(resolve(s.model, s.version), ServedStreams)]
        if decoupled:
            found = f"model `{decoupled[0]}` is decoupled: it may answer a step more than once, or never"
    if found:
        raise LoadFailed(f"ensemble `{name}`: {found}")


def _all_models(graph: Graph, resolve: Resolve) -> set[str]:
    """The models of a graph, and of the ensembles among them."""
    names: set[str] = set()
    graphs = [graph]
    while graphs:
        for step in graphs.pop().steps:
            if step.model not in names:
                names.add(step.model)
                served = resolve(step.model, step.version)
                if isinstance(served, Ensemble):
                    graphs.append(served.graph)
    return names


class Ensemble:
    """A version of an ensemble that answers."""

    def __init__(
        self,
        loaded: LoadedEnsemble,
        *,
        resolve: Resolve,
        requests_max: int,
        statistics: ModelStatistics,
        clock: Clock | None = None,
    ) -> None:
        """`requests_max` may be under way at once."""
        self.spec = loaded.spec
        self.config = loaded.config
        self.statistics = statistics
        self.version = str(loaded.spec.version)
        self.graph = loaded.graph
        self.resolve = resolve
        self.now_ns = (clock or MonotonicClock()).now_ns
        self._check = RequestCheck(loaded.spec)
        self._requests_max = requests_max
        self._under_way: set[_Passage] = set()
        self._when_empty: list[Callable[[], None]] = []
        self._is_closed = False

    def spec_now(self) -> ModelSpec:
        """The spec, for those who ask later."""
        return self.spec

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its signature. Raises `InvalidInput` if it does not fit."""
        try:
            return self._check(request)
        except InvalidInput:
            self.statistics.failed(FailureReason.INVALID)
            raise

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """Starts a checked request; `done` gets its answer once. Answers how to withdraw it."""
        name = self.spec.name
        if self._is_closed:
            self.statistics.failed(FailureReason.REJECTED)
            raise Unavailable(f"model `{name}` version {self.version} is being unloaded", retry_after_s=1)
        if len(self._under_way) >= self._requests_max:
            self.statistics.failed(FailureReason.REJECTED)
            raise Overloaded(
                f"ensemble `{name}` has {self._requests_max} requests under way, as many as it may",
                retry_after_s=BUSY_RETRY_S,
            )
        passage = _Passage(self, request, rows, arrival_ns, done)
        self._under_way.add(passage)
        passage.start()
        return passage.withdraw

    def ended(self, passage: "_Passage") -> None:
        """A request is no longer under way."""
        self._under_way.discard(passage)
        if self._when_empty and not self._under_way:
            calls, self._when_empty = self._when_empty, []
            for call in calls:
                call()

    def health(self) -> str:
        """The first of its models that cannot be asked."""
        for step in self.graph.steps:
            try:
                trouble = self.resolve(step.model, step.version).health()
            except FarthingError as error:
                trouble = error.message
            if trouble:
                return f"its step `{step.model}`: {trouble}"
        return ""

    def running(self) -> Iterable[Running]:
        """Nothing: what runs, runs in its models."""
        return ()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Calls once nothing is under way any more; nothing new is taken from now on."""
        self._is_closed = True
        if self._under_way:
            self._when_empty.append(call)
        else:
            call()

    def fail_all(self, error: FarthingError) -> None:
        """Ends what is under way with an error."""
        for passage in list(self._under_way):
            passage.fail(error)

    def close(self, timeout_s: float) -> None:
        """Nothing is held."""


class _Passage:
    """A request on its way through the graph."""

    __slots__ = (
        "_arrival_ns", "_begun", "_compute_ns", "_done", "_ensemble", "_is_ended", "_outputs", "_queue_ns", "_request",
        "_rows", "_step_traces", "_tensors", "_waiting", "_withdraws",
    )  # fmt: skip

    def __init__(self, ensemble: Ensemble, request: InferRequest, rows: int, arrival_ns: int, done: Done) -> None:
        self._ensemble = ensemble
        self._request = request
        self._rows = rows
        self._arrival_ns = arrival_ns
        self._done = done
        self._is_ended = False
        self._tensors: dict[str, Tensor] = dict(request.inputs)
        self._begun: set[int] = set()
        """Steps that are due, wait in their models or run: as long as there are any, an answer will come."""
        self._withdraws: dict[int, Callable[[], None]] = {}
        """Of those, as far as their models have taken them."""
        self._step_traces: dict[int, tuple[Trace, int]] = {}
        """Of those, if the request is traced: where they note what happens, and since when."""
        self._queue_ns = self._compute_ns = 0
        graph = ensemble.graph
        asked = frozenset(output.name for output in request.outputs) or graph.outputs
        self._outputs = [tensor.name for tensor in ensemble.spec.outputs if tensor.name in asked]
        self._waiting = {place: set(graph.waits_for(place, self._tensors)) for place in graph.steps_for(asked)}
        """Steps that have not begun, and the tensors each lacks."""

    def start(self) -> None:
        """Runs what needs the client's tensors alone."""
        self._arrived(self._tensors)

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
        withdraws, self._withdraws = list(self._withdraws.values()), {}
        for withdraw in withdraws:
            withdraw()
        self._ensemble.ended(self)

    def _arrived(self, tensors: Iterable[str]) -> None:
        """These tensors are there now: begins every step that lacked nothing else."""
        ready = []
        for place, lacks in self._waiting.items():
            lacks.difference_update(tensors)
            if not lacks:
                ready.append(place)
        for place in ready:
            del self._waiting[place]
        self._begun.update(ready)
        for place in ready:
            if self._is_ended:
                return
            self._begin(place)
        if not self._begun and not self._waiting and not self._is_ended:
            self._finish()

    def _begin(self, place: int) -> None:
        ensemble = self._ensemble
        step = ensemble.graph.steps[place]
        now_ns = ensemble.now_ns()
        request = self._request
        timeout_us = request.timeout_us
        if timeout_us:
            timeout_us -= (now_ns - self._arrival_ns) // 1000
            if timeout_us <= 0:
                late = DeadlineExceeded(f"the request's time ran out before step `{step.model}`")
                self.fail(late, FailureReason.REJECTED)
                return
        trace = None
        if request.trace is not None:
            trace = request.trace.below()
            self._step_traces[place] = (trace, now_ns)
        asked = InferRequest(
            model_name=step.model,
            model_version=step.version,
            id=request.id,
            inputs={name: self._tensors[tensor] for name, tensor in step.inputs if tensor in self._tensors},
            outputs=step.asked,
            parameters=request.parameters,
            priority=request.priority,
            timeout_us=timeout_us,
            tenant=request.tenant,
            trace=trace,
            origin=request.origin,
        )
        try:
            served = ensemble.resolve(step.model, step.version)
            withdraw = served.submit(asked, *served.check(asked), now_ns, partial(self._step_done, place))
        except FarthingError as error:
            self.fail(_told(error, step), FailureReason.REJECTED)
            return
        if not self._is_ended and place in self._begun:  # an ensemble may answer at once
            self._withdraws[place] = withdraw

    def _step_done(self, place: int, answer: InferResponse | FarthingError) -> None:
        self._begun.discard(place)
        self._withdraws.pop(place, None)
        if self._is_ended:
            return
        step = self._ensemble.graph.steps[place]
        if place in self._step_traces:
            self._note(step, *self._step_traces.pop(place), answer)
        if isinstance(answer, FarthingError):
            self.fail(_told(answer, step), FailureReason.BACKEND)
            return
        timing = answer.timing
        self._queue_ns += timing.queue_ns
        self._compute_ns += timing.input_ns + timing.compute_ns + timing.output_ns
        outputs = answer.outputs
        made = []
        for name, tensor in step.outputs:
            if name not in outputs:
                missing = EngineFailed(f"model `{step.model}` gave no output `{name}`")
                self.fail(missing, FailureReason.BACKEND)
                return
            self._tensors[tensor] = outputs[name]
            made.append(tensor)
        self._arrived(made)

    def _note(self, step: Step, trace: Trace, start_ns: int, answer: InferResponse | FarthingError) -> None:
        assert self._request.trace is not None
        self._request.trace.note(
            f"step {step.model}",
            start_ns,
            self._ensemble.now_ns(),
            {"farthing.ensemble.name": self._ensemble.spec.name, "farthing.model.name": step.model},
            context=trace.context,
            error=type(answer).__name__ if isinstance(answer, FarthingError) else "",
        )

    def _finish(self) -> None:
        ensemble = self._ensemble
        now_ns = ensemble.now_ns()
        statistics = ensemble.statistics
        statistics.request_done(now_ns - self._arrival_ns, self._queue_ns)
        statistics.batch_done(
            requests=1,
            rows=self._rows or 1,
            queue_ns=self._queue_ns,
            input_ns=0,
            compute_ns=self._compute_ns,
            output_ns=0,
            now_ms=time.time_ns() // 1_000_000,
        )
        response = InferResponse(
            model_name=ensemble.spec.name,
            model_version=ensemble.version,
            id=self._request.id,
            outputs={name: self._tensors[name] for name in self._outputs},
            timing=Timing(self._queue_ns, 0, self._compute_ns, 0, self._rows, 1),
        )
        self._end()
        self._done(response)


def _told(error: FarthingError, step: Step) -> FarthingError:
    """The same error, saying in which step it happened."""
    told = copy(error)
    told.message = f"in ensemble step `{step.model}`: {error.message}"
    return told
