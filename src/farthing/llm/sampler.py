"""Which token comes next? Plain numpy: the fallback, and the oracle that the native sampler is held against.

A row of logits is changed in this order: bias (and ids that may not come), repetition penalty, presence and
frequency penalties; then temperature, top_k, top_p, min_p, and a draw by inverse CDF over the tokens in descending
probability, equal ones by lower id. The random number belongs to (seed, choice, position of the new token in the whole
sequence), so a token depends on nothing but its own row. Log-probabilities are of the row as the model gave it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from farthing.llm.philox import uniform
from farthing.types.generation import SamplingParameters

_BORDERS: Final = (-8.0, -20.0, -math.inf)
"""Tokens less likely than the likeliest by these powers of e are left out at first: nearly every draw ends among the
rest, and sorting all 50,000 takes milliseconds."""

_NONE: Final = np.empty(0, np.int64)
_NO_VALUES: Final = np.empty(0, np.float32)


class Likelihood(NamedTuple):
    """What the model thought of a token, and the likeliest ones."""

    logprob: float
    top_ids: Sequence[int]
    top_logprobs: Sequence[float]


class Sampling:
    """How one choice of a request picks its tokens, and what its penalties remember."""

    __slots__ = (
        "bias_ids", "bias_values", "choice", "counts", "frequency_penalty", "has_penalties", "is_greedy", "is_plain",
        "logprobs", "min_p", "presence_penalty", "prompt_ids", "repetition_penalty", "seed", "temperature", "top_k",
        "top_p",
    )  # fmt: skip

    def __init__(
        self,
        parameters: SamplingParameters,
        *,
        seed: int,
        choice: int,
        prompt_ids: Sequence[int],
        is_constrained: bool = False,
    ) -> None:
        """`is_constrained`: each draw comes with a mask of the tokens that may come."""
        self.seed = seed
        self.choice = choice
        self.temperature = parameters.temperature
        self.top_k = parameters.top_k
        self.top_p = parameters.top_p
        self.min_p = parameters.min_p
        self.repetition_penalty = parameters.repetition_penalty
        self.presence_penalty = parameters.presence_penalty
        self.frequency_penalty = parameters.frequency_penalty
        self.logprobs = parameters.logprobs
        bias: Mapping[int, float] = parameters.logit_bias
        self.bias_ids = np.fromiter(bias.keys(), np.int64, len(bias)) if bias else _NONE
        self.bias_values = np.fromiter(bias.values(), np.float32, len(bias)) if bias else _NO_VALUES
        self.is_greedy = parameters.temperature <= 0.0
        self.has_penalties = (
            self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )
        self.is_plain = self.is_greedy and not self.has_penalties and not bias and not is_constrained
        """The likeliest token as it stands."""
        self.prompt_ids = np.unique(np.asarray(prompt_ids, np.int64)) if self.repetition_penalty != 1.0 else _NONE
        self.counts: dict[int, int] = {}
        """Generated so far; kept only for penalties."""

    def saw(self, token: int) -> None:
        """A token was generated."""
        if self.has_penalties:
            self.counts[token] = self.counts.get(token, 0) + 1


def pick(
    row: np.ndarray, sampling: Sampling, position: int, banned: Sequence[int] = (), mask: np.ndarray | None = None
) -> int:
    """The token that comes at `position`, after a row of float32 logits. Only what `mask` has a bit for may come."""
    if sampling.is_plain and not banned:
        return int(row.argmax())
    values = adjusted(row, sampling, banned, mask)
    if sampling.is_greedy:
        return int(values.argmax())
    return draw(values, sampling, uniform(sampling.seed, sampling.choice, position))


def adjusted(
    row: np.ndarray, sampling: Sampling, banned: Sequence[int] = (), mask: np.ndarray | None = None
) -> np.ndarray:
    """A copy of the logits with bias and penalties, float32 at each step."""
    values = row.astype(np.float32, copy=True)
    if len(sampling.bias_ids):
        values[sampling.bias_ids] += sampling.bias_values
    if banned:
        values[list(banned)] = -np.inf
    if mask is not None:
        values[np.unpackbits(mask.view(np.uint8), count=len(values), bitorder="little") == 0] = -np.inf
    if not sampling.has_penalties:
        return values
    counts = sampling.counts
    generated = np.fromiter(counts.keys(), np.int64, len(counts))
    if sampling.repetition_penalty != 1.0:
        seen = np.union1d(sampling.prompt_ids, generated)
        penalty = np.float32(sampling.repetition_penalty)
        some = values[seen]
        values[seen] = np.where(some > 0, some / penalty, some * penalty)
    if len(generated) and (sampling.presence_penalty or sampling.frequency_penalty):
        times = np.fromiter(counts.values(), np.float32, len(counts))
        values[generated] -= np.float32(sampling.presence_penalty)
        values[generated] -= np.float32(sampling.frequency_penalty) * times
    return values


def draw(values: np.ndarray, sampling: Sampling, random: float) -> int:
    """The token at `random` in [0, 1) of the distribution that temperature, top_k, top_p and min_p leave."""
    scaled = values.astype(np.float64)
    scaled -= scaled.max()
    scaled /= sampling.temperature
    weights = np.exp(scaled)
    top_k = sampling.top_k if 0 < sampling.top_k < len(weights) else 0
    whole = 0.0 if top_k else float(weights.sum())
    for border in _BORDERS:
        ids = np.flatnonzero(scaled >= border)
        if len(ids) < top_k:
            continue
        order = ids[np.argsort(-values[ids], kind="stable")]
        if top_k:
            order = order[:top_k]
        ordered = weights[order]
        cumulative = np.cumsum(ordered)
        kept = len(order)
        if sampling.min_p > 0.0:
            kept = max(1, int(np.searchsorted(-ordered, -sampling.min_p, side="right")))
        if sampling.top_p < 1.0:
            nucleus = int(np.searchsorted(cumulative, sampling.top_p * (whole or cumulative[-1]), side="left")) + 1
            kept = min(kept, nucleus)
        is_whole = bool(top_k) or len(order) == len(weights)
        if kept < len(order) or is_whole:
            target = random * cumulative[kept - 1]
        elif sampling.min_p > 0.0 or sampling.top_p < 1.0:
            continue  # who is kept is not known yet
        else:
            target = random * whole
        chosen = int(np.searchsorted(cumulative, target, side="right"))
        if chosen < kept:
            return int(order[chosen])
        if is_whole:
            return int(order[kept - 1])  # rounding
    raise AssertionError("the last border leaves nobody out")


def _descending(values: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest, largest first, equal ones by lower id."""
    if count < len(values):
        border = np.partition(values, len(values) - count)[len(values) - count]
        above = np.flatnonzero(values > border)
        equal = np.flatnonzero(values == border)[: count - len(above)]
        ids = np.sort(np.concatenate((above, equal)))
        return ids[np.argsort(-values[ids], kind="stable")]
    return np.argsort(-values, kind="stable")


def likelihoods(logits: np.ndarray, tokens: Sequence[int], top: int) -> list[Likelihood]:
    """For each row of float32 logits: of its token, and of the `top` likeliest, equal ones by lower id."""
    out = []
    for row, token in zip(logits, tokens, strict=True):
        highest = row.max()
        log_sum = float(highest) + float(np.log(np.exp(row - highest).sum(dtype=np.float64)))
        ids = _descending(row, min(top, len(row))).tolist() if top else []
        out.append(Likelihood(float(row[token]) - log_sum, ids, [float(row[one]) - log_sum for one in ids]))
    return out
