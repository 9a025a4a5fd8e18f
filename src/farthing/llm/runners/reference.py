"""The forward pass in plain numpy and float32: slow, short, and what every faster runner is held against.

It reads the spec as a recipe, one row of formulas a part; keys and values lie in the blocks of `runner`'s contract.
Sums are numpy's and its BLAS's: rows agree with one another to rounding, not to the bit.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.llm.runners.runner import BLOCK_TOKENS, Step, StepSequence
from farthing.llm.spec import DecoderSpec, Gate, Rotary, RotaryKind

Floats = NDArray[np.float32]


class Weights:
    """Float32 tensors of a checkpoint (anything with `.spec` and `.tensor(name)`), each read once and kept."""

    def __init__(self, checkpoint: Any) -> None:
        self._checkpoint = checkpoint
        self._kept: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._kept:
            self._kept[name] = self._checkpoint.tensor(name)
        return self._kept[name]


class ReferenceRunner:
    """Implements `Runner` over a checkpoint."""

    def __init__(self, checkpoint: Any, *, blocks: int = 256) -> None:
        self.spec: Final[DecoderSpec] = checkpoint.spec
        self.block_tokens: Final = BLOCK_TOKENS
        self.blocks: Final = blocks
        self._weights = Weights(checkpoint)
        shape = (self.spec.layers, blocks * BLOCK_TOKENS, self.spec.kv_heads, self.spec.head_size)
        self._keys = np.zeros(shape, np.float32)
        self._values = np.zeros(shape, np.float32)

    def run(self, step: Step) -> Floats:
        spec = self.spec
        slots, positions = self._placed(step)
        x = self._weights["embedding"][step.tokens] * np.float32(spec.embedding_scale)
        for layer in range(spec.layers):
            weights = _Layer(self._weights, layer)
            x = x + self._attended(x, layer, weights, step, slots, positions)
            h = norm(x, weights["ffn_norm"], spec.norm_epsilon)
            h = activated(h @ weights["gate"].T, spec.gate) * (h @ weights["up"].T)
            x = x + self._post_norm(h @ weights["down"].T, weights, "ffn_post_norm")
        x = norm(x[step.logits_rows], self._weights["output_norm"], spec.norm_epsilon)
        head = self._weights["embedding" if spec.ties_head else "head"]
        return capped(x @ head.T, spec.logit_soft_cap)

    def copy_block(self, source: int, target: int) -> None:
        size = self.block_tokens
        for memory in (self._keys, self._values):
            memory[:, target * size : (target + 1) * size] = memory[:, source * size : (source + 1) * size]

    def close(self) -> None:
        del self._keys, self._values, self._weights

    def _placed(self, step: Step) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """For each sequence the slots of all its positions so far; for each row its position."""
        slots, positions = [], []
        rows = 0
        for sequence in step.sequences:
            end = sequence.start + sequence.rows
            at = np.arange(end)
            blocks = np.asarray(sequence.blocks, np.int64)
            if len(blocks) * self.block_tokens < end:
                raise ValueError(f"{len(blocks)} blocks of {self.block_tokens} do not cover {end} positions")
            if blocks.min() < 0 or blocks.max() >= self.blocks:
                raise ValueError(f"block ids {blocks.tolist()} with {self.blocks} blocks")
            slots.append(blocks[at // self.block_tokens] * self.block_tokens + at % self.block_tokens)
            positions.append(at[sequence.start :])
            rows += sequence.rows
        if rows != len(step.tokens):
            raise ValueError(f"{len(step.tokens)} tokens for {rows} rows")
        return slots, np.concatenate(positions)

    def _attended(
        self,
        x: Floats,
        layer: int,
        weights: "_Layer",
        step: Step,
        slots: list[NDArray[np.int64]],
        positions: NDArray[np.int64],
    ) -> Floats:
        spec = self.spec
        h = norm(x, weights["attention_norm"], spec.norm_epsilon)
        q, k, v = (
            _biased(h @ weights[name].T, weights, name, spec.has_qkv_bias).reshape(len(h), heads, spec.head_size)
            for name, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads))
        )
        if spec.has_qk_norm:
            q, k = norm(q, weights["q_norm"], spec.norm_epsilon), norm(k, weights["k_norm"], spec.norm_epsilon)
        rotary = spec.rotaries[spec.rotary_of_layer[layer]]
        q, k = (rotated(one, positions, rotary, spec.rotary_kind) for one in (q, k))
        outputs, row = [], 0
        for sequence, places in zip(step.sequences, slots, strict=True):
            rows = slice(row, row + sequence.rows)
            self._keys[layer, places[sequence.start :]] = k[rows]
            self._values[layer, places[sequence.start :]] = v[rows]
            outputs.append(self._attention(q[rows], layer, sequence, places))
            row += sequence.rows
        return self._post_norm(np.concatenate(outputs) @ weights["o"].T, weights, "attention_post_norm")

    def _attention(self, q: Floats, layer: int, sequence: StepSequence, places: NDArray[np.int64]) -> Floats:
        spec = self.spec
        window = spec.window_of_layer[layer]
        first = max(0, sequence.start - window + 1) if window else 0
        keys = np.repeat(self._keys[layer, places[first:]], spec.heads // spec.kv_heads, axis=1)
        values = np.repeat(self._values[layer, places[first:]], spec.heads // spec.kv_heads, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, keys, optimize=True) * np.float32(spec.attention_scale)
        scores = capped(scores, spec.attention_soft_cap)
        query = np.arange(sequence.start, sequence.start + sequence.rows)[:, None]
        key = np.arange(first, len(places))[None, :]
        is_hidden = key > query
        if window:
            is_hidden |= key <= query - window
        scores[:, is_hidden] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen: Floats = np.einsum("hij,jhd->ihd", scores, values, optimize=True)
        return seen.reshape(len(q), -1)

    def _post_norm(self, x: Floats, weights: "_Layer", name: str) -> Floats:
        return norm(x, weights[name], self.spec.norm_epsilon) if self.spec.has_post_norms else x


class _Layer:
    def __init__(self, weights: Weights, layer: int) -> None:
        self._weights = weights
        self._layer = layer

    def __getitem__(self, name: str) -> Floats:
        return self._weights[f"layers.{self._layer}.{name}"]


def norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Root mean square norm."""
    mean = np.mean(x * x, axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean + np.float32(epsilon)) * weight
    return normed


