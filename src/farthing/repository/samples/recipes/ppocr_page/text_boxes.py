"""From a map of where text is to upright pictures of its lines.

The detector marks the core of each line (differentiable binarisation). A core becomes the smallest rectangle around
it, and the rectangle grows by area x ratio / perimeter on every side to hold the letters whole: it is gone around
with a round pen, on whole pixels. That is how the recogniser's training data was cut, and half a pixel shows in its
scores; for a rectangle it takes four circles and no polygon library.
"""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]

TEXT_FROM: Final = 0.3
BOX_SCORE_FROM: Final = 0.5
GROWTH: Final = 1.6
CORE_SIDE_MIN: Final = 3.0
BOX_SIDE_MIN: Final = 5.0
PEN_ANGLES: Final = np.linspace(0, 2 * np.pi, 64, endpoint=False)
BOXES_MAX: Final = 1000
LINE_APART: Final = 10
"""Boxes whose tops are closer than so many pixels are of one line, and read from left to right."""
UPRIGHT_ASPECT: Final = 1.5
"""A crop that much higher than wide is a line written downwards."""


def boxes_in(text_map: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Boxes of four corners (from top left, clockwise) in a picture of that height and width, in reading order."""
    to_picture = np.array([size[1] / text_map.shape[1], size[0] / text_map.shape[0]], np.float32)
    # One dilation by a 2 x 2 square joins letters that the threshold cut apart.
    mask = cv2.dilate((text_map > TEXT_FROM).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours[:BOXES_MAX]:
        core = cv2.minAreaRect(contour)
        if min(core[1]) < CORE_SIDE_MIN or _score(text_map, core) < BOX_SCORE_FROM:
            continue
        grown = _grown(core)
        if min(grown[1]) < BOX_SIDE_MIN:
            continue
        corners = np.clip(np.round(cv2.boxPoints(grown) * to_picture), 0, [size[1] - 1, size[0] - 1])
        boxes.append(_clockwise(corners.astype(np.float32)))
    return _in_reading_order(boxes)


def crop(picture: Tensor, box: Tensor) -> Tensor:
    """What is inside the box, as if looked at straight on."""
    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    straighten = cv2.getPerspectiveTransform(box, corners)
    straight = np.asarray(
        cv2.warpPerspective(
            picture, straighten, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
    )
    return np.rot90(straight) if height >= UPRIGHT_ASPECT * width else straight


def _score(text_map: Tensor, rectangle: Any) -> float:
    """The mean of the map inside the rectangle."""
    corners = cv2.boxPoints(rectangle)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    window = text_map[top:bottom, left:right]
    inside = np.zeros(window.shape, np.uint8)
    cv2.fillPoly(inside, [(corners - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(window, inside)[0])


def _grown(rectangle: Any) -> Any:
    width, height = rectangle[1]
    distance = width * height * GROWTH / (2 * (width + height))
    corners = np.trunc(cv2.boxPoints(rectangle))
    pen = distance * np.stack([np.cos(PEN_ANGLES), np.sin(PEN_ANGLES)], axis=-1)
    outline = np.round(corners[:, None] + pen).reshape(-1, 2)
    return cv2.minAreaRect(outline.astype(np.float32))


def _clockwise(corners: Tensor) -> Tensor:
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    top_left, bottom_left = left[np.argsort(left[:, 1], kind="stable")]
    top_right, bottom_right = right[np.argsort(right[:, 1], kind="stable")]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)


def _in_reading_order(boxes: list[Tensor]) -> list[Tensor]:
    lines: list[list[Tensor]] = []
    for box in sorted(boxes, key=lambda box: float(box[0][1])):
        if lines and box[0][1] - lines[-1][-1][0][1] < LINE_APART:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: float(box[0][0]))]
