"""Small random models of every family, made and saved by transformers; every weight is disturbed, norms too."""

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.2],
    "long_factor": [2.0, 3.0],
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 64,
}
GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_implementation": "eager"}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-linear": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "llama-3.1": ("Llama", {"head_dim": 16, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "mistral-wide-heads": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2-tied-yarn": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3-linear": (
        "Gemma3Text",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "phi3-partial-longrope": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
}


def saved(variant: str, folder: Path, **changes: Any) -> Any:
    """The model, in evaluation mode, after saving it in the folder."""
    import torch
    import transformers

    family, options = VARIANTS[variant]
    implementation = {"attn_implementation": options.get("attn_implementation", "sdpa")}
    said = {name: value for name, value in options.items() if name != "attn_implementation"}
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **said, **changes})
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, **implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.eval().save_pretrained(folder)
    return model
