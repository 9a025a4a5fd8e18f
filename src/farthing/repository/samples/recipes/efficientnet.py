"""EfficientNet-Lite0: weights of a `.pth` file into an ONNX graph, with class names beside it.

The network is a stem, sixteen inverted-residual blocks and a head; the Lite family has no squeeze-and-excitation and
clips at 6. Batch normalisation is folded into the convolution before it: y = g (Wx - m) / sqrt(v + e) + b.
"""

import json
from pathlib import Path
from typing import Final

import numpy as np

from farthing.repository.samples.recipes.graph import Graph
from farthing.repository.samples.recipes.state_dict import Weights, read_state_dict

NORM_EPSILON: Final = 1e-3

BLOCKS: Final = (
    # repeats, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS: Final = 32

MODEL_TOML: Final = """\
# EfficientNet-Lite0, 224 x 224 RGB scaled to [-1, 1]; ask for `classification` and get class names.
max_batch_size = 64

[[input]]
name = "image"
data_type = "TYPE_FP32"
dims = [3, 224, 224]

[[output]]
name = "logits"
data_type = "TYPE_FP32"
dims = [1000]
label_filename = "labels.txt"
"""


def build(raw: Path, out: Path) -> None:
    """Writes `effnet-lite0` with its class names."""
    folder = out / "effnet-lite0"
    _Network(read_state_dict(raw / "efficientnet-lite0.pth")).save(folder / "1" / "model.onnx")
    names = json.loads((raw / "labels.json").read_text(encoding="utf-8"))
    # A line a class; the first of its synonyms, as label files have it.
    lines = [names[str(index)].split(",")[0] for index in range(len(names))]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")


class _Network:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._graph = Graph("efficientnet_lite0")
        self._zero = self._graph.constant(np.float32(0), "zero")
        self._six = self._graph.constant(np.float32(6), "six")

    def save(self, path: Path) -> None:
        graph, weights = self._graph, self._weights
        x = self._clip(self._convolution("image", "_conv_stem", "_bn0", kernel=3, stride=2))
        channels, index = STEM_CHANNELS, 0
        for repeats, kernel, stride, expansion, channels_out in BLOCKS:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                y = self._block(x, f"_blocks.{index}", kernel, step, expansion, channels * expansion)
                # The shortcut exists only where input and output are of one shape.
                x = graph.add("Add", x, y) if step == 1 and channels == channels_out else y
                channels, index = channels_out, index + 1
        x = self._clip(self._convolution(x, "_conv_head", "_bn1", kernel=1, stride=1))
        features = graph.add("Flatten", graph.add("GlobalAveragePool", x))
        classes, bias = graph.constant(weights["_fc.weight"]), graph.constant(weights["_fc.bias"])
        graph.add("Gemm", features, classes, bias, name="logits", transB=1)
        graph.save(
            path, {"image": ("FP32", ("batch", 3, 224, 224))}, {"logits": ("FP32", ("batch", weights["_fc.bias"].size))}
        )

    def _block(self, x: str, at: str, kernel: int, stride: int, expansion: int, channels: int) -> str:
        if expansion != 1:
            x = self._clip(self._convolution(x, f"{at}._expand_conv", f"{at}._bn0", kernel=1, stride=1))
        depthwise = self._convolution(
            x, f"{at}._depthwise_conv", f"{at}._bn1", kernel=kernel, stride=stride, groups=channels
        )
        return self._convolution(self._clip(depthwise), f"{at}._project_conv", f"{at}._bn2", kernel=1, stride=1)

    def _convolution(self, x: str, layer: str, norm: str, *, kernel: int, stride: int, groups: int = 1) -> str:
        gain, shift, mean, variance = (
            self._weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(variance + NORM_EPSILON)
        weight = (self._weights[f"{layer}.weight"] * scale[:, None, None, None]).astype(np.float32)
        bias = (shift - mean * scale).astype(np.float32)
        return self._graph.add(
            "Conv",
            x,
            self._graph.constant(weight, f"{layer}.weight"),
            self._graph.constant(bias, f"{layer}.bias"),
            name=layer,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            group=groups,
            auto_pad="SAME_UPPER",
        )

    def _clip(self, x: str) -> str:
        return self._graph.add("Clip", x, self._zero, self._six)
