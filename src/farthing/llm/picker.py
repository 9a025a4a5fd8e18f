"""Tokens for all rows of a step at once, by the fastest way that gives what `sampler` gives.

Rows that take the likeliest token as it stands are one argmax; the native core draws the others, and numpy does where
that was not built.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import isfinite
from types import ModuleType
from typing import Final, NamedTuple

import numpy as np

from farthing.llm import sampler
from farthing.llm.sampler import Likelihood, Sampling, pick

native: ModuleType | None = None
try:
    from farthing import _native

    native = _native
except ImportError:  # not built for this machine
    pass

FEW: Final = 4
"""So few draws cost less one by one than arrays made for them."""

HALF_MIN: Final = 4
"""So many draws take some 0.2 to 0.5 ms, and handing work to another thread 0.05."""


class Draw(NamedTuple):
    """A token to be picked."""

    row: int
    """Of the step's logits."""
    sampling: Sampling
    position: int
    """Of the new token in the whole sequence."""
    banned: Sequence[int]
    """Tokens that may not come yet."""
    mask: np.ndarray | None = None
    """A bit for each token, lowest first: only those set may come. The sampling `is_constrained`."""


class Picked(NamedTuple):
    """One token a draw; `are_finite` is False where the model's logits are no numbers."""

    tokens: list[int]
    are_finite: list[bool] | None
    """None: all."""


class Likeliest(NamedTuple):
    """The likeliest token of each row, found by the runner, and its logit."""

    tokens: list[int]
    logits: list[float]

    def pick(self, draws: Sequence[Draw]) -> Picked:
        """The tokens of draws that take the likeliest as it stands."""
        are_finite = [isfinite(self.logits[draw.row]) for draw in draws]
        return Picked([self.tokens[draw.row] for draw in draws], None if all(are_finite) else are_finite)


def pick_all(logits: np.ndarray, draws: Sequence[Draw]) -> Picked:
    """The tokens of all draws. Penalties must not depend on one another: at most one draw of each that has them."""
    rows = [draw.row for draw in draws]
    is_plain = all(draw.sampling.is_plain and not draw.banned for draw in draws)
    if is_plain and len(draws) > FEW:
        likeliest = logits.argmax(axis=1)
        tokens = (likeliest if rows == list(range(len(logits))) else likeliest[rows]).tolist()
    elif is_plain or native is None:
        tokens = [pick(logits[row], sampling, at, banned, mask) for row, sampling, at, banned, mask in draws]
    else:
        tokens = _sample(native, logits, draws)
    if len(draws) <= FEW:
        finite = [isfinite(logits[row, token]) for row, token in zip(rows, tokens, strict=True)]
        return Picked(tokens, None if all(finite) else finite)
    are_finite = np.isfinite(logits[rows, tokens])
    return Picked(tokens, None if are_finite.all() else are_finite.tolist())


def _sample(core: ModuleType, logits: np.ndarray, draws: Sequence[Draw]) -> list[int]:
    """The native draws, on two cores where that pays: the runner's threads have nothing to do meanwhile."""
    half = len(draws) // 2
    if half < HALF_MIN:
        return list(core.sample(logits, draws))
    first = _helper().submit(core.sample, logits, draws[:half])
    second = core.sample(logits, draws[half:])
    return [*first.result(), *second]


@cache
def _helper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="picker")


def likelihoods(logits: np.ndarray, rows: Sequence[int], tokens: Sequence[int], top: int) -> list[Likelihood]:
    """For each of these rows: what the model thought of its token, and of the `top` likeliest."""
    if native is not None:
        return [Likelihood(*one) for one in native.likelihoods(logits, rows, tokens, top)]
    return sampler.likelihoods(logits[list(rows)], tokens, top)
