"""What a page about a family has to say, and the words most of them share.

A family answers two questions for each of the two formats: which decoder is this, and where is each canonical tensor
of it? `checkpoints` reads the tensors so named.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.llm.architectures.settings import Settings
from farthing.llm.spec import DecoderSpec, tensor_shapes


class Source(msgspec.Struct, frozen=True):
    """Where a canonical tensor is found in a checkpoint."""

    name: str
    rows: tuple[int, int] | None = None
    """First and last + 1 of the stored tensor's rows; None for all (projections kept fused are more)."""
    adds_one: bool = False
    """The norm's weight is stored as what it adds to 1 (Gemma)."""


Sources = dict[str, Source]
"""Canonical name -> place."""


class Tensors(Protocol):
    """What a GGUF page may ask beyond metadata: the shapes of tensors, and the small ones that hold rotary factors."""

    def shape(self, name: str) -> tuple[int, ...] | None: ...

    def read(self, name: str) -> NDArray[np.float32] | None: ...


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One page."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` in config.json."""
    gguf_architectures: tuple[str, ...] = ()
    """`general.architecture` in GGUF metadata."""
    spec_of_config: Callable[[Settings], DecoderSpec]
    sources_of_config: Callable[[DecoderSpec], Sources]
    spec_of_metadata: Callable[[Settings, Tensors], DecoderSpec]
    sources_of_metadata: Callable[[DecoderSpec], Sources]


HUGGING_FACE_NAMES: Final[Mapping[str, str]] = {
    "embedding": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
"""Canonical name without its layer -> Hugging Face's, as Llama has them."""

GGUF_NAMES: Final[Mapping[str, str]] = {
    "embedding": "token_embd.weight",
    "output_norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "ffn_post_norm": "post_ffw_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
"""The same in GGUF files, for all families."""


def named(spec: DecoderSpec, names: Mapping[str, str], layer_prefix: str) -> Sources:
    """Every canonical tensor, one to one, under these names."""
    sources = {}
    for canonical in tensor_shapes(spec):
        if canonical.startswith("layers."):
            _, layer, part = canonical.split(".")
            sources[canonical] = Source(f"{layer_prefix}.{layer}.{names[part]}")
        else:
            sources[canonical] = Source(names[canonical])
    return sources


def hugging_face_sources(spec: DecoderSpec) -> Sources:
    return named(spec, HUGGING_FACE_NAMES, "model.layers")


def gguf_sources(spec: DecoderSpec) -> Sources:
    return named(spec, GGUF_NAMES, "blk")
