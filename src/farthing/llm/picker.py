"""Tokens for all rows of a step at once, by the fastest way that gives what `sampler` gives.

Rows that take the likeliest token as it stands are one argmax.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Final, NamedTuple

import numpy as np

from farthing.llm.sampler import Likelihood, Sampling, likelihoods, pick

FEW: Final = 4
"""So few draws cost less one by one than arrays made for them."""


class Draw(NamedTuple):
    """A token to be picked."""

    row: int
    """Of the step's logits."""
    sampling: Sampling
    position: int
    """Of the new token in the whole sequence."""
    banned: Sequence[int]
    """Tokens that may not come yet."""


class Picked(NamedTuple):
    """One token a draw; `are_finite` is False where the model's logits are no numbers."""

    tokens: list[int]
    are_finite: list[bool] | None
    """None: all."""


def pick_all(logits: np.ndarray, draws: Sequence[Draw]) -> Picked:
    """The tokens of all draws. Penalties must not depend on one another: at most one draw of each that has them."""
    if len(draws) <= FEW:
        tokens = [pick(logits[row], sampling, at, banned) for row, sampling, at, banned in draws]
        finite = [isfinite(logits[draw.row, token]) for draw, token in zip(draws, tokens, strict=True)]
        return Picked(tokens, None if all(finite) else finite)
    rows = [draw.row for draw in draws]
    if all(draw.sampling.is_plain and not draw.banned for draw in draws):
        likeliest = logits.argmax(axis=1)
        picked = likeliest if rows == list(range(len(logits))) else likeliest[rows]
    else:
        picked = np.array([pick(logits[row], sampling, at, banned) for row, sampling, at, banned in draws])
    are_finite = np.isfinite(logits[rows, picked])
    return Picked(picked.tolist(), None if are_finite.all() else are_finite.tolist())


def likelihood(logits: np.ndarray, draw: Draw, token: int) -> Likelihood | None:
    """What the model thought of the token, if its request asks."""
    wanted = draw.sampling.logprobs
    return None if wanted is None else likelihoods(logits[draw.row : draw.row + 1], (token,), wanted)[0]
