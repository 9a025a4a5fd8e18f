"""all-MiniLM-L6-v2: safetensors into an ONNX graph from token ids to a sentence's unit vector.

A BERT encoder, then the mean over the tokens that are not padding, scaled to length one. Padding gets an attention
score so low that its weight is exactly zero in float32, so a sentence's vector does not depend on its neighbours.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.repository.samples.recipes.graph import Graph, int64

PADDING_SCORE: Final = np.float32(-1e9)

MODEL_TOML: Final = """\
# Rows of one request are padded to its longest sentence; requests padded to different lengths do not share a run.
max_batch_size = 64

[[input]]
name = "input_ids"
data_type = "TYPE_INT64"
dims = [-1]

[[input]]
name = "attention_mask"
data_type = "TYPE_INT64"
dims = [-1]

[[output]]
name = "embedding"
data_type = "TYPE_FP32"
dims = [384]
"""


def build(raw: Path, out: Path) -> None:
    """Writes `minilm-l6`; its tokenizer is put beside it by the catalogue."""
    from safetensors.numpy import load_file

    folder = out / "minilm-l6"
    config = json.loads((raw / "config.json").read_text(encoding="utf-8"))
    _Encoder(load_file(raw / "model.safetensors"), config).save(folder / "1" / "model.onnx")
    (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")


class _Encoder:
    def __init__(self, weights: dict[str, Any], config: dict[str, Any]) -> None:
        self._weights = weights
        self._graph = Graph("all_minilm_l6_v2")
        self._width = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])

    def save(self, path: Path) -> None:
        graph = self._graph
        mask = graph.add("Cast", "attention_mask", to=1)
        missing = graph.add("Sub", graph.constant(np.float32(1)), mask)
        missing = graph.add("Unsqueeze", missing, graph.constant(int64(1, 2)))  # over heads and over queries
        scores = graph.add("Mul", missing, graph.constant(PADDING_SCORE))
        x = self._embeddings()
        for layer in range(self._layers):
            x = self._layer(x, f"encoder.layer.{layer}", scores)
        self._mean_vector(x, mask)
        tokens = ("INT64", ("batch", "tokens"))
        graph.save(
            path, {"input_ids": tokens, "attention_mask": tokens}, {"embedding": ("FP32", ("batch", self._width))}
        )

    def _embeddings(self) -> str:
        graph, at = self._graph, "embeddings"
        words = graph.add("Gather", self._weight(f"{at}.word_embeddings.weight"), "input_ids")
        kind = graph.constant(self._weights[f"{at}.token_type_embeddings.weight"][0])  # all of one sentence: type 0
        start = graph.constant(int64(0))
        tokens = graph.add("Shape", "input_ids", start=1, end=2)
        positions = graph.add("Slice", self._weight(f"{at}.position_embeddings.weight"), start, tokens, start)
        total = graph.add("Add", graph.add("Add", words, kind), positions)
        return self._norm(total, f"{at}.LayerNorm")

    def _layer(self, x: str, at: str, padding_scores: str) -> str:
        graph = self._graph
        queries, keys, values = (
            self._split_heads(self._linear(x, f"{at}.attention.self.{part}"), order)
            for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3)))
        )
        scale = np.float32((self._width // self._heads) ** -0.5)
        scores = graph.add("Mul", graph.add("MatMul", queries, keys), graph.constant(scale))
        attention = graph.add("Softmax", graph.add("Add", scores, padding_scores), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", attention, values), perm=[0, 2, 1, 3])
        mixed = graph.add("Reshape", mixed, graph.constant(int64(0, 0, self._width)))
        attended = self._linear(mixed, f"{at}.attention.output.dense")
        x = self._norm(graph.add("Add", attended, x), f"{at}.attention.output.LayerNorm")
        inner = self._gelu(self._linear(x, f"{at}.intermediate.dense"))
        return self._norm(graph.add("Add", self._linear(inner, f"{at}.output.dense"), x), f"{at}.output.LayerNorm")

    def _mean_vector(self, x: str, mask: str) -> None:
        graph = self._graph
        weights = graph.add("Unsqueeze", mask, graph.constant(int64(2)))
        over_tokens = graph.constant(int64(1))
        total = graph.add("ReduceSum", graph.add("Mul", x, weights), over_tokens, keepdims=0)
        count = graph.add("ReduceSum", weights, over_tokens, keepdims=0)
        graph.add("LpNormalization", graph.add("Div", total, count), name="embedding", axis=-1, p=2)

    def _split_heads(self, x: str, order: tuple[int, ...]) -> str:
        shape = self._graph.constant(int64(0, 0, self._heads, self._width // self._heads))
        return self._graph.add("Transpose", self._graph.add("Reshape", x, shape), perm=list(order))

    def _linear(self, x: str, layer: str) -> str:
        weight = self._graph.constant(self._weights[f"{layer}.weight"].T, f"{layer}.weight")
        return self._graph.add("Add", self._graph.add("MatMul", x, weight), self._weight(f"{layer}.bias"))

    def _norm(self, x: str, layer: str) -> str:
        weight, bias = self._weight(f"{layer}.weight"), self._weight(f"{layer}.bias")
        return self._graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=self._epsilon)

    def _gelu(self, x: str) -> str:
        graph = self._graph
        half = graph.add("Mul", x, graph.constant(np.float32(0.5)))
        spread = graph.add("Erf", graph.add("Mul", x, graph.constant(np.float32(2**-0.5))))
        return graph.add("Mul", half, graph.add("Add", spread, graph.constant(np.float32(1))))

    def _weight(self, name: str) -> str:
        return self._graph.constant(self._weights[name], name)