def activated(x: Floats, gate: Gate) -> Floats:
    if gate is Gate.SILU:
        with np.errstate(over="ignore"):  # exp(-x) of a very negative x: the quotient is 0, as it should be
            silu: Floats = x / (1 + np.exp(-x))
        return silu
    gelu: Floats = (
        np.float32(0.5) * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))
    )
    return gelu


def capped(x: Floats, cap: float) -> Floats:
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def rotated(x: Floats, positions: NDArray[np.int64], rotary: Rotary, kind: RotaryKind) -> Floats:
    """Heads [rows, heads, size], each pair turned by its position; what is beyond the pairs stays as it is."""
    angles = np.outer(positions, rotary.frequencies)[:, None, :]
    cosine, sine = ((turn(angles) * rotary.factor).astype(np.float32) for turn in (np.cos, np.sin))
    size = 2 * len(rotary.frequencies)
    turned = x.copy()
    half = size // 2
    first, second = (
        (slice(half), slice(half, size)) if kind is RotaryKind.HALVES else (slice(0, size, 2), slice(1, size, 2))
    )
    turned[..., first] = x[..., first] * cosine - x[..., second] * sine
    turned[..., second] = x[..., first] * sine + x[..., second] * cosine
    return turned


def _biased(x: Floats, weights: Mapping[str, Floats] | _Layer, name: str, is_biased: bool) -> Floats:
    return x + weights[f"{name}_bias"] if is_biased else x
