"""Fields that families spell alike: sizes, heads, windows and rotary scaling, of config.json and of GGUF metadata."""

from typing import Any, Final

from farthing.llm import rope
from farthing.llm.architectures.family import Tensors
from farthing.llm.architectures.settings import Settings
from farthing.llm.spec import Rotary
from farthing.types.errors import LoadFailed

LAYERS_MAX: Final = 1_024
HEADS_MAX: Final = 4_096
HEAD_SIZE_MAX: Final = 4_096
THETA_MIN: Final = 1.01
"""At 1 all pairs would turn alike."""

SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"


def config_sizes(config: Settings, *, head_size: int | None = None) -> dict[str, Any]:
    """The sizes of a `DecoderSpec` from config.json; `head_size` is what the family has where the file is silent."""
    heads = config.integer("num_attention_heads", most=HEADS_MAX)
    kv_heads = config.integer("num_key_value_heads", heads, most=HEADS_MAX)
    width = config.integer("hidden_size")
    _check_heads(config, "num_key_value_heads", heads, kv_heads)
    if head_size is None and not config.has("head_dim") and width % heads:
        raise config.wrong("hidden_size", f"it does not divide into {heads} heads")
    return {
        "vocabulary": config.integer("vocab_size"),
        "context_tokens": config.integer("max_position_embeddings"),
        "layers": config.integer("num_hidden_layers", most=LAYERS_MAX),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": config.integer("head_dim", head_size or width // heads, most=HEAD_SIZE_MAX),
        "ffn_width": config.integer("intermediate_size"),
        "norm_epsilon": config.number("rms_norm_eps", most=1.0),
    }


def config_rotary(config: Settings, sizes: dict[str, Any], *, theta: float = 10_000.0) -> Rotary:
    """The one rotary of a config.json: `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta`."""
    parameters = config.section("rope_parameters")
    if not parameters.has("rope_type"):
        parameters = config.section("rope_scaling")
    return scaled(config, parameters, sizes, _theta(config, parameters, theta))


def _theta(config: Settings, parameters: Settings, default: float) -> float:
    return parameters.number("rope_theta", config.number("rope_theta", default, least=THETA_MIN), least=THETA_MIN)


def rotated_size(config: Settings, head_size: int, share: float) -> int:
    """How much of a head is rotated."""
    size = int(head_size * share)
    if size < 2 or size % 2:
        raise LoadFailed(f"{config.where}: {size} of {head_size} elements of a head are rotated; pairs are needed")
    return size


def scaled(config: Settings, parameters: Settings, sizes: dict[str, Any], theta: float) -> Rotary:
    """Frequencies by the scaling that Hugging Face's `parameters` name."""
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0), most=1.0)
    size = rotated_size(config, sizes["head_size"], share)
    context: int = sizes["context_tokens"]
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return rope.default(size, theta)
    if kind == "linear":
        return rope.linear(size, theta, factor=parameters.number("factor", least=1e-3))
    original = parameters.integer(
        "original_max_position_embeddings", config.get("original_max_position_embeddings") or context, least=2
    )
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if not low < high:
            raise parameters.wrong("high_freq_factor", f"more than low_freq_factor ({low:g}) is needed")
        factor = parameters.number("factor", least=1e-3)
        return rope.llama3(size, theta, factor=factor, low_factor=low, high_factor=high, original_tokens=original)
    if kind == "yarn":
        factor = parameters.number("factor", context / original, least=1e-3)
        return rope.yarn(
            size,
            theta,
            factor=factor,
            original_tokens=original,
            fast=parameters.number("beta_fast", 32.0, least=1e-3),
            slow=parameters.number("beta_slow", 1.0, least=1e-3),
            attention_factor=_yarn_attention(parameters, factor),
            truncates=parameters.flag("truncate", True),
        )
    if kind in ("longrope", "su"):
        factors = parameters.numbers("short_factor")
        if len(factors) != size // 2 or min(factors, default=0) <= 0:
            raise parameters.wrong("short_factor", f"{size // 2} positive numbers are needed")
        stretch = parameters.number("factor", context / original)
        wanted = parameters.number("attention_factor", rope.longrope_attention(stretch, original))
        return rope.longrope(size, theta, factors=factors, attention_factor=wanted)
    raise LoadFailed(
        f"{config.where}: rotary scaling `{kind}` is not known; known: default, linear, llama3, yarn, longrope"
    )


