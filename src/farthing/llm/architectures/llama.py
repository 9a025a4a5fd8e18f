"""Llama 2 and 3, and what was built alike: SmolLM2, TinyLlama, Yi, and, in GGUF files, Mistral.

RMS norms, grouped-query attention, SiLU gate. Touvron et al., arXiv 2302.13971 and 2307.09288; arXiv 2407.21783.
Converters to GGUF permute the rows of Q and K so that pairs to be rotated are neighbours.
"""

from farthing.llm.architectures.family import Family, Tensors, gguf_sources, hugging_face_sources
from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import config_rotary, config_sizes, metadata_rotary, metadata_sizes
from farthing.llm.spec import DecoderSpec, RotaryKind


def of_config(config: Settings) -> DecoderSpec:
    config.refuse("attention_bias", "mlp_bias")
    config.one_of("hidden_act", ("silu",), "silu")
    sizes = config_sizes(config)
    layers = sizes["layers"]
    return DecoderSpec(
        architecture="llama",
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(config_rotary(config, sizes),),
        rotary_of_layer=(0,) * layers,
        window_of_layer=(0,) * layers,
        attention_scale=sizes["head_size"] ** -0.5,
        ties_head=config.flag("tie_word_embeddings", False),
    )


def of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    metadata.refuse("expert_count")
    sizes = metadata_sizes(metadata, tensors)
    layers = sizes["layers"]
    return DecoderSpec(
        architecture="llama",
        **sizes,
        rotary_kind=RotaryKind.INTERLEAVED,
        rotaries=(metadata_rotary(metadata, tensors, sizes),),
        rotary_of_layer=(0,) * layers,
        window_of_layer=(metadata.integer("attention.sliding_window", 0, least=0),) * layers,
        attention_scale=metadata.number("attention.scale", sizes["head_size"] ** -0.5),
        has_qkv_bias=tensors.shape("blk.0.attn_q.bias") is not None,
    )


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    gguf_architectures=("llama",),
    spec_of_config=of_config,
    sources_of_config=hugging_face_sources,
    spec_of_metadata=of_metadata,
    sources_of_metadata=gguf_sources,
)
