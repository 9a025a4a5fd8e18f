"""What both LightGBM formats mean by what they write: values near zero, and objectives (`binary sigmoid:1`)."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.engines.trees.forest import ZERO_AT_MOST, BadModel
from farthing.engines.trees.links import Link, LinkKind

VERSIONS: Final = ("v2", "v3", "v4")

_BELOW_ZERO: Final = float(np.nextafter(-ZERO_AT_MOST, -np.inf))


def thresholds_without_zeros(threshold: NDArray[Any]) -> NDArray[Any]:
    """The same decisions for rows whose tiny values were not replaced by zero first, as LightGBM does.

    LightGBM writes a split at zero as a threshold of 1e-35 or -1e-35; between these two any threshold only tells
    whether zero itself goes left, so it may move to the end that gives tiny values the same way.
    """
    is_tiny = np.abs(threshold) <= ZERO_AT_MOST
    return np.where(is_tiny, np.where(threshold >= 0, ZERO_AT_MOST, _BELOW_ZERO), threshold)


_KINDS: Final = {
    "": LinkKind.IDENTITY,  # custom objectives: LightGBM predicts the sums
    "custom": LinkKind.IDENTITY,
    "none": LinkKind.IDENTITY,
    "regression": LinkKind.IDENTITY,
    "regression_l1": LinkKind.IDENTITY,
    "huber": LinkKind.IDENTITY,
    "fair": LinkKind.IDENTITY,
    "quantile": LinkKind.IDENTITY,
    "mape": LinkKind.IDENTITY,
    "lambdarank": LinkKind.IDENTITY,
    "rank_xendcg": LinkKind.IDENTITY,
    "poisson": LinkKind.EXP,
    "gamma": LinkKind.EXP,
    "tweedie": LinkKind.EXP,
    "binary": LinkKind.SIGMOID,
    "multiclassova": LinkKind.SIGMOID,
    "cross_entropy": LinkKind.SIGMOID,
    "multiclass": LinkKind.SOFTMAX,
    "cross_entropy_lambda": LinkKind.LOG1P_EXP,
}


def link_of(objective: str, divisor: int) -> Link:
    """The link of an objective line; an unknown one is refused later, unless raw sums are asked for."""
    name, *settings = objective.split() or [""]
    if name not in _KINDS:
        return Link(divisor=divisor, refused=name[:60])
    if "sqrt" in settings:
        return Link(kind=LinkKind.SIGNED_SQUARE, divisor=divisor)
    scale = 1.0
    for setting in settings:
        key, _, value = setting.partition(":")
        if key == "sigmoid":
            try:
                scale = float(value)
            except ValueError:
                raise BadModel(f"objective: sigmoid `{value[:20]}` is not a number") from None
            if not 0 < scale < float("inf"):
                raise BadModel(f"objective: sigmoid {scale} is not a positive number")
    return Link(kind=_KINDS[name], scale=scale, divisor=divisor)
