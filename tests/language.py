"""A tiny language model with real files: random weights, one token a byte, a chat template; and servers that have it."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tests.serving import Live, serving
from tokenizers import decoders, models, pre_tokenizers

from farthing.llm.runners.reference import ReferenceRunner
from farthing.llm.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SPECIAL = ("<|end|>", "<|turn|>", "<|pad|>")
END, TURN, PAD = 256, 257, 258
VOCABULARY = 259
CONTEXT = 512


def write_tiny_model(
    folder: Path, *, seed: int = 3, context: int = CONTEXT, template: str = TEMPLATE, defaults: Mapping[str, Any] = {}
) -> Path:
    """A Llama of 2 layers in Hugging Face's layout. Untrained: what it says is noise, always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    width, heads, kv_heads, ffn, layers = 32, 4, 2, 64, 2
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": END,
        "bos_token_id": TURN,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    head = width // heads
    tensors = {
        "model.embed_tokens.weight": weights(VOCABULARY, width) * 4,
        "model.norm.weight": np.ones(width, np.float32),
    }
    tensors["model.embed_tokens.weight"][[TURN, PAD]] *= 0.01  # so that it does not talk in control tokens
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": np.ones(width, np.float32),
            f"{at}.post_attention_layernorm.weight": np.ones(width, np.float32),
            f"{at}.self_attn.q_proj.weight": weights(heads * head, width) * 2,
            f"{at}.self_attn.k_proj.weight": weights(kv_heads * head, width) * 2,
            f"{at}.self_attn.v_proj.weight": weights(kv_heads * head, width),
            f"{at}.self_attn.o_proj.weight": weights(width, heads * head) * 2,
            f"{at}.mlp.gate_proj.weight": weights(ffn, width) * 2,
            f"{at}.mlp.up_proj.weight": weights(ffn, width) * 2,
            f"{at}.mlp.down_proj.weight": weights(width, ffn) * 2,
        }
    save_file(tensors, folder / "model.safetensors")
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END, **defaults}))
    return folder


def _tokenizer() -> tokenizers.Tokenizer:
    # GPT-2's alphabet: printable bytes stand for themselves, the others for letters from 256 on. Here id = byte.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = {chr(byte if byte in plain else next(others)): byte for byte in range(256)}
    library = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return library


def tiny_tokenizer() -> Tokenizer:
    """That of the tiny model: a token a byte."""
    return Tokenizer(_tokenizer(), eos_ids=[END], bos_id=TURN)


@contextmanager
def talking(folder: Path, *, context: int = CONTEXT, template: str = TEMPLATE, **settings: Any) -> Iterator[Live]:
    """A server with a tiny model called `tiny` and an ONNX model called `mlp`."""
    from tests.models import save, tiny_mlp

    write_tiny_model(folder / "tiny", context=context, template=template)
    save(folder / "mlp", tiny_mlp())
    with serving(folder, **settings) as live:
        yield live


class PacedRunner:
    """A runner whose steps take time, or wait, or fail, as a test says; the work is the reference runner's."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.spec, self.block_tokens, self.blocks = runner.spec, runner.block_tokens, runner.blocks
        self.step_s = 0.0
        self.fails_after: int | None = None
        """Steps that go well before all others fail."""
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0

    def run(self, step: Any) -> Any:
        self.gate.wait(20)
        time.sleep(self.step_s)
        self.steps += 1
        if self.fails_after is not None and self.steps > self.fails_after:
            raise RuntimeError("the machine is on fire")
        return self.runner.run(step)

    def copy_block(self, source: int, target: int) -> None:
        self.runner.copy_block(source, target)

    def close(self) -> None:
        self.runner.close()


@contextmanager
def paced(folder: Path, **settings: Any) -> Iterator[tuple[Live, PacedRunner]]:
    """The same server, and the runner of its tiny model."""
    made: list[PacedRunner] = []

    def open_runner(*args: Any) -> PacedRunner:
        made.append(PacedRunner(ReferenceRunner(args[0], blocks=args[2])))
        return made[-1]

    with (
        mock.patch("farthing.runtime.load_language_model.open_runner", open_runner),
        talking(folder, **settings) as live,
    ):
        yield live, made[0]
        made[0].gate.set()
        made[0].step_s = 0.0
