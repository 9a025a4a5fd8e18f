"""A graph of models behind one name: an ensemble of Triton's, or a pipeline of ours.

It has no engine, no instances and no queue of its own. What its description means is `runtime.graph`'s, one request's
way through it `runtime.passage`'s; all of this lives on the event loop.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from farthing.batching.crossing import Lane
from farthing.config.model import (
    ModelConfig,
    ModelParameter,
    ModelTransactionPolicy,
    complete_config,
    tensor_specs,
)
from farthing.config.pipeline import PipelineGraph, PipelineStep, pipeline_of
from farthing.repository import FoundModel, FoundVersion, model_key, read_labels
from farthing.runtime.chain import links_of
from farthing.runtime.check import RequestCheck
from farthing.runtime.convoy import Stage
from farthing.runtime.frame_line import FrameLine
from farthing.runtime.graph import Graph, Step, faults, tensors_of
from farthing.runtime.passage import Passage, Resolve, UnderWay
from farthing.runtime.served import Done
from farthing.runtime.served_streams import Streaming
from farthing.runtime.stream_graph import StreamGraph, stream_graph
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest
from farthing.types.tensors import TensorSpec

PLATFORM: Final = "ensemble"
PARAMETER: Final = "pipeline"
"""Where the configuration shows a pipeline whole, as JSON, if `ensemble_scheduling` cannot."""

BUSY_RETRY_S: Final = 1.0
"""When to come back to an ensemble that has as many requests under way as it may."""


class LoadedEnsemble(msgspec.Struct, frozen=True, kw_only=True):
    """An ensemble's or pipeline's version, whose models have not been looked at yet."""

    spec: ModelSpec
    """Of a pipeline without its tensors: its models have them."""
    config: ModelConfig
    graph: Graph
    pipeline: PipelineGraph
    streams: StreamGraph | None = None
    """The graph around a step that answers more than once; None: each step answers once."""
    where: str
    """What is at fault if it does not fit: the ensemble, or the pipeline's file."""
    load_s: float


def load_ensemble(found: FoundModel, version: FoundVersion) -> LoadedEnsemble:
    """Reads what the description says. Raises `LoadFailed` where it leaves out what no file can tell."""
    started = time.monotonic()
    config = found.config
    pipeline, where = found.pipeline, str(version.path)
    rows_max = config.max_batch_size or 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    if pipeline is None:
        assert config.ensemble_scheduling is not None
        if not config.input or not config.output:
            raise LoadFailed(
                f"model `{found.name}`: an ensemble has no file that tells its tensors",
                hint="list `input` and `output` in its configuration",
            )
        inputs, outputs = tensor_specs(config, has_batch_dimension=rows_max > 0, labels=read_labels(found))
        names = (tuple(tensor.name for tensor in tensors) for tensors in (inputs, outputs))
        pipeline, where = pipeline_of(config.ensemble_scheduling, *names), f"ensemble `{found.name}`"
    return LoadedEnsemble(
        spec=ModelSpec(
            name=found.name,
            version=version.number,
            platform=PLATFORM,
            inputs=inputs,
            outputs=outputs,
            batch_rows_max=rows_max,
            namespace=found.namespace,
        ),
        config=config,
        graph=Graph(pipeline),
        pipeline=pipeline,
        where=where,
        load_s=time.monotonic() - started,
    )


def joined(loaded: LoadedEnsemble, resolve: Resolve) -> LoadedEnsemble:
    """The same, held against the models it names, and complete.

    Raises `LoadFailed` unless they are there, fit, and do not lead back to it.
    """
    spec, where = loaded.spec, loaded.where

    def spec_of(step: Step) -> ModelSpec:
        return resolve(step.model, step.version, step.namespace).spec_now()

    try:
        if not spec.inputs:
            inputs, outputs, rows_max = tensors_of(loaded.pipeline, loaded.graph, spec_of)
            spec = replace(spec, inputs=inputs, outputs=outputs, batch_rows_max=rows_max)
        found = next(faults(spec, loaded.graph, spec_of), "")
        if spec.batch_rows_max and (fixed := [t for t in (*spec.inputs, *spec.outputs) if t.shape[:1] != (-1,)]):
            found = found or (
                f"max_batch_size is {spec.batch_rows_max}, but `{fixed[0].name}` has shape {list(fixed[0].shape)}, "
                "which does not begin with rows"
            )
        if not found and model_key(spec.name, spec.namespace) in _all_models(loaded.graph, resolve):
            found = "its steps lead back to itself"
    except FarthingError as error:
        raise LoadFailed(f"{where}: {error.message}", hint=error.hint) from None
    if found:
        raise LoadFailed(f"{where}: {found}")

    def is_decoupled(step: PipelineStep) -> bool:
        return isinstance(resolve(step.model, str(step.version or ""), step.namespace), Streaming)

    try:
        streams = stream_graph(loaded.pipeline, is_decoupled)
    except LoadFailed as error:
        raise LoadFailed(f"{where}: {error.message}", hint=error.hint) from None
    config = complete_config(loaded.config, spec, backend="")
    if streams is not None:
        config = replace(config, model_transaction_policy=ModelTransactionPolicy(decoupled=True))
    if loaded.graph.has_items:  # for which Triton's words have no place
        told = ModelParameter(string_value=msgspec.json.encode(loaded.pipeline).decode())
        config = replace(config, parameters={**config.parameters, PARAMETER: told})
    return replace(loaded, spec=spec, config=config, streams=streams)


