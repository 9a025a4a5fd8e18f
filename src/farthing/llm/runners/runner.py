"""What the generator asks of a forward pass: tokens and block tables in, logits out.

A runner owns the memory of keys and values, cut into blocks of `block_tokens` positions, and knows nothing of
requests, samplers or schedules. Which block belongs to whom is the generator's business. `llm.runners.cpu` is the fast
one, `llm.runners.reference` the plain one that it is held against.
"""

from typing import Final, Protocol, runtime_checkable

import msgspec
import numpy as np

from farthing.llm.spec import DecoderSpec

BLOCK_TOKENS: Final = 32
"""Positions a KV block holds: one tile of the attention kernel, so a softmax step never straddles two blocks."""


class StepSequence(msgspec.Struct, frozen=True):
    """The rows one sequence has in a step: consecutive positions, keys and values where its block table says."""

    rows: int
    """At least 1."""
    start: int
    """Position of the first row; positions 0..start-1 were run in earlier steps (or are shared with one that did)."""
    blocks: np.ndarray
    """int32; block i holds positions i * block_tokens and on. Covers 0..start+rows-1; more is allowed. Blocks that hold
    no position in any layer's window any more may be any valid id."""


class Step(msgspec.Struct, frozen=True):
    """One run of the network over rows of several sequences."""

    tokens: np.ndarray
    """int32 [T], the rows of all sequences one after another."""
    sequences: tuple[StepSequence, ...]
    logits_rows: np.ndarray
    """int32, rows whose logits are wanted, ascending; may be empty (a prompt's inner chunk)."""


class Runner(Protocol):
    """A forward pass with its KV memory.

    The row of a sequence at position p attends positions 0..p (or the layer's window of them) of its own block table;
    rows of the same step are written before they are read. What comes out for a row depends only on the tokens before
    it in its sequence, to the bit: not on the other rows of the step, nor on how the prompt was cut into steps.
    """

    @property
    def spec(self) -> DecoderSpec: ...

    @property
    def block_tokens(self) -> int:
        """Positions a KV block holds."""
        ...

    @property
    def blocks(self) -> int:
        """KV blocks in the pool; ids are 0..blocks-1."""
        ...

    def run(self, step: Step) -> np.ndarray:
        """Float32 [len(step.logits_rows), vocabulary]. Blocks the caller, not the interpreter. One caller at a time."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Keys and values of `source`, all layers, into `target`: for a partial block that two sequences share."""
        ...

    def close(self) -> None:
        """Threads and memory back; nothing may be called afterwards."""
        ...


@runtime_checkable
class GreedyRunner(Runner, Protocol):
    """A runner that finds the likeliest tokens as it goes, so that logits nobody reads are never written."""

    def run_likeliest(self, step: Step) -> tuple[list[int], list[float]]:
        """For each of the step's `logits_rows`: the token `run(step)[row].argmax()`, and its logit."""
        ...
