"""Gemma 2 and 3 (text): norms around each block, scaled embeddings, sliding layers between ones that see all.

Gemma 2 caps scores and logits (arXiv 2408.00118); Gemma 3 norms the heads of q and k instead and gives its sliding
layers a rotary of their own (arXiv 2503.19786). Hugging Face keeps a norm's weight as what it adds to 1; converters to
GGUF add the 1.
"""

from typing import Any, Final

from msgspec.structs import replace

from farthing.llm import rope
from farthing.llm.architectures.family import HUGGING_FACE_NAMES, Family, Sources, Tensors, gguf_sources, named
from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import (
    FULL,
    SLIDING,
    THETA_MIN,
    config_rotary,
    config_sizes,
    config_window,
    config_windows,
    metadata_rotary,
    metadata_sizes,
    scaled,
)
from farthing.llm.spec import DecoderSpec, Gate, Rotary, RotaryKind

GEMMA2_PERIOD: Final = 2
"""One layer in so many, the last, sees all."""
GEMMA3_PERIOD: Final = 6
GEMMA3_THETA: Final = 1_000_000.0
LOCAL_THETA: Final = 10_000.0
"""Of Gemma 3's sliding layers."""
GEMMA2_27B_LAYERS: Final = 46
GEMMA3_27B_LAYERS: Final = 62
"""The largest ones scale scores by width over heads; GGUF files do not say so, their layers do."""

_NAMES: Final = {
    **HUGGING_FACE_NAMES,
    "attention_post_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "ffn_post_norm": "post_feedforward_layernorm.weight",
}


def gemma2_of_config(config: Settings) -> DecoderSpec:
    sizes = _config_sizes(config)
    return _decoder(
        "gemma2",
        sizes,
        rotaries=(config_rotary(config, sizes),),
        windows=_config_windows(config, sizes, GEMMA2_PERIOD),
        scale=config.number("query_pre_attn_scalar", 256, least=1e-6) ** -0.5,
        attention_soft_cap=config.number("attn_logit_softcapping", 0.0),
        logit_soft_cap=config.number("final_logit_softcapping", 0.0),
        ties_head=config.flag("tie_word_embeddings", True),
    )


def gemma3_of_config(config: Settings) -> DecoderSpec:
    config.refuse("use_bidirectional_attention")
    sizes = _config_sizes(config)
    return _decoder(
        "gemma3",
        sizes,
        rotaries=_gemma3_rotaries(config, sizes),
        windows=_config_windows(config, sizes, config.integer("sliding_window_pattern", GEMMA3_PERIOD)),
        scale=config.number("query_pre_attn_scalar", 256, least=1e-6) ** -0.5,
        attention_soft_cap=config.number("attn_logit_softcapping", 0.0),
        logit_soft_cap=config.number("final_logit_softcapping", 0.0),
        ties_head=config.flag("tie_word_embeddings", True),
    )


def gemma2_of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    sizes = metadata_sizes(metadata, tensors)
    return _decoder(
        "gemma2",
        sizes,
        rotaries=(metadata_rotary(metadata, tensors, sizes),),
        windows=_metadata_windows(metadata, sizes, GEMMA2_PERIOD),
        scale=_metadata_scale(metadata, sizes, GEMMA2_27B_LAYERS),
        attention_soft_cap=metadata.number("attn_logit_softcapping", 50.0),
        logit_soft_cap=metadata.number("final_logit_softcapping", 30.0),
    )


def gemma3_of_metadata(metadata: Settings, tensors: Tensors) -> DecoderSpec:
    sizes = metadata_sizes(metadata, tensors)
    local = metadata.number("rope.freq_base_swa", LOCAL_THETA, least=THETA_MIN)
    everywhere = metadata_rotary(metadata, tensors, sizes, theta=GEMMA3_THETA)
    return _decoder(
        "gemma3",
        sizes,
        rotaries=(everywhere, rope.default(sizes["head_size"], local)),
        windows=_metadata_windows(metadata, sizes, GEMMA3_PERIOD),
        scale=_metadata_scale(metadata, sizes, GEMMA3_27B_LAYERS),
        attention_soft_cap=metadata.number("attn_logit_softcapping", 0.0),
        logit_soft_cap=metadata.number("final_logit_softcapping", 0.0),
    )


