"""What a pipeline means: which step needs which tensors, which steps an answer needs, do they fit, what does it take.

Pure; with the order in which models are loaded. Ensembles are pipelines whose steps all read whole tensors. That a
graph makes sense in itself (no tensor made twice, none missing, no circle) was checked by `config`; here it meets the
models it names. Carrying it out belongs to `runtime.passage`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from farthing.config.pipeline import PipelineGraph, names_of
from farthing.repository import FoundModel, meant, model_key
from farthing.types.models import ModelSpec
from farthing.types.requests import RequestedOutput
from farthing.types.tensors import TensorSpec

SpecOf = Callable[["Step"], ModelSpec]
"""The spec of a step's model; raises `FarthingError` for one that is not there."""


class Items(NamedTuple):
    """Where a model's tensor comes from, or goes to, item by item."""

    name: str
    """The model's."""
    tensors: tuple[str, ...]
    """The pipeline's: one, or the values and the shapes of a ragged pair."""


class Step(NamedTuple):
    """One model of the graph."""

    model: str
    version: str
    """Empty: the latest."""
    inputs: tuple[tuple[str, str], ...]
    """(The model's input, the pipeline's tensor), read whole."""
    outputs: tuple[tuple[str, str], ...]
    """(The model's output, the pipeline's tensor); empty for a step with `each`."""
    asked: tuple[RequestedOutput, ...]
    """The outputs it is asked for: those that somebody reads."""
    each: tuple[Items, ...] = ()
    """What it reads item by item: it runs once an item."""
    makes: tuple[Items, ...] = ()
    """What becomes of its items' outputs, for a step with `each`."""
    items_max: int = 0
    namespace: str = ""
    """Empty: the pipeline's own before others."""

    def reads(self) -> Iterator[str]:
        """The pipeline's tensors that it reads."""
        yield from (tensor for _, tensor in self.inputs)
        for items in self.each:
            yield from items.tensors

    def made(self) -> Iterator[str]:
        """The pipeline's tensors that it makes."""
        yield from (tensor for _, tensor in self.outputs)
        for items in self.makes:
            yield from items.tensors


class Plan(NamedTuple):
    """How some outputs come about: the places of the steps they need, and which waits for which.

    What a client sends is there from the beginning, and what it left out is not waited for.
    """

    first: tuple[int, ...]
    """Steps that wait for no other."""
    waits: Mapping[int, int]
    """Of the others: how many steps each waits for."""
    after: Mapping[int, tuple[int, ...]]
    """Every step: those that wait for it."""


class Graph:
    """The steps of a pipeline."""

    def __init__(self, pipeline: PipelineGraph) -> None:
        """What neither an output of the pipeline nor a step reads is not asked for."""
        self.outputs = frozenset(pipeline.outputs)
        self.inflight_max = pipeline.max_inflight_requests
        read = self.outputs.union(
            *(step.inputs.values() for step in pipeline.step),
            *(names_of(tensor) for step in pipeline.step for tensor in step.each.values()),
        )
        steps = []
        for step in pipeline.step:
            wanted = [
                Items(name, names_of(tensor))
                for name, tensor in step.outputs.items()
                if read.intersection(names_of(tensor))
            ]
            steps.append(
                Step(
                    model=step.model,
                    version=str(step.version) if step.version else "",
                    inputs=tuple(step.inputs.items()),
                    outputs=() if step.each else tuple((items.name, items.tensors[0]) for items in wanted),
                    asked=tuple(RequestedOutput(items.name) for items in wanted),
                    each=tuple(Items(name, names_of(tensor)) for name, tensor in step.each.items()),
                    makes=tuple(wanted) if step.each else (),
                    items_max=step.items_max,
                    namespace=step.namespace,
                )
            )
        self.steps = tuple(steps)
        self.has_items = any(step.each for step in steps)
        self._maker = {tensor: place for place, step in enumerate(self.steps) for tensor in step.made()}
        self._plan = self._plan_for(self.outputs)

    def plan_for(self, outputs: frozenset[str]) -> Plan:
        """How these outputs come about."""
        return self._plan if outputs == self.outputs else self._plan_for(outputs)

    def _plan_for(self, outputs: Iterable[str]) -> Plan:
        needs: dict[int, set[int]] = {}
        tensors = list(outputs)
        while tensors:
            place = self._maker.get(tensors.pop())
            if place is not None and place not in needs:
                reads = list(self.steps[place].reads())
                needs[place] = {self._maker[tensor] for tensor in reads if tensor in self._maker}
                tensors += reads
        order = sorted(needs)
        return Plan(
            first=tuple(place for place in order if not needs[place]),
            waits={place: len(needs[place]) for place in order if needs[place]},
            after={place: tuple(later for later in order if place in needs[later]) for place in order},
        )


