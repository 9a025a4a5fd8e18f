"""A Python model as Farthing likes it: a class that says what it takes and gives, with `infer`.

    from farthing import Tensor

    class Sum:
        inputs = [Tensor("x", "FP32", [-1, 4])]
        outputs = [Tensor("sum", "FP32", [-1, 1])]
        max_batch_size = 64

        def infer(self, inputs):
            return {"sum": inputs["x"].sum(axis=1, keepdims=True)}

`Tensor`, `Context` and `Request` are what such a file may import from `farthing`; the rest turns an instance of the
class into the worker's `UserModel`. Triton's interface is in `triton`.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import msgspec

from farthing.engines.python import coroutines
from farthing.engines.python.interface import MemberResult, ModelMistake, as_tensor, rows_of
from farthing.engines.python.messages import Ready, Run, Start
from farthing.engines.python.models import Models
from farthing.engines.python.subrequest_client import SubrequestClient
from farthing.types.requests import Parameter
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec
from farthing.types.tensors import Tensor as Array

PREFERRED_CLASS_NAME: Final = "Model"
"""Taken when a file has several classes with `infer`."""


class Tensor(msgspec.Struct, frozen=True):
    """Declares one input or output: name, datatype (`FP32`, `BYTES`, …) and shape, -1 for any size.

    The shape is written in full: where requests may share a batch, its first dimension is -1, the rows.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    optional: bool = False
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.datatype not in NUMPY_DTYPES:
            raise ValueError(f"`{self.name}`: no datatype is {self.datatype!r}; allowed: {', '.join(NUMPY_DTYPES)}")
        if any(isinstance(d, bool) or not isinstance(d, int) or d < -1 for d in self.shape):
            raise ValueError(f"`{self.name}`: shape {list(self.shape)}; allowed: whole numbers, -1 for any size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What `load(self, context)` may know: which model this is, and what its configuration says."""

    name: str
    version: int
    folder: Path
    """The model's folder; its files may be read from here."""
    file: Path
    instance: int
    """Which of the model's processes this is, from 0."""
    parameters: Mapping[str, str]
    models: Models
    """The server's other models, for this one to ask."""


@dataclass(slots=True)
class Request:
    """One request of a batch, for `infer(self, inputs, requests)`."""

    rows: int
    """How many rows of the batch are its own, in order."""
    id: str
    parameters: Mapping[str, Parameter]
    response_parameters: dict[str, Parameter] = field(default_factory=dict)
    """Fill in what its client should be told beside the outputs."""
    rejection: str = ""
    is_rescheduled: bool = False
    place: int = 0
    """Its place in the batch, from 0."""

    def reject(self, reason: str) -> None:
        """Answers this request alone with "invalid input" and the reason; its rows of the outputs are ignored."""
        self.rejection = reason or "the model gave no reason"

    def again(self) -> None:
        """Has this request run again, in a later batch, instead of answering it now (`iterative_sequence`).

        Of its rows of the outputs only states count.
        """
        self.is_rescheduled = True


class StreamRequest:
    """The one request that a streaming `infer(self, inputs, request)` answers."""

    def __init__(self, request_id: str, parameters: Mapping[str, Parameter], hearer: "Hearer") -> None:
        self.id = request_id
        self.parameters = parameters
        self.response_parameters: dict[str, Parameter] = {}
        """Fill in what its client should be told beside the next outputs."""
        self._hearer = hearer

    @property
    def stream(self) -> int:
        """Its number among those that are being answered."""
        return self._hearer.number

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has left; a generator is closed at its next `yield` then."""
        return self._hearer.is_cancelled

    def take_parameters(self) -> dict[str, Parameter]:
        """Those for the answer that is given now."""
        taken, self.response_parameters = self.response_parameters, {}
        return taken


class Hearer(Protocol):
    """Whoever a request's answers are for."""

    number: int
    is_cancelled: bool


class NativeModel:
    """An instance of a user's class, loaded."""

    def __init__(self, model_class: type[Any], start: Start, client: SubrequestClient) -> None:
        self.ready = _declared(model_class, start)
        self._model = model_class()
        if callable(load := getattr(self._model, "load", None)):
            context = Context(
                name=start.name,
                version=start.version,
                folder=Path(start.folder),
                file=Path(start.path),
                instance=start.instance,
                parameters=start.parameters,
                models=Models(client),
            )
            load(context) if _takes(load, 1) else load()
        self._infer: Callable[..., Any] = self._model.infer
        self._wants_requests = _takes(self._infer, 2)
        self.infer = self._infer if self._wants_requests else lambda inputs, _: self._infer(inputs)
        """Called with one request's inputs and its `StreamRequest`, where the model streams."""

    def run(self, inputs: dict[str, Array], run: Run) -> Mapping[str, Array] | Sequence[MemberResult]:
        if not self._wants_requests:
            return self._outputs(self._infer(inputs), run)
        requests = [
            Request(member.rows, member.id, member.parameters, place=place) for place, member in enumerate(run.members)
        ]
        outputs = self._outputs(self._infer(inputs, requests), run)
        if not any(r.rejection or r.response_parameters or r.is_rescheduled for r in requests):
            return outputs
        rows = [request.rows for request in requests]
        return [
            MemberResult(error_kind="InvalidInput", error=request.rejection)
            if request.rejection
            else MemberResult(own, request.response_parameters, is_rescheduled=request.is_rescheduled)
            for request, own in zip(requests, rows_of(outputs, rows), strict=True)
        ]

    def _outputs(self, answer: object, run: Run) -> dict[str, Array]:
        if inspect.isawaitable(answer):
            answer = coroutines.run(answer)
        if not isinstance(answer, Mapping):
            raise ModelMistake(
                f"infer returned a {type(answer).__name__}; expected a dict of arrays with {', '.join(run.outputs)}"
            )
        return {name: as_tensor(name, answer[name]) for name in run.outputs if name in answer}

    def close(self) -> None:
        if callable(unload := getattr(self._model, "unload", None)):
            unload()


def find_class(module: ModuleType) -> type[Any]:
    """The one class with `infer` that this module defines itself. Raises `ModelMistake`."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and callable(getattr(value, "infer", None))
        and not inspect.isabstract(value)
    ]
    named = [value for value in found if value.__name__ == PREFERRED_CLASS_NAME]
    if len(found) == 1 or len(named) == 1:
        return (named or found)[0]
    if not found:
        raise ModelMistake("no class with a method `infer`, and no `TritonPythonModel`")
    names = ", ".join(value.__name__ for value in found)
    raise ModelMistake(f"several classes with `infer`: {names}; name the one to serve `{PREFERRED_CLASS_NAME}`")


def _declared(model_class: type[Any], start: Start) -> Ready:
    inputs = _specs(model_class, "inputs") or start.inputs
    outputs = _specs(model_class, "outputs") or start.outputs
    for what, specs in (("inputs", inputs), ("outputs", outputs)):
        if not specs:
            raise ModelMistake(f'{model_class.__name__} declares no {what}: {what} = [Tensor("x", "FP32", [-1, 4])]')
    rows_max = getattr(model_class, "max_batch_size", None)
    if rows_max is not None and (isinstance(rows_max, bool) or not isinstance(rows_max, int) or rows_max < 0):
        raise ModelMistake(f"max_batch_size is {rows_max!r}; allowed: a whole number, 0 for no batching")
    batches = getattr(model_class, "batch", None if rows_max is None else rows_max > 0)
    if batches is not None and not isinstance(batches, bool):
        raise ModelMistake(f"batch is {batches!r}; allowed: True, False")
    if batches and (fixed := [s for s in (*inputs, *outputs) if not s.shape or s.shape[0] != -1]):
        raise ModelMistake(
            f"{model_class.__name__} batches, so every shape begins with -1; "
            f"`{fixed[0].name}` is {list(fixed[0].shape)}"
        )
    is_decoupled = _is_decoupled(model_class, start)
    return Ready(
        inputs=inputs,
        outputs=outputs,
        batch_axis=batches,
        batch_rows_max=0 if batches is False else rows_max,
        is_decoupled=is_decoupled,
        returns_at_once=is_decoupled,
    )


def _is_decoupled(model_class: type[Any], start: Start) -> bool:
    """Whether it streams: it says so, its configuration does, or `infer` has a `yield` in it."""
    said = getattr(model_class, "decoupled", None)
    if said is not None and not isinstance(said, bool):
        raise ModelMistake(f"decoupled is {said!r}; allowed: True, False")
    yields = inspect.isgeneratorfunction(model_class.infer) or inspect.isasyncgenfunction(model_class.infer)
    if said is False and yields:
        raise ModelMistake(f"{model_class.__name__}.infer yields, so it answers more than once, but decoupled is False")
    policy = (json.loads(start.config) or {}).get("model_transaction_policy") or {}
    return bool(said or yields or policy.get("decoupled"))


def _specs(model_class: type[Any], attribute: str) -> tuple[TensorSpec, ...]:
    declared = getattr(model_class, attribute, ())
    if not isinstance(declared, Sequence) or not all(isinstance(entry, Tensor) for entry in declared):
        raise ModelMistake(f"{model_class.__name__}.{attribute} is no list of farthing.Tensor")
    names = [entry.name for entry in declared]
    if len(set(names)) != len(names):
        raise ModelMistake(f"{model_class.__name__}.{attribute} names a tensor twice: {', '.join(names)}")
    return tuple(
        TensorSpec(
            name=entry.name,
            datatype=entry.datatype,
            shape=tuple(entry.shape),
            is_optional=entry.optional,
            labels=tuple(entry.labels),
        )
        for entry in declared
    )


def _takes(method: Callable[..., Any], count: int) -> bool:
    """Whether a bound method can be given that many positional arguments."""
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError:
        return False
    return True