def sources_of_config(spec: DecoderSpec) -> Sources:
    return {
        canonical: replace(source, adds_one=True) if canonical.endswith("norm") else source
        for canonical, source in named(spec, _NAMES, "model.layers").items()
    }


def _decoder(
    name: str,
    sizes: dict[str, Any],
    *,
    rotaries: tuple[Rotary, ...],
    windows: tuple[int, ...],
    scale: float,
    **rest: Any,
) -> DecoderSpec:
    last = len(rotaries) - 1
    return DecoderSpec(
        architecture=name,
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=rotaries,
        rotary_of_layer=tuple(last if window else 0 for window in windows),
        window_of_layer=windows,
        attention_scale=scale,
        gate=Gate.GELU_TANH,
        has_qk_norm=name == "gemma3",
        has_post_norms=True,
        embedding_scale=float(sizes["width"]) ** 0.5,
        **rest,
    )


def _config_sizes(config: Settings) -> dict[str, Any]:
    config.refuse("attention_bias")
    config.one_of("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    return config_sizes(config, head_size=256)


def _gemma3_rotaries(config: Settings, sizes: dict[str, Any]) -> tuple[Rotary, Rotary]:
    """Of the layers that see all, and of those that slide."""
    both = config.section("rope_parameters")
    if both.has(FULL):
        full, sliding = both.section(FULL), both.section(SLIDING)
        thetas = (
            full.number("rope_theta", GEMMA3_THETA, least=THETA_MIN),
            sliding.number("rope_theta", LOCAL_THETA, least=THETA_MIN),
        )
        return scaled(config, full, sizes, thetas[0]), scaled(config, sliding, sizes, thetas[1])
    local = rope.default(sizes["head_size"], config.number("rope_local_base_freq", LOCAL_THETA, least=THETA_MIN))
    return config_rotary(config, sizes, theta=GEMMA3_THETA), local


def _config_windows(config: Settings, sizes: dict[str, Any], period: int) -> tuple[int, ...]:
    window = config_window(config, sizes, keeps=True)
    if config.has("layer_types"):
        return config_windows(config, sizes["layers"], window=window)
    return _sliding(window, sizes["layers"], period)


def _metadata_windows(metadata: Settings, sizes: dict[str, Any], period: int) -> tuple[int, ...]:
    layers: int = sizes["layers"]
    window = metadata.integer("attention.sliding_window", least=1)
    pattern = metadata.get("attention.sliding_window_pattern")
    if hasattr(pattern, "tolist"):  # whether it slides, a layer
        if len(pattern) != layers:
            raise metadata.wrong("attention.sliding_window_pattern", f"{layers} values are needed")
        return tuple(window if slides else 0 for slides in pattern.tolist())
    return _sliding(window, layers, metadata.integer("attention.sliding_window_pattern", period))


def _sliding(window: int, layers: int, period: int) -> tuple[int, ...]:
    return tuple(window if (layer + 1) % period else 0 for layer in range(layers))


def _metadata_scale(metadata: Settings, sizes: dict[str, Any], largest_layers: int) -> float:
    is_largest = sizes["layers"] == largest_layers
    size = sizes["width"] / sizes["heads"] if is_largest else sizes["head_size"]
    return metadata.number("attention.scale", size**-0.5)


GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    gguf_architectures=("gemma2",),
    spec_of_config=gemma2_of_config,
    sources_of_config=sources_of_config,
    spec_of_metadata=gemma2_of_metadata,
    sources_of_metadata=gguf_sources,
)
GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    gguf_architectures=("gemma3",),
    spec_of_config=gemma3_of_config,
    sources_of_config=sources_of_config,
    spec_of_metadata=gemma3_of_metadata,
    sources_of_metadata=gguf_sources,
)
