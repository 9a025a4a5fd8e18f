"""What a decoder-only transformer is, as data: the one description that every forward pass reads.

`llm.architectures` makes it from a checkpoint's configuration; `llm.runners` and the native core compute by it. There
is no forward code in a spec and no checkpoint name in a runner.
"""

from enum import StrEnum

import msgspec


class RotaryKind(StrEnum):
    """Which pairs of a head are rotated together (Su et al., arXiv 2104.09864)."""

    HALVES = "halves"
    """(i, i + size/2): Hugging Face, GGUF's `neox`."""
    INTERLEAVED = "interleaved"
    """(2i, 2i + 1): the paper; GGUF's `norm`, into which its Llama converters permute Q and K."""


class Rotary(msgspec.Struct, frozen=True, kw_only=True):
    """Rotation of one kind of layer, scaling already worked in."""

    frequencies: tuple[float, ...]
    """Radians a position, one a pair; `len` is half the rotated size."""
    factor: float = 1.0
    """Multiplies sine and cosine (YaRN's attention factor, arXiv 2309.00071, section 3.4)."""


class Gate(StrEnum):
    """Activation of the gated feed-forward layer: down(act(gate(x)) * up(x))."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class DecoderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder. Sizes are elements; tensors are row-major [out, in]."""

    architecture: str
    vocabulary: int
    context_tokens: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_width: int
    norm_epsilon: float
    rotary_kind: RotaryKind
    rotaries: tuple[Rotary, ...]
    rotary_of_layer: tuple[int, ...]
    """Index into `rotaries`, one a layer (Gemma 3's local layers have their own)."""
    window_of_layer: tuple[int, ...]
    """Keys a query sees, itself included; 0 for all. One a layer."""
    attention_scale: float
    """Multiplies q.k; 1/sqrt(head_size) for most."""
    gate: Gate = Gate.SILU
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    """RMS norm of each head of q and k before rotation (Qwen3, Gemma 3)."""
    has_post_norms: bool = False
    """RMS norm of each block's output before the residual is added (Gemma 2 and 3)."""
    attention_soft_cap: float = 0.0
    """cap * tanh(score / cap); 0: none."""
    logit_soft_cap: float = 0.0
    embedding_scale: float = 1.0
    ties_head: bool = False
    """The head is the embedding."""


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names and their shapes: what a checkpoint must give and a runner may ask for.

    Norm weights are given as they multiply (Gemma's `1 + w` already added), fused projections already split.
    """
    q, kv, width, ffn = spec.heads * spec.head_size, spec.kv_heads * spec.head_size, spec.width, spec.ffn_width
    shapes: dict[str, tuple[int, ...]] = {"embedding": (spec.vocabulary, width), "output_norm": (width,)}
    if not spec.ties_head:
        shapes["head"] = (spec.vocabulary, width)
    for layer in range(spec.layers):
        one: dict[str, tuple[int, ...]] = {
            "attention_norm": (width,),
            "q": (q, width),
            "k": (kv, width),
            "v": (kv, width),
            "o": (width, q),
            "ffn_norm": (width,),
            "gate": (ffn, width),
            "up": (ffn, width),
            "down": (width, ffn),
        }
        if spec.has_qkv_bias:
            one |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if spec.has_qk_norm:
            one |= {"q_norm": (spec.head_size,), "k_norm": (spec.head_size,)}
        if spec.has_post_norms:
            one |= {"attention_post_norm": (width,), "ffn_post_norm": (width,)}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in one.items()}
    return shapes