def _all_models(graph: Graph, resolve: Resolve) -> set[str]:
    """Keys of the models of a graph, and of the ensembles among them."""
    keys: set[str] = set()
    graphs = [(graph, resolve)]
    while graphs:
        inner, find = graphs.pop()
        for step in inner.steps:
            served = find(step.model, step.version, step.namespace)
            key = model_key(served.spec.name, served.spec.namespace)
            if key not in keys:
                keys.add(key)
                if isinstance(served, Ensemble):
                    graphs.append((served.graph, served.resolve))
    return keys


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
        lane: Lane | None = None,
    ) -> None:
        """`requests_max` may be under way at once; `lane` is where others hear of its frames' deadlines."""
        self.spec = loaded.spec
        self.config = loaded.config
        self.statistics = statistics
        self.version = str(loaded.spec.version)
        self.graph = loaded.graph
        self.resolve = resolve
        self.now_ns = (clock or MonotonicClock()).now_ns
        self._check = RequestCheck(loaded.spec)
        self._requests_max = loaded.pipeline.requests_max or requests_max
        self.under_way: set[UnderWay] = set()
        self._when_empty: list[Callable[[], None]] = []
        self._is_closed = False
        self._lane = lane
        self._frames: FrameLine | None = None
        links = links_of(self.graph, self.spec)
        self._chain = Stage(self, links) if links else None

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
        self.let_in()
        if self._chain is not None:
            trip = self._chain.begin(request, rows, signature, arrival_ns, done)
            if trip is not None:
                return trip.withdraw
        passage = Passage(self, request, rows, arrival_ns, done)
        self.under_way.add(passage)
        passage.start()
        return passage.withdraw

    def let_in(self) -> None:
        """Raises that there is no room for another request, or no more will be."""
        name = self.spec.name
        if self._is_closed:
            self.statistics.failed(FailureReason.REJECTED)
            raise Unavailable(f"model `{name}` version {self.version} is being unloaded", retry_after_s=1)
        if len(self.under_way) >= self._requests_max:
            self.statistics.failed(FailureReason.REJECTED)
            raise Overloaded(
                f"ensemble `{name}` has {self._requests_max} requests under way, as many as it may",
                retry_after_s=BUSY_RETRY_S,
            )

    @property
    def frames(self) -> FrameLine:
        """Where streams of frames are taken in; made for the first one."""
        if self._frames is None:
            loop = asyncio.get_running_loop()
            self._frames = FrameLine(self, places_max=self._requests_max, scheduler=loop, lane=self._lane)
        return self._frames

    def began(self, under_way: UnderWay) -> None:
        """A request is under way."""
        self.under_way.add(under_way)

    def ended(self, under_way: UnderWay) -> None:
        """A request is no longer under way."""
        self.ended_all((under_way,))

    def ended_all(self, under_way: Iterable[UnderWay]) -> None:
        """The same of several."""
        self.under_way.difference_update(under_way)
        if self._when_empty and not self.under_way:
            calls, self._when_empty = self._when_empty, []
            for call in calls:
                call()

    def health(self) -> str:
        """The first of its models that cannot be asked."""
        for step in self.graph.steps:
            try:
                trouble = self.resolve(step.model, step.version, step.namespace).health()
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
        if self._frames is not None:
            self._frames.close()
        if self._lane is not None:
            self._lane.leave()
        if self.under_way:
            self._when_empty.append(call)
        else:
            call()

    def fail_all(self, error: FarthingError) -> None:
        """Ends what is under way with an error."""
        for under_way in list(self.under_way):
            under_way.fail(error)

    def close(self, timeout_s: float) -> None:
        """Nothing is held."""
