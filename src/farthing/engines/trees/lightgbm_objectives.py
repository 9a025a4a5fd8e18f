"""What LightGBM does to a row's sums, by the objective its model files name (`binary sigmoid:1`)."""

from typing import Final

from farthing.engines.trees.forest import BadModel
from farthing.engines.trees.links import Link, LinkKind

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
