"""From the sums of a forest to what its training library predicts: sigmoid, softmax, exp and the like.

Each repeats the library's own steps in the library's own precision. Only the exponential may differ from the C
library's, in the last place. numpy's gives an element the same result in any batch, so rows stay independent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from farthing.types.tensors import Tensor

Transform = Callable[[Tensor], Tensor]
"""Takes (rows, targets) and leaves it as it is; returns (rows, outputs)."""


class LinkKind(Enum):
    """Names by what is done to a row's sums."""

    IDENTITY = "identity"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    SOFTMAX_ARGMAX = "the class of the largest sum"
    EXP = "exp"
    LOG1P_EXP = "log(1 + exp)"
    SIGNED_SQUARE = "signed square"
    POSITIVE = "1 where positive, else 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """`divisor` averages sums (random forests) before anything else; `scale` multiplies a sigmoid's argument."""

    kind: LinkKind = LinkKind.IDENTITY
    scale: float = 1.0
    divisor: int = 1
    refused: str = ""
    """The objective, if its link is unknown here: only raw sums can be served."""


def _exp(sums: Tensor) -> Tensor:
    """The exponential of float32 is taken in float64 and rounded, as the C library's `expf` does."""
    if sums.dtype == np.float64:
        return np.exp(sums)
    result: Tensor = np.exp(sums, dtype=np.float64).astype(np.float32)
    return result


def _exp_of_any_size(sums: Tensor) -> Tensor:
    with np.errstate(over="ignore"):  # infinite is the right answer
        return _exp(sums)


def _sigmoid(scale: float) -> Transform:
    def sigmoid(sums: Tensor) -> Tensor:
        exponents = sums * -scale
        if exponents.dtype == np.float32:
            exponents = np.minimum(exponents, _EXPONENT_MAX)
        return 1.0 / (_exp(exponents) + 1.0)

    return sigmoid


_EXPONENT_MAX: Final = np.float32(88.7)
"""XGBoost's own guard against overflow."""


def _softmax(sums: Tensor) -> Tensor:
    exponentials = _exp(sums - sums.max(axis=1, keepdims=True))
    # One class after the other, in float64: `sum` would add in pairs, and the libraries do not.
    total = np.add.accumulate(exponentials, axis=1, dtype=np.float64)[:, -1:].astype(sums.dtype)
    result: Tensor = exponentials / total
    return result


def _signed_square(sums: Tensor) -> Tensor:
    return np.copysign(np.square(sums), sums)


def _argmax(sums: Tensor) -> Tensor:
    result: Tensor = sums.argmax(axis=1)[:, None].astype(sums.dtype)
    return result


def _positive(sums: Tensor) -> Tensor:
    result: Tensor = (sums > 0).astype(sums.dtype)
    return result


def _log1p_exp(sums: Tensor) -> Tensor:
    return np.log1p(_exp_of_any_size(sums))


def transform_of(link: Link, *, as_classes: bool = False) -> Transform | None:
    """What the library does to the sums before it calls them a prediction; None: nothing.

    `as_classes` wants a probability for each class even where the library predicts only the likeliest.
    """
    if link.kind is LinkKind.SIGMOID:
        return _sigmoid(link.scale)
    if link.kind is LinkKind.SOFTMAX_ARGMAX and as_classes:
        return _softmax
    return _TRANSFORMS[link.kind]


_TRANSFORMS: Final[dict[LinkKind, Transform | None]] = {
    LinkKind.IDENTITY: None,
    LinkKind.SOFTMAX: _softmax,
    LinkKind.SOFTMAX_ARGMAX: _argmax,
    LinkKind.EXP: _exp_of_any_size,
    LinkKind.LOG1P_EXP: _log1p_exp,
    LinkKind.SIGNED_SQUARE: _signed_square,
    LinkKind.POSITIVE: _positive,
}
