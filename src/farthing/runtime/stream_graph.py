"""A graph with a step that answers more than once: what runs before it, and what once for each of its responses.

    inputs -> before: once -> the step -> response 1 -> after -> answer 1
                                       -> response 2 -> after -> answer 2 ...

What is after may have such a step too. Pure; one request's way through it is `ensemble_streams`'.
"""

from collections.abc import Callable, Iterable

import msgspec

from farthing.config.pipeline import PipelineGraph, PipelineStep, makes_of, reads_of
from farthing.runtime.graph import Graph
from farthing.types.errors import LoadFailed


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a graph that answers once."""

    graph: Graph
    inputs: tuple[str, ...]
    """Tensors that it reads; some may be optional."""
    outputs: tuple[str, ...]
    """Tensors that it makes, as far as somebody reads them."""


class StreamGraph(msgspec.Struct, frozen=True, kw_only=True):
    """A graph around its first step that answers more than once."""

    before: Leg | None
    """None: nothing has to run before."""
    step: PipelineStep
    after: "StreamGraph | Leg | None"
    """None: its responses are the answers."""


def stream_graph(pipeline: PipelineGraph, is_decoupled: Callable[[PipelineStep], bool]) -> StreamGraph | None:
    """The graph, taken apart; None if every step answers once.

    Raises `LoadFailed` where it has no meaning: two such steps beside each other, or one that runs item by item.
    """
    decoupled = [step for step in pipeline.step if is_decoupled(step)]
    if not decoupled:
        return None
    for step in decoupled:
        if step.each:
            raise LoadFailed(
                f"model `{step.model}` is decoupled: it may answer an item more than once, or never",
                hint="give it `inputs` instead of `each`",
            )
    return _apart(pipeline, pipeline.step, pipeline.inputs, pipeline.outputs, decoupled)


def _apart(
    pipeline: PipelineGraph,
    steps: Iterable[PipelineStep],
    inputs: Iterable[str],
    outputs: Iterable[str],
    decoupled: list[PipelineStep],
) -> "StreamGraph":
    steps = list(steps)
    own = [step for step in decoupled if step in steps]
    behind = {id(step): _dependents(step, steps) for step in own}
    first = next(step for step in own if all(step not in behind[id(other)] for other in own))
    later = behind[id(first)]
    if beside := [step for step in own if step is not first and step not in later]:
        raise LoadFailed(
            f"models `{first.model}` and `{beside[0].model}` are decoupled, and neither step reads of the other: which "
            "of their responses belong together, nobody can tell",
            hint="put one behind the other, or ask one of them from a model in Python",
        )
    earlier = [step for step in steps if step is not first and step not in later]
    known = {*inputs, *(tensor for step in earlier for tensor in makes_of(step))}
    wanted = {*outputs, *reads_of(first), *(tensor for step in later for tensor in reads_of(step))}
    after: StreamGraph | Leg | None = None
    if any(step in later for step in own):
        after = _apart(pipeline, later, [*known, *makes_of(first)], outputs, own)
    elif later:
        after = _leg(pipeline, later, outputs)
    return StreamGraph(before=_leg(pipeline, earlier, wanted), step=first, after=after)


def _dependents(step: PipelineStep, steps: list[PipelineStep]) -> list[PipelineStep]:
    """All that read of it, directly or through others."""
    made = set(makes_of(step))
    found: list[PipelineStep] = []
    while more := [one for one in steps if one not in found and made.intersection(reads_of(one))]:
        found += more
        made.update(tensor for one in more for tensor in makes_of(one))
    return [one for one in steps if one in found]


def _leg(pipeline: PipelineGraph, steps: list[PipelineStep], wanted: Iterable[str]) -> Leg | None:
    made = {tensor for step in steps for tensor in makes_of(step)}
    outputs = tuple(sorted(made.intersection(wanted)))
    if not outputs:
        return None
    inputs = tuple(sorted({tensor for step in steps for tensor in reads_of(step)} - made))
    graph = PipelineGraph(
        inputs=inputs, outputs=outputs, step=tuple(steps), max_inflight_requests=pipeline.max_inflight_requests
    )
    return Leg(graph=Graph(graph), inputs=inputs, outputs=outputs)