def faults(spec: ModelSpec, graph: Graph, spec_of: SpecOf) -> Iterator[str]:
    """What does not fit between a pipeline and its models, step by step."""
    models = [spec_of(step) for step in graph.steps]
    made = {tensor.name: ("the input", tensor) for tensor in spec.inputs}
    for place, (step, model) in enumerate(zip(graph.steps, models, strict=True)):
        outputs = {tensor.name: tensor for tensor in model.outputs}
        for asked in step.asked:
            if asked.name not in outputs:
                has = ", ".join(outputs)
                yield f"{_at(place, step)}: model `{step.model}` has no output `{asked.name}`; it has: {has}"
        made |= {
            tensor.name: (f"output `{name}` of model `{step.model}`", tensor) for name, tensor in _made(step, model)
        }
    for place, (step, model) in enumerate(zip(graph.steps, models, strict=True)):
        inputs = {tensor.name: tensor for tensor in model.inputs}
        for name in _fed(step):
            if name not in inputs:
                yield f"{_at(place, step)}: model `{step.model}` has no input `{name}`; it has: {', '.join(inputs)}"
        for name, wanted in _wanted(step, model):
            if wanted.name in made and (clash := _clash(*made[wanted.name], wanted)):
                yield f"{_at(place, step)}: input `{name}` of model `{step.model}` reads `{wanted.name}`: {clash}"
        fed = set(_fed(step))
        if missing := [name for name, wanted in inputs.items() if name not in fed and not wanted.is_optional]:
            yield f"{_at(place, step)}: input `{missing[0]}` of model `{step.model}` is fed by nobody"
    for output in spec.outputs:
        if output.name in made and (clash := _clash(*made[output.name], output)):
            yield f"output `{output.name}`: {clash}"


def tensors_of(
    pipeline: PipelineGraph, graph: Graph, spec_of: SpecOf
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], int]:
    """Inputs and outputs of a pipeline, as its models have them, and how many rows a request may have.

    An input is what all its readers can read, or what the first of them reads where they cannot agree (`faults` then
    says so). What is not known of a tensor because its model lacks it is left out.
    """
    models = [spec_of(step) for step in graph.steps]
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for step, model in zip(graph.steps, models, strict=True):
        for _, wanted in _wanted(step, model):
            known = inputs.get(wanted.name)
            inputs[wanted.name] = wanted if known is None else _both(known, wanted)
        outputs |= {tensor.name: tensor for _, tensor in _made(step, model)}
    rows_max = pipeline.max_batch_size
    if rows_max is None:
        rows_max = 0 if any(step.each for step in graph.steps) else min(model.batch_rows_max for model in models)
    return (
        tuple(inputs[name] for name in pipeline.inputs if name in inputs),
        tuple(outputs[name] for name in pipeline.outputs if name in outputs),
        rows_max,
    )


def _at(place: int, step: Step) -> str:
    return f"step {place} (`{step.model}`)"


def _fed(step: Step) -> Iterator[str]:
    yield from (name for name, _ in step.inputs)
    yield from (items.name for items in step.each)


def _wanted(step: Step, model: ModelSpec) -> Iterator[tuple[str, TensorSpec]]:
    """What a step reads: the model's input, and what the pipeline's tensor must be for it."""
    inputs = {tensor.name: tensor for tensor in model.inputs}
    for name, tensor in step.inputs:
        if name in inputs:
            yield name, _named(inputs[name], tensor)
    for items in step.each:
        if items.name in inputs:
            for spec in _of_items(inputs[items.name], items.tensors, has_rows=model.batch_rows_max > 0):
                yield items.name, spec


