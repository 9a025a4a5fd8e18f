"""What a task is, and what it asks of a server."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from numpy.typing import ArrayLike

from farthing.client.chat import Message, Piece
from farthing.types.tensors import Tensor


class Infers(Protocol):
    """Anything that runs models by name and lets them talk: a client, or an engine in this process."""

    def infer(
        self, model: str, inputs: Mapping[str, ArrayLike], outputs: Sequence[str] | None = None
    ) -> Mapping[str, Tensor]: ...

    def chat(self, model: str, messages: Sequence[Message], **fields: Any) -> Iterator[Piece]: ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, in words, beside the one expected."""

    input: str
    answer: str
    expected: str
    is_right: bool


class Task(Protocol):
    """A job for a sample model. Making one reads its inputs; nothing after that touches the disk."""

    sample: str
    """The sample model it is for."""
    question: str
    """What the models are asked, in words."""

    def check(self, server: Infers) -> list[Finding]:
        """Every answer, with what it should have been."""

    def ask(self, server: Infers) -> None:
        """One typical piece of work, for timing. Called from several threads at once."""


def softmax(logits: Tensor) -> Tensor:
    """Probabilities along the last axis."""
    import numpy as np

    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def is_near(value: float, expected: float, within: float) -> bool:
    """Whether two figures agree: decoders and runtimes differ in the last digits, wrong answers in the first."""
    return abs(value - expected) <= within
