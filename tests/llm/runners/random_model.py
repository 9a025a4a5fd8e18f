"""Checkpoints of random weights in memory: every feature of a DecoderSpec, small enough to run in milliseconds."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farthing.llm.checkpoints.checkpoint import GenerationDefaults, StoredTensor
from farthing.llm.spec import DecoderSpec, Gate, Rotary, RotaryKind, tensor_shapes
from farthing.llm.tokenizer import Tokenizer


@dataclass
class RandomCheckpoint:
    """Implements `Checkpoint`; weights of about the sizes trained ones have."""

    spec: DecoderSpec
    path: Path
    seed: int = 0
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    @property
    def identity(self) -> str:
        return f"random-{self.seed}"

    def tensor(self, name: str) -> NDArray[np.float32]:
        shape = tensor_shapes(self.spec)[name]
        rng = np.random.default_rng([self.seed, *name.encode()])
        if len(shape) == 1:
            return (rng.normal(1 if name.endswith("norm") else 0, 0.2, shape)).astype(np.float32)
        return rng.normal(0, shape[1] ** -0.5 if name != "embedding" else 1, shape).astype(np.float32)

    def stored(self, name: str) -> StoredTensor:
        values = self.tensor(name)
        return StoredTensor("F32", values.shape, values.data.cast("B"))

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def chat_template(self) -> str | None:
        return None


def frequencies(size: int, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(base ** (-i / (size // 2)) for i in range(size // 2))


def small_spec(**changes: object) -> DecoderSpec:
    """A Llama of two layers; `changes` make it anything else."""
    size = int(changes.get("head_size", 32))  # type: ignore[call-overload]
    layers = int(changes.get("layers", 2))  # type: ignore[call-overload]
    fields: dict[str, object] = {
        "architecture": "random",
        "vocabulary": 199,
        "context_tokens": 4096,
        "layers": layers,
        "width": 96,
        "heads": 4,
        "kv_heads": 2,
        "head_size": size,
        "ffn_width": 192,
        "norm_epsilon": 1e-5,
        "rotary_kind": RotaryKind.HALVES,
        "rotaries": (Rotary(frequencies=frequencies(size)),),
        "rotary_of_layer": (0,) * layers,
        "window_of_layer": (0,) * layers,
        "attention_scale": size**-0.5,
    }
    return DecoderSpec(**(fields | changes))  # type: ignore[arg-type]


SPECS = {
    "llama": small_spec(),
    "smollm2": small_spec(
        rotary_kind=RotaryKind.INTERLEAVED, heads=9, kv_heads=3, head_size=64, width=576, ties_head=True
    ),
    "odd-sizes": small_spec(width=40, head_size=20, heads=3, kv_heads=1, ffn_width=56, vocabulary=33),
    "interleaved-odd": small_spec(rotary_kind=RotaryKind.INTERLEAVED, head_size=24, width=72),
    "partial-rotary": small_spec(rotaries=(Rotary(frequencies=frequencies(16)),), head_size=48),
    "partial-interleaved": small_spec(
        rotary_kind=RotaryKind.INTERLEAVED, rotaries=(Rotary(frequencies=frequencies(24)),), head_size=48
    ),
    "mistral": small_spec(window_of_layer=(40, 40)),
    "qwen2": small_spec(has_qkv_bias=True, ties_head=True),
    "qwen2-interleaved": small_spec(has_qkv_bias=True, rotary_kind=RotaryKind.INTERLEAVED, head_size=48),
    "qwen3": small_spec(has_qk_norm=True, head_size=64),
    "qwen3-odd": small_spec(has_qk_norm=True, head_size=40, rotary_kind=RotaryKind.INTERLEAVED),
    "gemma2": small_spec(
        has_post_norms=True,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        embedding_scale=9.75,
        gate=Gate.GELU_TANH,
        window_of_layer=(33, 0),
        ties_head=True,
    ),
    "gemma3": small_spec(
        layers=3,
        has_post_norms=True,
        has_qk_norm=True,
        rotaries=(Rotary(frequencies=frequencies(32)), Rotary(frequencies=frequencies(32, 1e6), factor=1.25)),
        rotary_of_layer=(0, 1, 0),
        window_of_layer=(16, 0, 16),
        gate=Gate.GELU_TANH,
        kv_heads=1,
    ),
    "multi-query": small_spec(heads=16, kv_heads=1),
    "no-groups": small_spec(heads=3, kv_heads=3),
}
