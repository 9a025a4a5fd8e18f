"""What a worker asks of a user's model, whichever of the two ways it was written in.

`native` and `triton` make one of these out of a user's class; `worker` drives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from farthing.engines.python.messages import Ready, Run
from farthing.types.requests import Parameter
from farthing.types.tensors import DATATYPES, NUMPY_DTYPES, Tensor


@dataclass(slots=True)
class MemberResult:
    """One request's outputs, or its error (`error_kind` is a name in `messages.ERRORS`)."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    error_kind: str = ""
    error: str = ""
    is_rescheduled: bool = False
    """It is to run again; `outputs` are states, if anything."""


class UserModel(Protocol):
    """A loaded model of a user."""

    @property
    def ready(self) -> Ready:
        """What it takes and gives."""

    def run(self, inputs: dict[str, Tensor], run: Run) -> Mapping[str, Tensor] | Sequence[MemberResult]:
        """The outputs of a batch, whole or member by member. Raises whatever the user's code raises."""

    def close(self) -> None:
        """Tells the user's code that it is over."""


class ModelMistake(Exception):
    """The user's class is not one: the message says what it lacks."""


def as_tensor(name: str, value: object) -> Tensor:
    """What a model returned, as a tensor that can be sent: lists and numbers too, text as BYTES.

    Raises `ModelMistake` for what has no datatype.
    """
    try:
        tensor: Tensor = np.asarray(value)
    except Exception as problem:
        raise ModelMistake(f"output `{name}` is a {type(value).__name__}, no array: {problem}") from problem
    if tensor.dtype.kind in "US":
        tensor = tensor.astype(object)
    if tensor.dtype not in DATATYPES:
        raise ModelMistake(f"output `{name}` has dtype {tensor.dtype}; known: {', '.join(NUMPY_DTYPES)}")
    if tensor.dtype.kind == "O" and (
        wrong := next((e for e in tensor.ravel().tolist() if not isinstance(e, bytes | str)), None)
    ):
        raise ModelMistake(f"output `{name}` holds a {type(wrong).__name__}; allowed in BYTES: bytes, str")
    return tensor


def rows_of(inputs: Mapping[str, Tensor], rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """Each member's own rows of a batch, as views. A lone member has everything, whatever its first dimension."""
    if len(rows) == 1:
        return [dict(inputs)]
    members: list[dict[str, Tensor]] = []
    start = 0
    for count in rows:
        members.append({name: tensor[start : start + count] for name, tensor in inputs.items()})
        start += count
    return members


def short_text(value: Any, characters_max: int = 4000) -> str:
    """An exception's text, bounded: it goes into messages and answers."""
    text = str(value)
    return text if len(text) <= characters_max else f"{text[:characters_max]} … ({len(text)} characters)"
