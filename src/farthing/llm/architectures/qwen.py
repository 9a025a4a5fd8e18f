"""Qwen2 and Qwen2.5 (biases on q, k and v), and Qwen3 (norms on the heads of q and k instead).

Yang et al., arXiv 2407.10671, 2412.15115 and 2505.09388.
"""

from farthing.llm.architectures.family import Family, Tensors, gguf_sources, hugging_face_sources
from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import (
    config_rotary,
    config_sizes,
    config_window,
    config_windows,
    metadata_rotary,
    metadata_sizes,
)
from farthing.llm.spec import DecoderSpec, RotaryKind


def qwen2_of_config(config: Settings) -> DecoderSpec:
    return _of_config(config, "qwen2")


def qwen3_of_config(config: Settings) -> DecoderSpec:
    config.refuse("attention_bias")
    return _of_config(config, "qwen3")


def qwen2_of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    return _of_metadata(metadata, tensors, "qwen2")


def qwen3_of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    return _of_metadata(metadata, tensors, "qwen3")


def _of_config(config: Settings, name: str) -> DecoderSpec:
    config.one_of("hidden_act", ("silu",), "silu")
    sizes = config_sizes(config)
    layers = sizes["layers"]
    return DecoderSpec(
        architecture=name,
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(config_rotary(config, sizes),),
        rotary_of_layer=(0,) * layers,
        window_of_layer=_windows(config, sizes),
        attention_scale=sizes["head_size"] ** -0.5,
        has_qkv_bias=name == "qwen2",
        has_qk_norm=name == "qwen3",
        ties_head=config.flag("tie_word_embeddings", False),
    )


def _windows(config: Settings, sizes: dict[str, int]) -> tuple[int, ...]:
    """Off in all published models; where it is on, the upper layers slide."""
    layers = sizes["layers"]
    if not config.flag("use_sliding_window", False):
        return (0,) * layers
    window = config_window(config, sizes)
    if config.has("layer_types"):
        return config_windows(config, layers, window=window)
    full = config.integer("max_window_layers", 28, least=0)
    return tuple(window if layer >= full else 0 for layer in range(layers))


def _of_metadata(metadata: Settings, tensors: Tensors, name: str) -> DecoderSpec:
    sizes = metadata_sizes(metadata, tensors)
    layers = sizes["layers"]
    return DecoderSpec(
        architecture=name,
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(metadata_rotary(metadata, tensors, sizes),),
        rotary_of_layer=(0,) * layers,
        window_of_layer=(0,) * layers,
        attention_scale=sizes["head_size"] ** -0.5,
        has_qkv_bias=name == "qwen2",
        has_qk_norm=name == "qwen3",
    )


QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    gguf_architectures=("qwen2",),
    spec_of_config=qwen2_of_config,
    sources_of_config=hugging_face_sources,
    spec_of_metadata=qwen2_of_metadata,
    sources_of_metadata=gguf_sources,
)
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    spec_of_config=qwen3_of_config,
    sources_of_config=hugging_face_sources,
    spec_of_metadata=qwen3_of_metadata,
    sources_of_metadata=gguf_sources,
)
