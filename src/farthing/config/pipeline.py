"""A pipeline's description: which models it is made of and which tensors pass between them.

The values of a `pipeline.toml`, of a graph built in Python (`config.pipeline_builder`) and of an ensemble's
configuration are one and the same here. Pure: what can be seen without the models is checked; whether they are there
and fit is seen by `runtime.graph` when they are.
"""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Final

import msgspec

from farthing.config.model import EnsembleScheduling, EnsembleStep
from farthing.config.model.spelling import meant
from farthing.types.errors import LoadFailed

ITEMS_MAX: Final = 1024
"""Items one request may fan out into where nobody says: a page of text has some hundred lines, and each item is a
request that waits in its model's queue."""

ITEMS_INFLIGHT: Final = 64
"""Of these, so many are under way at once where nobody says: twice the largest batches that pay, so a batch fills while
one runs, and a page of a thousand lines leaves room in the queue for others."""

STEPS_MAX: Final = 256
"""Steps of one pipeline; a mistake that makes them in a loop ends here."""

HINT: Final = "docs/reference/pipelines.md lists what may be written"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Ragged = Annotated[tuple[Name, ...], msgspec.Meta(min_length=2, max_length=2)]
"""Items of different shapes: the tensor of all their values, one item after the other, and that of their shapes."""
Whole = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class PipelineStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model: its tensors, and the pipeline's tensors that they are."""

    model: Name
    version: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0: the latest."""
    namespace: str = ""
    """The repository that has it, where several have one of that name; empty: the pipeline's own before others."""
    inputs: Mapping[Name, Name] = {}
    """Read whole; a step with `each` gives them to every item."""
    each: Mapping[Name, Name | Ragged] = {}
    """Read item by item: the step runs once for every row of a tensor, or for every item of a ragged pair."""
    outputs: Mapping[Name, Name | Ragged] = {}
    items_max: Whole = ITEMS_MAX
    """Items of one request; one with more is refused."""


class PipelineGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pipeline: its inputs and outputs by name, and its steps in any order."""

    name: str = ""
    """What it is served as; empty: as its folder is called."""
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    step: tuple[PipelineStep, ...]
    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    """Rows of a request; None: as many as each model takes, and 0 (shapes as they are) where a step has `each`."""
    max_inflight_requests: Whole = ITEMS_INFLIGHT
    """Items of one request that are under way in one step at once."""
    requests_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Requests under way in the pipeline at once; 0: as many as may wait for a model."""


def parse_pipeline(values: Any, *, source: str) -> PipelineGraph:
    """The description in plain values, as TOML or JSON gave it.

    Raises `LoadFailed` that names `source`, and the path of the field (`$.step[1].inputs`) or the step and tensor.
    """
    try:
        graph = msgspec.convert(_without_misspelt(values), PipelineGraph)
    except (msgspec.ValidationError, LoadFailed) as error:
        raise LoadFailed(f"{source}: {error}", hint=HINT) from None
    for fault in graph_faults(graph):
        raise LoadFailed(f"{source}: {fault}", hint=HINT)
    return graph


def _without_misspelt(values: Any) -> Any:
    """The values, if every field is known; else `LoadFailed` with the name that was meant."""
    blocks: list[tuple[Any, type[msgspec.Struct], str]] = [(values, PipelineGraph, "$")]
    if isinstance(values, Mapping) and isinstance(steps := values.get("step"), list | tuple):
        blocks += [(step, PipelineStep, f"$.step[{place}]") for place, step in enumerate(steps)]
    for block, kind, path in blocks:
        known = [field.encode_name for field in msgspec.structs.fields(kind)]
        if isinstance(block, Mapping) and (wrong := [str(key) for key in block if key not in known]):
            raise LoadFailed(f"unknown field `{wrong[0][:100]}`; {meant(wrong[0], known)} - at `{path}`")
    return values


def names_of(tensor: str | tuple[str, ...]) -> tuple[str, ...]:
    """The tensors that one entry of a step's maps stands for: one, or a ragged pair."""
    return (tensor,) if isinstance(tensor, str) else tensor


def reads_of(step: PipelineStep) -> Iterator[str]:
    """The pipeline's tensors that a step reads."""
    yield from step.inputs.values()
    for tensor in step.each.values():
        yield from names_of(tensor)


