"""A very small Llama with a byte-level vocabulary, as a GGUF file and as a Hugging Face folder; random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tests.llm.checkpoints.gguf_bytes import ARRAY, F32, I32, STRING, U32, Entry, gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u0120", "w")]
TOKENS = [*CONTROL, *ALPHABET, *(left + right for left, right in MERGES)]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WIDTH, HEADS, KV_HEADS, FFN, LAYERS = 32, 4, 2, 32, 2

ENTRIES: list[Entry] = [
    ("general.architecture", STRING, "llama"),
    ("llama.block_count", U32, LAYERS),
    ("llama.context_length", U32, 64),
    ("llama.embedding_length", U32, WIDTH),
    ("llama.feed_forward_length", U32, FFN),
    ("llama.attention.head_count", U32, HEADS),
    ("llama.attention.head_count_kv", U32, KV_HEADS),
    ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
    ("tokenizer.ggml.model", STRING, "gpt2"),
    ("tokenizer.ggml.pre", STRING, "gpt-2"),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
    ("tokenizer.ggml.token_type", ARRAY, (I32, [3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))),
    ("tokenizer.ggml.merges", ARRAY, (STRING, [" ".join(pair) for pair in MERGES])),
    ("tokenizer.ggml.bos_token_id", U32, 1),
    ("tokenizer.ggml.eos_token_id", U32, 2),
    ("tokenizer.chat_template", STRING, TEMPLATE),
]


def weights() -> dict[str, NDArray[np.float32]]:
    """Hugging Face's name -> tensor; the head is tied."""
    random = np.random.default_rng(11)
    kv = KV_HEADS * WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (len(TOKENS), WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (WIDTH,),
                "self_attn.q_proj": (WIDTH, WIDTH),
                "self_attn.k_proj": (kv, WIDTH),
                "self_attn.v_proj": (kv, WIDTH),
                "self_attn.o_proj": (WIDTH, WIDTH),
                "post_attention_layernorm": (WIDTH,),
                "mlp.gate_proj": (FFN, WIDTH),
                "mlp.up_proj": (FFN, WIDTH),
                "mlp.down_proj": (WIDTH, FFN),
            }.items()
        }
    return {f"{name}.weight": random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_gguf(entries: list[Entry] | None = None) -> bytes:
    """The model as one file; rows of Q and K as they are, which makes it another Llama than the folder's."""
    tensors, data = [], b""
    for name, array in weights().items():
        short = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        short = short.replace("model.layers.", "blk.")
        for theirs, ours in _GGUF_PARTS.items():
            short = short.replace(theirs, ours)
        tensors.append((short, array.shape[::-1], 0, len(data)))
        data += array.tobytes() + bytes(-array.nbytes % 32)
    return gguf(ENTRIES if entries is None else entries, tensors, data)


def tokenizer_json() -> str:
    library = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return str(library.to_str())


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": len(TOKENS),
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


def tiny_folder(folder: Path, *, shards: int = 1, config: dict[str, Any] | None = None) -> Path:
    """The model as a folder; returns it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", CONFIG if config is None else config)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE},
    )
    tensors = weights()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{at % shards}.safetensors" for at, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
