"""Which graphs are chains: each step reads nothing but what the one before it made.

Pure. Taking requests through one together belongs to `runtime.convoy`.
"""

from typing import NamedTuple

from farthing.runtime.graph import Graph, Step
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest


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
