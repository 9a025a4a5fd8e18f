"""Where are the faces? CenterFace maps face centres, a cell for every 4 x 4 pixels, and box sizes."""

from typing import Final, NamedTuple

import cv2
import numpy as np

from farthing.cli.demo_tasks.pictures import read_picture
from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.types.tensors import Tensor

CELL: Final = 4
"""Pixels a side of the picture that one cell of the heat map stands for."""
SIDE_MULTIPLE: Final = 32
SCORE_FROM: Final = 0.5
OVERLAP_MAX: Final = 0.3

BOX_EXPECTED: Final = (181.5, 58.2, 269.9, 177.8)
SCORE_EXPECTED: Final = 0.93
BOX_TOLERANCE: Final = 2.0
SCORE_TOLERANCE: Final = 0.01


class Face(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
    score: float


class Faces:
    sample = "centerface"
    question = "where are the faces?"

    def __init__(self) -> None:
        self._portrait = read_picture("astronaut.png")
        self._no_face = read_picture("coffee.png")

    def check(self, server: Infers) -> list[Finding]:
        faces = find_faces(server, self._portrait)
        is_right = len(faces) == 1 and (
            is_near(faces[0].score, SCORE_EXPECTED, SCORE_TOLERANCE)
            and all(is_near(a, b, BOX_TOLERANCE) for a, b in zip(faces[0][:4], BOX_EXPECTED, strict=True))
        )
        nobody = find_faces(server, self._no_face)
        return [
            Finding(
                input="astronaut.png",
                answer=_in_words(faces),
                expected=_in_words([Face(*BOX_EXPECTED, SCORE_EXPECTED)]),
                is_right=is_right,
            ),
            Finding(input="coffee.png", answer=_in_words(nobody), expected=_in_words([]), is_right=not nobody),
        ]

    def ask(self, server: Infers) -> None:
        find_faces(server, self._portrait)


def find_faces(server: Infers, picture: Tensor) -> list[Face]:
    """Every face, most certain first, in the picture's pixels."""
    height, width = picture.shape[:2]
    height_in, width_in = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
    resized = np.asarray(cv2.resize(picture[..., ::-1], (width_in, height_in)), np.float32)
    outputs = server.infer("centerface", {"input.1": resized.transpose(2, 0, 1)[None]}, ["537", "538", "539"])
    heat, scale, offset = outputs["537"][0, 0], outputs["538"][0], outputs["539"][0]
    rows, columns = np.nonzero(heat > SCORE_FROM)
    heights, widths = np.exp(scale[:, rows, columns]) * CELL
    middle_y = (rows + offset[0, rows, columns] + 0.5) * CELL
    middle_x = (columns + offset[1, rows, columns] + 0.5) * CELL
    left, top = np.clip(middle_x - widths / 2, 0, width_in), np.clip(middle_y - heights / 2, 0, height_in)
    right, bottom = np.minimum(left + widths, width_in), np.minimum(top + heights, height_in)
    boxes = np.stack([left, top, right, bottom], axis=1)
    kept = _most_certain(boxes, heat[rows, columns])
    to_picture = np.array([width / width_in, height / height_in] * 2)
    scores = heat[rows, columns]
    return [Face._make((*(boxes[index] * to_picture).tolist(), float(scores[index]))) for index in kept]


def _most_certain(boxes: Tensor, scores: Tensor) -> list[int]:
    """Of boxes that overlap, the one with the highest score."""
    kept: list[int] = []
    for index in np.argsort(-scores):
        if all(_overlap(boxes[index], boxes[other]) < OVERLAP_MAX for other in kept):
            kept.append(int(index))
    return kept


def _overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    total = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return shared / (total - shared)


def _in_words(faces: list[Face]) -> str:
    if not faces:
        return "no face"
    boxes = ", ".join("({:.0f} {:.0f} {:.0f} {:.0f}) {:.2f}".format(*face) for face in faces)
    return f"{len(faces)} face{'s' if len(faces) > 1 else ''} {boxes}"