def _made(step: Step, model: ModelSpec) -> Iterator[tuple[str, TensorSpec]]:
    """What a step makes: the model's output, and what it is in the pipeline."""
    outputs = {tensor.name: tensor for tensor in model.outputs}
    for name, tensor in step.outputs:
        if name in outputs:
            yield name, _named(outputs[name], tensor)
    for items in step.makes:
        if items.name in outputs:
            for spec in _of_items(outputs[items.name], items.tensors, has_rows=model.batch_rows_max > 0):
                yield items.name, spec


def _named(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(
        name=name, datatype=spec.datatype, shape=spec.shape, is_optional=spec.is_optional, labels=spec.labels
    )


def item_shape(spec: TensorSpec, *, has_rows: bool) -> tuple[int, ...]:
    """The shape of one item: a row, for a model that has rows; else all that one request brings."""
    return spec.shape[1:] if has_rows else spec.shape


def _of_items(spec: TensorSpec, tensors: tuple[str, ...], *, has_rows: bool) -> Iterator[TensorSpec]:
    """A model's tensor as many items of it: one tensor, or values and shapes."""
    item = item_shape(spec, has_rows=has_rows)
    if len(tensors) == 1:
        yield TensorSpec(name=tensors[0], datatype=spec.datatype, shape=(-1, *item), labels=spec.labels)
    else:
        yield TensorSpec(name=tensors[0], datatype=spec.datatype, shape=(-1,))
        yield TensorSpec(name=tensors[1], datatype="INT64", shape=(-1, len(item)))


def _both(one: TensorSpec, other: TensorSpec) -> TensorSpec:
    """What two readers of one tensor both take."""
    if one.datatype != other.datatype or len(one.shape) != len(other.shape):
        return one
    shape = tuple(b if a == -1 else a for a, b in zip(one.shape, other.shape, strict=True))
    return TensorSpec(
        name=one.name, datatype=one.datatype, shape=shape, is_optional=one.is_optional and other.is_optional
    )


def _clash(maker: str, made: TensorSpec, wanted: TensorSpec) -> str:
    """Why one tensor can never be the other; empty if it can."""
    if made.datatype != wanted.datatype:
        return f"{maker} is {made.datatype}, {wanted.datatype} is wanted"
    if len(made.shape) != len(wanted.shape) or any(
        one != other and -1 not in (one, other) for one, other in zip(made.shape, wanted.shape, strict=True)
    ):
        return f"{maker} has shape {list(made.shape)}, {list(wanted.shape)} is wanted"
    return ""


def models_of(found: FoundModel) -> Mapping[tuple[str, str], None]:
    """The models that a model is made of, each once, in their order; none unless it is an ensemble or a pipeline.

    Each is the name and the namespace that its steps say.
    """
    scheduling = found.config.ensemble_scheduling
    return dict.fromkeys((step.model_name, step.model_namespace) for step in scheduling.step) if scheduling else {}


def _keys_of(found: FoundModel, namespaces: Mapping[str, Iterable[str]]) -> set[str]:
    """The same by key, of what there is; by name what there is not."""
    keys: set[str] = set()
    for name, within in models_of(found):
        there = meant(namespaces.get(name, ()), within=within, near=found.namespace)
        keys |= {model_key(name, namespace) for namespace in there} or {name}
    return keys


def _namespaces(models: Iterable[FoundModel]) -> dict[str, list[str]]:
    there: dict[str, list[str]] = {}
    for found in models:
        there.setdefault(found.name, []).append(found.namespace)
    return there


def with_parts(names: Iterable[str], models: Mapping[str, FoundModel]) -> set[str]:
    """These names, the keys of all models that have them, of those that they are made of, and so on."""
    named = set(names)
    namespaces = _namespaces(models.values())
    left = [key for key, found in models.items() if found.name in named]
    seen: set[str] = set()
    while left:
        key = left.pop()
        if key not in seen:
            seen.add(key)
            if key in models:
                left += _keys_of(models[key], namespaces)
    return named | seen


def waves(models: Iterable[FoundModel]) -> Iterator[list[FoundModel]]:
    """The models in such an order that each comes after those it is made of; in a wave, none needs another.

    Those that need each other in a circle come last, and will be told.
    """
    left = {found.key: found for found in models}
    namespaces = _namespaces(left.values())
    needs = {key: _keys_of(found, namespaces) for key, found in left.items()}
    while left:
        ready = [found for key, found in left.items() if not needs[key] & left.keys()]
        wave = ready or list(left.values())
        yield wave
        for found in wave:
            del left[found.key]
