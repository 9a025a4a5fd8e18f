"""Phi-3, Phi-3.5 and Phi-4 (mini): projections kept fused, part of a head rotated, long contexts by LongRoPE.

Abdin et al., arXiv 2404.14219. LongRoPE has one set of factors for prompts within the first training's context and one
for longer ones, so keys would change as a text grows past it; here the context ends where the first set does.
"""

from typing import Any

from farthing.llm.architectures.family import (
    GGUF_NAMES,
    HUGGING_FACE_NAMES,
    Family,
    Source,
    Sources,
    Tensors,
    named,
)
from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import (
    config_rotary,
    config_sizes,
    config_window,
    metadata_rotary,
    metadata_sizes,
    within,
)
from farthing.llm.spec import DecoderSpec, Rotary, RotaryKind


def of_config(config: Settings) -> DecoderSpec:
    config.one_of("hidden_act", ("silu",), "silu")
    sizes = config_sizes(config)
    rotary, window = config_rotary(config, sizes), config_window(config, sizes)
    scaling = config.section(
        "rope_parameters" if config.section("rope_parameters").has("rope_type") else "rope_scaling"
    )
    if scaling.has("short_factor"):
        trained = config.integer("original_max_position_embeddings", sizes["context_tokens"])
        sizes["context_tokens"] = scaling.integer("original_max_position_embeddings", trained)
    return _decoder(sizes, rotary, window, ties_head=config.flag("tie_word_embeddings", False))


def of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    sizes = metadata_sizes(metadata, tensors)
    rotary = metadata_rotary(metadata, tensors, sizes)
    window = within(metadata.integer("attention.sliding_window", 0, least=0), sizes)
    if tensors.shape("rope_factors_short.weight") is not None:
        sizes["context_tokens"] = metadata.integer("rope.scaling.original_context_length", sizes["context_tokens"])
    return _decoder(sizes, rotary, window)


def _decoder(sizes: dict[str, Any], rotary: Rotary, window: int, **rest: Any) -> DecoderSpec:
    layers = sizes["layers"]
    return DecoderSpec(
        architecture="phi3",
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(rotary,),
        rotary_of_layer=(0,) * layers,
        window_of_layer=(window,) * layers,
        attention_scale=sizes["head_size"] ** -0.5,
        **rest,
    )


def sources_of_config(spec: DecoderSpec) -> Sources:
    return named(spec, HUGGING_FACE_NAMES, "model.layers") | _fused(
        spec, "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
    )


def sources_of_metadata(spec: DecoderSpec) -> Sources:
    return named(spec, GGUF_NAMES, "blk") | _fused(spec, "blk.{}.attn_qkv.weight", "blk.{}.ffn_up.weight")


def _fused(spec: DecoderSpec, qkv: str, gate_up: str) -> Sources:
    q, kv, ffn = spec.heads * spec.head_size, spec.kv_heads * spec.head_size, spec.ffn_width
    rows = {
        qkv: {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)},
        gate_up: {"gate": (0, ffn), "up": (ffn, 2 * ffn)},
    }
    return {
        f"layers.{layer}.{part}": Source(name.format(layer), rows=cut)
        for layer in range(spec.layers)
        for name, parts in rows.items()
        for part, cut in parts.items()
    }


FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    gguf_architectures=("phi3",),
    spec_of_config=of_config,
    sources_of_config=sources_of_config,
    spec_of_metadata=of_metadata,
    sources_of_metadata=sources_of_metadata,
)
