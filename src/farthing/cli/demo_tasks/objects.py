"""What is where in the picture? NanoDet: 80 kinds of object at three scales.

At each cell of each scale the model gives a score a class and, for each side of a box, how likely each of eleven
distances is; the expected distance, in steps of the cell's size, is the side's.
"""

from collections.abc import Mapping
from typing import Final

import cv2
import numpy as np

from farthing.cli.demo_tasks.pictures import read_picture
from farthing.cli.demo_tasks.task import Finding, Infers, is_near, softmax
from farthing.types.tensors import Tensor

SIDE: Final = 416
STRIDES: Final = (8, 16, 32)
DISTANCES: Final = 11
MEAN: Final = np.array([103.53, 116.28, 123.675], np.float32)
DEVIATION: Final = np.array([57.375, 57.12, 58.395], np.float32)
SCORE_FROM: Final = 0.4
OVERLAP_MAX: Final = 0.6
TOLERANCE: Final = 0.02

_COCO: Final = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
LABELS: Final = _COCO.split(",")
"""The classes of the COCO data set, in its order."""

EXPECTED: Final = (
    ("motorcycle_left.png", "motorcycle", 0.793),
    ("camera.png", "person", 0.877),
    ("horse.png", "horse", 0.563),
    ("coffee.png", "cup", 0.532),
    ("astronaut.png", "person", 0.734),
)


class Objects:
    sample = "nanodet-g"
    question = "what is where in the picture?"

    def __init__(self) -> None:
        self._pictures = [read_picture(name) for name, _, _ in EXPECTED]

    def check(self, server: Infers) -> list[Finding]:
        findings = []
        for (name, label, score), picture in zip(EXPECTED, self._pictures, strict=True):
            objects = find_objects(server, picture)
            found = objects[0] if objects else ("nothing", 0.0, (0, 0, 0, 0))
            findings.append(
                Finding(
                    input=name,
                    answer="{} {:.3f} at {}".format(*found),
                    expected=f"{label} {score:.3f}",
                    is_right=found[0] == label and is_near(found[1], score, TOLERANCE),
                )
            )
        return findings

    def ask(self, server: Infers) -> None:
        find_objects(server, self._pictures[0])


def find_objects(server: Infers, picture: Tensor) -> list[tuple[str, float, tuple[int, int, int, int]]]:
    """Name, score and box (left, top, width, height) of every object, most certain first."""
    return objects_in(server.infer("nanodet-g", {"image": pixels_of(picture)}), *picture.shape[:2])


def pixels_of(picture: Tensor) -> Tensor:
    """A picture (height, width, 3; blue first) as the network wants it: 1, 3, 416, 416."""
    pixels = (np.asarray(cv2.resize(picture, (SIDE, SIDE)), np.float32) - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def objects_in(
    outputs: Mapping[str, Tensor], height: int, width: int
) -> list[tuple[str, float, tuple[int, int, int, int]]]:
    """As `find_objects`, from what the network answered for a picture of that size."""
    boxes, scores, labels = [], [], []
    for stride in STRIDES:
        classes = outputs[f"classes_{stride}"][0]
        best = classes.max(axis=1)
        found = np.flatnonzero(best > SCORE_FROM)
        boxes.append(_boxes(outputs[f"boxes_{stride}"][0][found], found, stride))
        scores.append(best[found])
        labels.append(classes[found].argmax(axis=1))
    all_boxes, all_scores, all_labels = np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)
    if not len(all_scores):
        return []
    kept = cv2.dnn.NMSBoxesBatched(
        all_boxes.tolist(), all_scores.tolist(), all_labels.tolist(), SCORE_FROM, OVERLAP_MAX
    )
    to_picture = np.array([width / SIDE, height / SIDE] * 2)
    return [
        (
            LABELS[all_labels[index]],
            float(all_scores[index]),
            tuple((all_boxes[index] * to_picture).round().astype(int).tolist()),
        )
        for index in sorted(kept, key=lambda index: -all_scores[index])
    ]


def _boxes(bins: Tensor, cells: Tensor, stride: int) -> Tensor:
    """Left, top, width and height around the cells' centres, in the network's pixels."""
    distances = softmax(bins.reshape(-1, 4, DISTANCES)) @ np.arange(DISTANCES) * stride
    left, top, right, bottom = distances.T
    columns = SIDE // stride
    x, y = (cells % columns + 0.5) * stride, (cells // columns + 0.5) * stride
    return np.stack([x - left, y - top, left + right, top + bottom], axis=1)
