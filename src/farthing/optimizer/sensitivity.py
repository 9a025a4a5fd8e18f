"""Which layers does int8 hurt most?

A network is cut into parts of neighbouring layers; each part is quantised alone, and how far the outputs move then is
what that part does to them. The worst parts stay in float first. Layers are taken together because they are many and
each trial runs the network; the first and the last layer are parts of their own, for they are often the ones that hurt
(Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 5). Pure.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Final

import numpy as np

from farthing.types.tensors import Tensor

PARTS: Final = 8
"""Parts of a network; a trial of one takes a calibration, some seconds."""

STEPS: Final = (1, 2, 4)
"""How many of the worst parts are left in float, in turn, until the rest is right."""

LAYERS_MIN: Final = 4
"""Fewer layers than this leave nothing to choose."""


def parts_of(layers: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The layers in their order, each given as its nodes, cut into `PARTS` or fewer; the first and the last alone."""
    if len(layers) < LAYERS_MIN:
        return [tuple(chain.from_iterable(layers))] if layers else []
    inner = layers[1:-1]
    count = min(PARTS - 2, len(inner))
    cuts = [round(i * len(inner) / count) for i in range(count + 1)]
    middle = [tuple(chain.from_iterable(inner[a:b])) for a, b in pairwise(cuts) if a < b]
    return [layers[0], *middle, layers[-1]]


def damage(original: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Noise over signal of the outputs, the worst of them: mean square moved in parts of the variance."""
    worst = 0.0
    for name, was in original.items():
        if not np.issubdtype(was.dtype, np.floating):
            continue
        before, after = was.astype(np.float64), other[name].astype(np.float64)
        noise, signal = float(((before - after) ** 2).mean()), float(before.var())
        if not np.isfinite(noise):
            return float("inf")
        worst = max(worst, noise / signal if signal else noise)
    return worst


def worst_first(damages: Sequence[float]) -> list[int]:
    """Parts by what they do, the worst first."""
    return sorted(range(len(damages)), key=lambda part: -damages[part])
