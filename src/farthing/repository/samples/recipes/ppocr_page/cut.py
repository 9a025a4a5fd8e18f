"""From the detector's map to the lines of a page: boxes in reading order, and what is in them."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import cv2
import numpy as np
from text_boxes import boxes_in, crop  # type: ignore[import-not-found]  # beside it in the model's folder

from farthing import Tensor

LINE_HEIGHT: Final = 48
ORIENT_WIDTH: Final = 192


class Cut:
    """Pixels and a map to N boxes, N small pictures for the classifier, and N crops in their own sizes."""

    inputs: ClassVar = [Tensor("pixels", "UINT8", [-1, -1, 3]), Tensor("map", "FP32", [1, 1, -1, -1])]
    outputs: ClassVar = [
        Tensor("box", "FP32", [-1, 4, 2]),
        Tensor("small", "FP32", [-1, 3, LINE_HEIGHT, ORIENT_WIDTH]),
        Tensor("line", "UINT8", [-1]),
        Tensor("line_shape", "INT64", [-1, 3]),
    ]
    max_batch_size = 0

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = inputs["pixels"]
        boxes = boxes_in(inputs["map"][0, 0], pixels.shape[:2])
        lines = [crop(pixels, box) for box in boxes]
        small = np.zeros((len(lines), 3, LINE_HEIGHT, ORIENT_WIDTH), np.float32)
        for row, line in zip(small, lines, strict=True):
            filled = min(ORIENT_WIDTH, math.ceil(LINE_HEIGHT * line.shape[1] / line.shape[0]))
            scaled = np.asarray(cv2.resize(line, (filled, LINE_HEIGHT)), np.float32)
            row[:, :, :filled] = (scaled / 255 - 0.5).transpose(2, 0, 1) / 0.5
        return {
            "box": np.array(boxes, np.float32).reshape(-1, 4, 2),
            "small": small,
            "line": np.concatenate([line.ravel() for line in lines]) if lines else np.empty(0, np.uint8),
            "line_shape": np.array([line.shape for line in lines], np.int64).reshape(-1, 3),
        }
