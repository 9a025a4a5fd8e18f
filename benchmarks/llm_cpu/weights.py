"""The models in every format that somebody here reads, each made once from the same weights, in the cache folder.

S is SmolLM2-135M-Instruct as a package ships it, 4-bit GGUF; what others read is made from that file, so nobody has
better weights than anybody else. L has the shape of Llama-3.2-1B and random weights: for speed alone.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CACHE: Final = Path(os.environ.get("FARTHING_PEERS_LLM", Path.home() / ".cache" / "farthing" / "peers-llm"))
"""Peers, models and logs; about 20 GB. Everything in it can be deleted."""
SEED: Final = 20

TINY: Final = "smollm2-135m"
LARGE: Final = "llama-1b-shape"
NAMES: Final = (TINY, LARGE)

LARGE_CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the sums need to know of a model."""

    body: int
    """Parameters that every token is multiplied with, prompt or not."""
    head: int
    """Parameters of the head, which prompts need once."""


def folder(model: str) -> Path:
    """Where a model's files are."""
    return CACHE / "models" / model


def shape_of(model: str) -> Shape:
    """Of the weights as Farthing reads them."""
    from farthing.llm.checkpoints.opening import open_checkpoint
    from farthing.llm.spec import tensor_shapes

    spec = open_checkpoint(source(model)).spec
    sizes = {name: int(np.prod(shape)) for name, shape in tensor_shapes(spec).items()}
    body = sum(size for name, size in sizes.items() if name.startswith("layers."))
    return Shape(body=body, head=spec.vocabulary * spec.width)


def source(model: str) -> Path:
    """What all formats come from, and what Farthing serves."""
    return folder(model) / "model.gguf" if model == TINY else folder(model) / "hf"


def prepare(model: str) -> Path:
    """Makes what Farthing serves, unless it is there."""
    path = source(model)
    if model == TINY and not path.exists():
        from farthing.repository.samples import sample_path

        (sample,) = sample_path(TINY).glob("*/model.gguf")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample, path)
    if model == LARGE and not (path / "config.json").exists():
        _write_large(path)
    return path


def tokenizer() -> Callable[[str], list[int]]:
    """Text to S's tokens, which L has too."""
    from farthing.llm.checkpoints.opening import open_checkpoint

    found = open_checkpoint(prepare(TINY)).tokenizer()
    return lambda text: found.encode(text, adds_special=False)


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """The file or folder, made beside its place first so that a broken attempt leaves nothing that looks whole."""
    if not path.exists():
        staging = path.with_name(f".{path.name}.making")
        if staging.is_dir():
            shutil.rmtree(staging)
        staging.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path}", file=sys.stderr, flush=True)
        make(staging)
        staging.rename(path)
    return path


def hugging_face(model: str) -> Path:
    """A folder of config.json, safetensors and tokenizer.json in bfloat16."""
    prepare(model)
    return once(folder(model) / "hf", _write_tiny) if model == TINY else folder(model) / "hf"


def command(*argv: str | Path) -> None:
    """Runs a converter; what it said is shown when it fails."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")


# -- writing safetensors ----------------------------------------------------------------------------------------------


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def write_safetensors(file: Path, tensors: list[tuple[str, tuple[int, ...]]], value: Callable[[str], Any]) -> None:
    """Header, then each tensor in bfloat16 as it is made: never more than one of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name, _ in tensors:
            out.write(bfloat16(value(name)).tobytes())


LAYER_NAMES: Final = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def hugging_face_name(canonical: str) -> str:
    """What Llama's folders call a tensor."""
    if canonical == "embedding":
        return "model.embed_tokens.weight"
    if canonical == "output_norm":
        return "model.norm.weight"
    _, layer, name = canonical.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[name]}.weight"


def halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k as GGUF's Llama keeps them (pairs side by side), in Hugging Face's order (half a head apart)."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _write_tiny(path: Path) -> None:
    from farthing.llm.checkpoints.opening import open_checkpoint
    from farthing.llm.spec import RotaryKind, tensor_shapes

    checkpoint = open_checkpoint(source(TINY))
    spec = checkpoint.spec
    names = {hugging_face_name(name): name for name in tensor_shapes(spec)}
    heads = {"q": spec.heads, "k": spec.kv_heads} if spec.rotary_kind is RotaryKind.INTERLEAVED else {}

    def value(name: str) -> NDArray[np.float32]:
        tensor, part = checkpoint.tensor(names[name]), names[name].rpartition(".")[2]
        return halves(tensor, heads[part]) if part in heads else tensor

    path.mkdir()
    shapes = [(name, tensor_shapes(spec)[names[name]]) for name in names]
    write_safetensors(path / "model.safetensors", shapes, value)
    config = {
        **{key: LARGE_CONFIG[key] for key in ("architectures", "model_type", "hidden_act", "torch_dtype")},
        "hidden_size": spec.width,
        "intermediate_size": spec.ffn_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.context_tokens,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": spec.ties_head,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(path, spec.vocabulary)


def _write_tokenizer(path: Path, vocabulary: int) -> None:
    """SmolLM2's own, filled up with words that nothing is ever split into, for models that have more tokens."""
    from farthing.llm.checkpoints.opening import open_checkpoint

    library = open_checkpoint(prepare(TINY)).tokenizer()._library  # what it wraps; nobody else needs to see it
    described = json.loads(library.to_str())
    words = described["model"]["vocab"]
    for token in range(max(words.values()) + 1, vocabulary):
        words[f"\u0120word{token}"] = token
    (path / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<|endoftext|>"}))


def _write_large(path: Path) -> None:
    c = LARGE_CONFIG
    width, ffn = c["hidden_size"], c["intermediate_size"]
    kv = c["num_key_value_heads"] * c["head_dim"]

    def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (c["vocab_size"], width)
        shapes = {
            "attention_norm": (width,),
            "q": (width, width),
            "k": (kv, width),
            "v": (kv, width),
            "o": (width, width),
            "ffn_norm": (width,),
            "gate": (ffn, width),
            "up": (ffn, width),
            "down": (width, ffn),
        }
        for layer in range(c["num_hidden_layers"]):
            for name, shape in shapes.items():
                yield hugging_face_name(f"layers.{layer}.{name}"), shape
        yield "model.norm.weight", (width,)

    listed = dict(tensors())
    random = np.random.default_rng(SEED)

    def value(name: str) -> NDArray[np.float32]:
        shape = listed[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return random.standard_normal(shape, np.float32) * np.float32(0.02)

    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    print(f"making {path}", file=sys.stderr, flush=True)
    write_safetensors(path / "model.safetensors", list(listed.items()), value)
    _write_tokenizer(path, c["vocab_size"])
    (path / "config.json").write_text(json.dumps(c, indent=1))  # last: it says that the rest is there