def _yarn_attention(parameters: Settings, factor: float) -> float | None:
    if parameters.has("attention_factor"):
        return parameters.number("attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        above, below = parameters.number("mscale"), parameters.number("mscale_all_dim")
        return rope.yarn_attention(factor, above) / rope.yarn_attention(factor, below)
    return None


def config_window(config: Settings, sizes: dict[str, Any], *, keeps: bool = False) -> int:
    """`sliding_window`, 0 for none. One as long as the context is none, unless `keeps`: layers may differ otherwise."""
    window = config.integer("sliding_window", 0, least=0)
    return window if keeps else within(window, sizes)


def within(window: int, sizes: dict[str, Any]) -> int:
    """The window, or 0 where the context is no longer."""
    return window if window < sizes["context_tokens"] else 0


def config_windows(config: Settings, layers: int, *, window: int) -> tuple[int, ...]:
    """Windows by `layer_types`, which says of each layer whether it slides."""
    kinds = config.texts("layer_types")
    if len(kinds) != layers or not set(kinds) <= {SLIDING, FULL}:
        raise config.wrong("layer_types", f"{layers} of `{SLIDING}` or `{FULL}` are needed")
    if SLIDING in kinds and not window:
        raise config.wrong("sliding_window", "the layers that slide need one")
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


def metadata_sizes(metadata: Settings, tensors: Tensors) -> dict[str, Any]:
    """The sizes of a `DecoderSpec` from GGUF metadata; the vocabulary is the embedding's height."""
    embedding = tensors.shape("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise LoadFailed(f"{metadata.where}: there is no matrix `token_embd.weight`")
    heads = metadata.integer("attention.head_count", most=HEADS_MAX)
    kv_heads = metadata.integer("attention.head_count_kv", heads, most=HEADS_MAX)
    width = metadata.integer("embedding_length")
    _check_heads(metadata, "attention.head_count_kv", heads, kv_heads)
    if not metadata.has("attention.key_length") and width % heads:
        raise metadata.wrong("embedding_length", f"it does not divide into {heads} heads")
    head_size = metadata.integer("attention.key_length", width // heads, most=HEAD_SIZE_MAX)
    if metadata.integer("attention.value_length", head_size) != head_size:
        raise metadata.wrong("attention.value_length", f"keys of {head_size} and values have to be of one length")
    return {
        "vocabulary": embedding[0],
        "context_tokens": metadata.integer("context_length"),
        "layers": metadata.integer("block_count", most=LAYERS_MAX),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": head_size,
        "ffn_width": metadata.integer("feed_forward_length"),
        "norm_epsilon": metadata.number("attention.layer_norm_rms_epsilon", most=1.0),
        "ties_head": tensors.shape("output.weight") is None,
    }


def metadata_rotary(metadata: Settings, tensors: Tensors, sizes: dict[str, Any], *, theta: float = 10_000.0) -> Rotary:
    """The one rotary of GGUF metadata: `rope.scaling.*`, or factors kept as a tensor."""
    head_size: int = sizes["head_size"]
    size = metadata.integer("rope.dimension_count", head_size, most=head_size)
    rotated_size(metadata, size, 1.0)
    theta = metadata.number("rope.freq_base", theta, least=THETA_MIN)
    factors = tensors.read("rope_freqs.weight")
    if factors is not None:
        if factors.shape != (size // 2,) or not (factors > 0).all():
            raise LoadFailed(f"{metadata.where}: `rope_freqs.weight` has to be {size // 2} positive numbers")
        return rope.divided(size, theta, factors)
    has_searched = tensors.shape("rope_factors_short.weight") is not None
    kind = metadata.text("rope.scaling.type", "longrope" if has_searched else "none")
    if kind == "none":
        return rope.default(size, theta)
    factor = metadata.number("rope.scaling.factor", 1.0, least=1e-3)
    if kind == "linear":
        return rope.linear(size, theta, factor=factor)
    original = metadata.integer("rope.scaling.original_context_length", sizes["context_tokens"], least=2)
    if kind == "yarn":
        return rope.yarn(size, theta, factor=factor, original_tokens=original)
    if kind == "longrope":
        short = tensors.read("rope_factors_short.weight")
        if short is None or short.shape != (size // 2,) or not (short > 0).all():
            raise LoadFailed(f"{metadata.where}: `rope_factors_short.weight` has to be {size // 2} positive numbers")
        wanted = rope.longrope_attention(sizes["context_tokens"] / original, original)
        attention = metadata.number("rope.scaling.attn_factor", wanted)
        return rope.longrope(size, theta, factors=short.tolist(), attention_factor=attention)
    raise metadata.wrong("rope.scaling.type", "known: none, linear, yarn, longrope")


def _check_heads(settings: Settings, name: str, heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise settings.wrong(name, f"{heads} query heads do not divide among {kv_heads}")
