"""Writes a transformers model as a GGUF file with the `gguf` package, changing its tensors as llama.cpp's converters do."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "phi3": "PHI3",
}
"""`model_type` -> the package's name."""


def write_gguf(model: Any, path: Path, *, kind: str = "F32") -> None:
    """Matrices are quantised to `kind` where their rows divide into its blocks."""
    import gguf

    config = model.config
    arch = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    everywhere = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(everywhere["rope_theta"])
    writer.add_rope_dimension_count(int(head_size * everywhere.get("partial_rotary_factor", 1.0)))
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    if cap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if scalar := getattr(config, "query_pre_attn_scalar", None):
        writer.add_float32(f"{gguf.MODEL_ARCH_NAMES[arch]}.attention.scale", scalar**-0.5)
    tensors = {name: value.float().numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if everywhere["rope_type"] in {"linear", "yarn"}:
        writer.add_rope_scaling_type(gguf.RopeScalingType(everywhere["rope_type"]))
        writer.add_rope_scaling_factor(everywhere["factor"])
        if everywhere["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(everywhere["original_max_position_embeddings"])
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in tensors.items():
        changed = _changed(name, value, config)
        stored, raw = _quantised(changed, kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored, raw_dtype=raw)
    for name, factors in _rotary_factors(model, everywhere).items():
        writer.add_tensor(name, factors)
    if everywhere["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(everywhere["original_max_position_embeddings"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _changed(name: str, value: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if config.model_type in {"llama", "mistral"} and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
    return value


def _quantised(value: NDArray[np.float32], kind: str) -> tuple[Any, Any]:
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    if kind == "F32" or value.ndim < 2 or value.shape[-1] % gguf.GGML_QUANT_SIZES[number][0]:
        return value, None
    return gguf.quants.quantize(value, number), number


def _rotary_factors(model: Any, rope: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{length}.weight": np.float32(rope[f"{length}_factor"]) for length in ("short", "long")}
    if rope["rope_type"] == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        plain = rope["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    return {}
