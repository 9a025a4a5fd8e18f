"""How well a model foresees a text: its perplexity, and how often two ways to compute it agree on the likeliest token.

A text longer than the window is read in windows that overlap by half. Of every window but the first only the second
half counts, so each token is foreseen from at least half a window of context (the first tokens of the text from what
there is). The first token of a text is given, not foreseen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.llm.runners.runner import Runner, Step, StepSequence
from farthing.types.errors import InvalidInput

ROWS_AT_ONCE: Final = 128
"""Rows of one step: their logits take 0.5 kB a word of vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What a model made of a text: one value a token but the first."""

    logprobs: NDArray[np.float64]
    """Natural logarithm of the probability it gave the token that came."""
    likeliest: NDArray[np.int64]
    """The token it would have chosen."""

    @property
    def tokens(self) -> int:
        return len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exponential of the mean surprise."""
        return math.exp(-float(self.logprobs.mean()))

    def agreement(self, other: "Foresight") -> float:
        """Share of tokens on which both would have chosen the same."""
        return float((self.likeliest == other.likeliest).mean())


def foresee(
    runner: Runner, ids: Sequence[int], *, window_tokens: int, on_progress: Callable[[int], None] = lambda rows: None
) -> Foresight:
    """Runs the text through a model. `on_progress` is told how many rows each step had; `rows_of` says how many in all.

    Raises `InvalidInput` for a text of less than two tokens, or a window that does not fit the runner's memory.
    """
    if len(ids) < 2:
        raise InvalidInput(f"a text of {len(ids)} tokens has nothing to foresee; two at least are needed")
    room = min(runner.spec.context_tokens, runner.blocks * runner.block_tokens)
    if not 2 <= window_tokens <= room:
        raise InvalidInput(f"a window of {window_tokens} tokens; 2 to {room} fit the model and its memory")
    tokens = np.asarray(ids, np.int32)
    logprobs, likeliest = [], []
    for start, end, counts_from in windows(len(ids), window_tokens):
        for first, logits in _steps(runner, tokens[start:end], on_progress):
            after = tokens[start:end][first + 1 : first + 1 + len(logits)]
            keep = slice(max(0, counts_from - (start + first + 1)), len(after))
            logprobs.append(_log_softmax(logits[: len(after)], after)[keep])
            likeliest.append(logits[: len(after)].argmax(axis=1)[keep])
    return Foresight(logprobs=np.concatenate(logprobs), likeliest=np.concatenate(likeliest))


def rows_of(tokens: int, window_tokens: int) -> int:
    """Rows that are computed in all."""
    return sum(end - start for start, end, _ in windows(tokens, window_tokens))


def windows(tokens: int, window_tokens: int) -> Iterator[tuple[int, int, int]]:
    """First token, last + 1, and the first whose surprise counts, of each window over a text."""
    start, counted = 0, 1
    while True:
        end = min(start + window_tokens, tokens)
        yield start, end, counted
        if end == tokens:
            return
        counted = end
        start = end - window_tokens // 2


def _steps(
    runner: Runner, tokens: NDArray[np.int32], on_progress: Callable[[int], None]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The logits of one window's rows, a piece at a time, with the place of the first."""
    blocks = np.arange(-(-len(tokens) // runner.block_tokens), dtype=np.int32)
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        piece = tokens[first : first + ROWS_AT_ONCE]
        sequence = StepSequence(rows=len(piece), start=first, blocks=blocks)
        yield (
            first,
            runner.run(Step(tokens=piece, sequences=(sequence,), logits_rows=np.arange(len(piece), dtype=np.int32))),
        )
        on_progress(len(piece))


def _log_softmax(logits: NDArray[np.float32], chosen: NDArray[np.int32]) -> NDArray[np.float64]:
    """Of the chosen token of each row."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    taken: NDArray[np.float64] = shifted[np.arange(len(chosen)), chosen] - np.log(np.exp(shifted).sum(axis=1))
    return taken
