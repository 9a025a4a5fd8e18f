"""What an ensemble's configuration means: which step needs which tensors, which steps an answer needs, do they fit.

Pure; with the order in which models are loaded. That a graph makes sense in itself (no tensor made twice, none missing,
no circle) was checked by `config.model`; here it meets the models it names. Carrying it out belongs to
`runtime.ensemble`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from farthing.config.model import EnsembleScheduling
from farthing.repository import FoundModel
from farthing.types.models import ModelSpec
from farthing.types.requests import RequestedOutput
from farthing.types.tensors import TensorSpec


class Step(NamedTuple):
    """One model of the graph."""

    model: str
    version: str
    """Empty: the latest."""
    inputs: tuple[tuple[str, str], ...]
    """(The model's input, the ensemble's tensor)."""
    outputs: tuple[tuple[str, str], ...]
    """(The model's output, the ensemble's tensor)."""
    asked: tuple[RequestedOutput, ...]
    """The outputs it is asked for: those that somebody reads."""


class Graph:
    """The steps of an ensemble."""

    def __init__(self, scheduling: EnsembleScheduling, outputs: Iterable[str]) -> None:
        """`outputs` are the ensemble's own; what neither they nor a step read is not asked for."""
        self.outputs = frozenset(outputs)
        read = self.outputs.union(*(step.input_map.values() for step in scheduling.step))
        self.steps = tuple(
            Step(
                model=step.model_name,
                version="" if step.model_version < 0 else str(step.model_version),
                inputs=tuple(step.input_map.items()),
                outputs=tuple((name, tensor) for name, tensor in step.output_map.items() if tensor in read),
                asked=tuple(RequestedOutput(name) for name, tensor in step.output_map.items() if tensor in read),
            )
            for step in scheduling.step
        )
        self._maker = {tensor: place for place, step in enumerate(self.steps) for _, tensor in step.outputs}
        self._needed = {self.outputs: self._steps_for(self.outputs)}

    def steps_for(self, outputs: frozenset[str]) -> frozenset[int]:
        """Places of the steps that these outputs need."""
        known = self._needed.get(outputs)
        return self._steps_for(outputs) if known is None else known

    def _steps_for(self, outputs: Iterable[str]) -> frozenset[int]:
        needed: set[int] = set()
        tensors = list(outputs)
        while tensors:
            place = self._maker.get(tensors.pop())
            if place is not None and place not in needed:
                needed.add(place)
                tensors += [tensor for _, tensor in self.steps[place].inputs]
        return frozenset(needed)

    def waits_for(self, place: int, given: Iterable[str]) -> frozenset[str]:
        """Tensors that a step cannot run without. What the client left out of the inputs is not waited for."""
        given = frozenset(given)
        return frozenset(tensor for _, tensor in self.steps[place].inputs if tensor in self._maker or tensor in given)


def faults(spec: ModelSpec, graph: Graph, spec_of: Callable[[str, str], ModelSpec]) -> Iterator[str]:
    """What does not fit between an ensemble and its models; `spec_of` raises `FarthingError` for one not there."""
    made: dict[str, tuple[str, TensorSpec]] = {tensor.name: ("the ensemble's input", tensor) for tensor in spec.inputs}
    models = [spec_of(step.model, step.version) for step in graph.steps]
    for place, (step, model) in enumerate(zip(graph.steps, models, strict=True)):
        outputs = {tensor.name: tensor for tensor in model.outputs}
        for name, tensor in step.outputs:
            if name not in outputs:
                yield f"step {place}: model `{step.model}` has no output `{name}`; it has: {', '.join(outputs)}"
                continue
            made[tensor] = (f"output `{name}` of model `{step.model}`", outputs[name])
    for place, (step, model) in enumerate(zip(graph.steps, models, strict=True)):
        inputs = {tensor.name: tensor for tensor in model.inputs}
        for name, tensor in step.inputs:
            if name not in inputs:
                yield f"step {place}: model `{step.model}` has no input `{name}`; it has: {', '.join(inputs)}"
            elif tensor in made and (clash := _clash(*made[tensor], inputs[name])):
                yield f"step {place}: input `{name}` of model `{step.model}`: {clash}"
        fed = {name for name, _ in step.inputs}
        if missing := [name for name, wanted in inputs.items() if name not in fed and not wanted.is_optional]:
            yield f"step {place}: input `{missing[0]}` of model `{step.model}` is fed by nobody"
    for output in spec.outputs:
        if output.name in made and (clash := _clash(*made[output.name], output)):
            yield f"output `{output.name}`: {clash}"


def _clash(maker: str, made: TensorSpec, wanted: TensorSpec) -> str:
    """Why one tensor can never be the other; empty if it can."""
    if made.datatype != wanted.datatype:
        return f"{maker} is {made.datatype}, {wanted.datatype} is wanted"
    if len(made.shape) != len(wanted.shape) or any(
        one != other and -1 not in (one, other) for one, other in zip(made.shape, wanted.shape, strict=True)
    ):
        return f"{maker} has shape {list(made.shape)}, {list(wanted.shape)} is wanted"
    return ""


def models_of(found: FoundModel) -> Mapping[str, None]:
    """The models that a model is made of, each once, in their order; none unless it is an ensemble."""
    scheduling = found.config.ensemble_scheduling
    return dict.fromkeys(step.model_name for step in scheduling.step) if scheduling else {}


def waves(models: Iterable[FoundModel]) -> Iterator[list[FoundModel]]:
    """The models in such an order that each comes after those it is made of; in a wave, none needs another.

    Those that need each other in a circle come last, and will be told.
    """
    left = {found.name: found for found in models}
    while left:
        ready = [found for found in left.values() if not models_of(found).keys() & left.keys()]
        wave = ready or list(left.values())
        yield wave
        for found in wave:
            del left[found.name]