def makes_of(step: PipelineStep) -> Iterator[str]:
    """The pipeline's tensors that a step makes."""
    for tensor in step.outputs.values():
        yield from names_of(tensor)


def graph_faults(graph: PipelineGraph) -> Iterator[str]:
    """What makes no sense whatever the models are."""
    if not graph.step or len(graph.step) > STEPS_MAX:
        yield f"it has {len(graph.step)} steps; allowed: 1 to {STEPS_MAX}"
    for kind, names in (("input", graph.inputs), ("output", graph.outputs)):
        if not names:
            yield f"it has no {kind}s"
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            yield f"{kind} `{twice[0]}` is listed twice"
    makers: dict[str, int | None] = dict.fromkeys(graph.inputs)
    for place, step in enumerate(graph.step):
        for tensor in makes_of(step):
            if tensor in makers:
                maker = makers[tensor]
                other = "is an input" if maker is None else f"step {_told(graph, maker)} makes already"
                yield f"step {_told(graph, place)} makes `{tensor}`, which {other}"
            makers[tensor] = place
    for place, step in enumerate(graph.step):
        yield from _step_faults(graph, place, step, makers)
    for output in graph.outputs:
        if output not in makers:
            yield f"output `{output}` is made by no step; {meant(output, list(makers))}"
        elif makers[output] is None:
            yield f"output `{output}` is an input"
    read = {tensor for step in graph.step for tensor in reads_of(step)}
    if unread := [name for name in graph.inputs if name not in read]:
        yield f"input `{unread[0]}` is read by no step"
    needs = {
        place: {maker for tensor in reads_of(step) if (maker := makers.get(tensor)) is not None}
        for place, step in enumerate(graph.step)
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        yield f"steps wait for each other: {' -> '.join(_told(graph, place) for place in error.args[1])}"


def _step_faults(
    graph: PipelineGraph, place: int, step: PipelineStep, makers: Mapping[str, int | None]
) -> Iterator[str]:
    where = f"step {_told(graph, place)}"
    if both := [name for name in step.inputs if name in step.each]:
        yield f"{where}: `{both[0]}` stands in `inputs` and in `each`; allowed: one of them"
    if not step.inputs and not step.each:
        yield f"{where} reads nothing; give it `inputs` or `each`"
    if not step.outputs:
        yield f"{where} makes nothing; give it `outputs`"
    for tensor in reads_of(step):
        if tensor not in makers:
            yield f"{where} reads `{tensor}`, which is no input and no step makes; {meant(tensor, list(makers))}"
    for name, made in step.outputs.items():
        if not isinstance(made, str) and not step.each:
            yield f"{where}: output `{name}` is a pair, values and shapes, which only a step with `each` makes"


def _told(graph: PipelineGraph, place: int) -> str:
    return f"{place} (`{graph.step[place].model}`)"


def pipeline_of(scheduling: EnsembleScheduling, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> PipelineGraph:
    """An ensemble's configuration, which was checked as such, in the same words."""
    return PipelineGraph(
        inputs=inputs,
        outputs=outputs,
        step=tuple(
            PipelineStep(
                model=step.model_name,
                version=max(0, step.model_version),
                namespace=step.model_namespace,
                inputs=step.input_map,
                outputs=step.output_map,
            )
            for step in scheduling.step
        ),
        max_inflight_requests=scheduling.max_inflight_requests or ITEMS_INFLIGHT,
    )


def scheduling_of(graph: PipelineGraph) -> EnsembleScheduling:
    """What Triton's clients see of a pipeline as `ensemble_scheduling`, which has no words for items.

    A ragged pair is shown as the tensor of its values.
    """
    return EnsembleScheduling(
        step=tuple(
            EnsembleStep(
                model_name=step.model,
                model_version=step.version or -1,
                model_namespace=step.namespace,
                input_map={name: names_of(tensor)[0] for name, tensor in (*step.inputs.items(), *step.each.items())},
                output_map={name: names_of(tensor)[0] for name, tensor in step.outputs.items()},
            )
            for step in graph.step
        ),
        max_inflight_requests=graph.max_inflight_requests,
    )
