"""A pipeline built in Python: what `pipeline.py` imports from `farthing`.

    from farthing import Pipeline, each

    pipeline = Pipeline()
    page = pipeline.input("page")
    cut = pipeline.step("cut", page=page)
    read = pipeline.step("read", line=each(cut["lines"]))
    pipeline.output("text", read["text"])

It only writes down which models and tensors there are: the same values as in a `pipeline.toml`. The file is run in a
process of its own (`repository.pipeline_run`), and these values are all that leaves it.
"""

from collections.abc import Iterator, Mapping
from typing import Any


class TensorRef:
    """A tensor of a pipeline: an input, or an output of a step."""

    __slots__ = ("_name", "_output", "_owner")

    def __init__(self, owner: "Pipeline", name: str, output: str = "") -> None:
        self._owner = owner
        self._name = name
        self._output = output


class Each:
    """Items to run a step for, one after the other; made by `each`."""

    __slots__ = ("tensors",)

    def __init__(self, *tensors: TensorRef) -> None:
        self.tensors = tensors


def each(values: "TensorRef | Ragged", shapes: TensorRef | None = None) -> Each:
    """Has a step run once for every row of a tensor, or for every item of a ragged pair.

    `values` [elements] holds all items' elements one after the other, `shapes` INT64 [items, dimensions] their shapes.
    """
    if isinstance(values, Ragged):
        return Each(values.values, values.shapes)
    return Each(values) if shapes is None else Each(values, shapes)


class Ragged:
    """Items of different shapes that a step with `each` made."""

    __slots__ = ("shapes", "values")

    def __init__(self, values: TensorRef, shapes: TensorRef) -> None:
        self.values = values
        self.shapes = shapes


class Outputs:
    """A step's outputs, by the names its model gives them: `step["y"]`; `step.ragged("y")` for items of any shapes."""

    def __init__(self, owner: "Pipeline", place: int) -> None:
        self._owner = owner
        self._place = place
        self._made: dict[str, tuple[TensorRef, ...]] = {}

    def __getitem__(self, name: str) -> TensorRef:
        """One tensor; of a step with `each`, all items' rows together."""
        return self._refs(name, ("",))[0]

    def ragged(self, name: str) -> Ragged:
        """Items as they come, whatever their shapes: for `each` of another step, or read as `values` and `shapes`."""
        return Ragged(*self._refs(name, (".values", ".shapes")))

    def _refs(self, name: str, endings: tuple[str, ...]) -> tuple[TensorRef, ...]:
        made = self._made.get(name)
        if made is None:
            refs = tuple(TensorRef(self._owner, f"{self._place}.{name}{ending}", name) for ending in endings)
            made = self._made[name] = refs
        if len(made) != len(endings):
            raise ValueError(f"output `{name}` of step {self._place} is taken both as one tensor and as ragged items")
        return made

    def written(self, names: Mapping[str, str]) -> dict[str, Any]:
        """As `outputs` of a step; `names` are those that the pipeline's own outputs get."""
        made = {name: [names.get(ref._name, ref._name) for ref in refs] for name, refs in self._made.items()}
        return {name: refs[0] if len(refs) == 1 else refs for name, refs in made.items()}


class Pipeline:
    """A graph of models. A `pipeline.py` has exactly one, under any name."""

    def __init__(
        self,
        name: str = "",
        *,
        max_batch_size: int | None = None,
        max_inflight_requests: int | None = None,
        requests_max: int | None = None,
    ) -> None:
        """Without a name, it is served as its folder is called. The limits are those of `pipeline.toml`."""
        limits = {
            "max_batch_size": max_batch_size,
            "max_inflight_requests": max_inflight_requests,
            "requests_max": requests_max,
        }
        self._head = {"name": name} | {key: value for key, value in limits.items() if value is not None}
        self._inputs: list[str] = []
        self._steps: list[tuple[dict[str, Any], Outputs]] = []
        self._outputs: dict[str, str] = {}

    def input(self, name: str) -> TensorRef:
        """A tensor that clients send. Datatype and shape are those of the steps that read it."""
        self._inputs.append(name)
        return TensorRef(self, name)

    def step(
        self,
        model: str,
        inputs: "Mapping[str, TensorRef | Each] | None" = None,
        /,
        *,
        version: int = 0,
        namespace: str = "",
        items_max: int | None = None,
        **more: "TensorRef | Each",
    ) -> Outputs:
        """A model fed with tensors, by the names its inputs have; names that are no Python names go into a dict.

        `namespace` is the repository that is meant, where several have the model; empty: the pipeline's own first.
        """
        given = {**(inputs or {}), **more}
        whole: dict[str, str] = {}
        items: dict[str, str | list[str]] = {}
        for name, tensor in given.items():
            if isinstance(tensor, Each):
                refs = [self._own(ref, name) for ref in tensor.tensors]
                items[name] = refs[0] if len(refs) == 1 else refs
            else:
                whole[name] = self._own(tensor, name)
        written: dict[str, Any] = {"model": model, "version": version, "namespace": namespace}
        written |= {"inputs": whole, "each": items}
        if items_max is not None:
            written["items_max"] = items_max
        outputs = Outputs(self, len(self._steps))
        self._steps.append((written, outputs))
        return outputs

    def output(self, name: str, tensor: TensorRef) -> None:
        """A tensor that clients get, under that name."""
        own = self._own(tensor, name)
        if own in self._outputs.values():
            raise ValueError(f"output `{name}` is the same tensor as another output")
        if not tensor._output:
            raise ValueError(f"output `{name}` is an input of the pipeline")
        self._outputs[name] = own

    def _own(self, tensor: object, name: str) -> str:
        if not isinstance(tensor, TensorRef):
            raise TypeError(f'`{name}` is a {type(tensor).__name__}; expected a tensor: step["name"], or an input')
        if tensor._owner is not self:
            raise ValueError(f"`{name}` is a tensor of another pipeline")
        return tensor._name

    def written(self) -> dict[str, Any]:
        """The graph as plain values, as `pipeline.toml` has them."""
        names = {tensor: name for name, tensor in self._outputs.items()}

        def renamed(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
            for name, tensor in tensors.items():
                yield name, names.get(tensor, tensor) if isinstance(tensor, str) else [names.get(t, t) for t in tensor]

        steps = [
            {
                **written,
                "inputs": dict(renamed(written["inputs"])),
                "each": dict(renamed(written["each"])),
                "outputs": outputs.written(names),
            }
            for written, outputs in self._steps
        ]
        return {**self._head, "inputs": self._inputs, "outputs": list(self._outputs), "step": steps}
