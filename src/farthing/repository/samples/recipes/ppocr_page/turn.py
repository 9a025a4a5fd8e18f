"""Lines turned upright and made what the recogniser reads: 48 pixels high, each as wide as it has to be."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from farthing import Tensor

LINE_HEIGHT: Final = 48
WIDTH_MIN: Final = 320
TOGETHER: Final = 6
"""Lines of a page that are padded to one width, those of like width together, as PP-OCR does: the recogniser sees the
padding, and the published results were made with it."""
UPSIDE_DOWN_FROM: Final = 0.9


class Turn:
    """N crops and N directions to N rows FP32 [3, 48, width]."""

    inputs: ClassVar = [
        Tensor("line", "UINT8", [-1]),
        Tensor("line_shape", "INT64", [-1, 3]),
        Tensor("direction", "FP32", [-1, 2]),
    ]
    outputs: ClassVar = [Tensor("row", "FP32", [-1]), Tensor("row_shape", "INT64", [-1, 3])]
    max_batch_size = 0

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        shapes = inputs["line_shape"]
        ends = np.cumsum(shapes.prod(axis=1))[:-1]
        lines = [line.reshape(shape) for line, shape in zip(np.split(inputs["line"], ends), shapes, strict=False)]
        widths = padded_widths([line.shape[1] / line.shape[0] for line in lines])
        rows = np.zeros(3 * LINE_HEIGHT * sum(widths), np.float32)
        start = 0
        for line, direction, width in zip(lines, inputs["direction"], widths, strict=True):
            upright = line[::-1, ::-1] if direction[1] > UPSIDE_DOWN_FROM else line
            filled = min(width, math.ceil(LINE_HEIGHT * line.shape[1] / line.shape[0]))
            scaled = np.asarray(cv2.resize(upright, (filled, LINE_HEIGHT)), np.float32)
            end = start + 3 * LINE_HEIGHT * width
            row = rows[start:end].reshape(3, LINE_HEIGHT, width)
            row[:, :, :filled] = (scaled / 255 - 0.5).transpose(2, 0, 1) / 0.5
            start = end
        return {
            "row": rows,
            "row_shape": np.array([(3, LINE_HEIGHT, width) for width in widths], np.int64).reshape(-1, 3),
        }


def padded_widths(aspects: list[float]) -> list[int]:
    """The width of each line, by its width over its height: that of the widest among those of like width."""
    widths = [0] * len(aspects)
    order = sorted(range(len(aspects)), key=aspects.__getitem__)
    for start in range(0, len(order), TOGETHER):
        group = order[start : start + TOGETHER]
        width = max(WIDTH_MIN, int(LINE_HEIGHT * max(aspects[line] for line in group)))
        for line in group:
            widths[line] = width
    return widths
