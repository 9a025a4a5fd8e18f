"""What does the page say? PP-OCRv4: find the lines, turn those upside down, read them.

    page -> ppocr-det -> a map of text -> boxes -> crops -> ppocr-cls -> upright crops -> ppocr-rec -> text

The client drives the three models. The geometry between them is in `text_boxes`.
"""

import math
from typing import Final

import cv2
import numpy as np

from farthing.cli.demo_tasks.pictures import read_picture
from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.cli.demo_tasks.text_boxes import boxes_in, crop
from farthing.repository.samples import sample_paths
from farthing.types.tensors import Tensor

SHORT_SIDE_MIN: Final = 736
SIDE_MULTIPLE: Final = 32
LINE_HEIGHT: Final = 48
ORIENT_WIDTH: Final = 192
READ_WIDTH_MIN: Final = 320
READ_TOGETHER: Final = 6
"""Lines read in one request, those of like width together: all are padded to the widest."""
UPSIDE_DOWN_FROM: Final = 0.9
SCORE_FROM: Final = 0.5
TOLERANCE: Final = 0.01

EXPECTED: Final = (
    ("Region-basedsegmentation", 0.996),
    ("Let us first determine markers of the coins and the", 0.931),
    ("background.These markers are pixels that we can label", 0.958),
    ("unambiguously as either object or background.Here,", 0.954),
    ("histogram ofgreyvalues:", 0.971),
)


class Page:
    sample = "ppocr-v4"
    question = "what does the page say?"

    def __init__(self) -> None:
        recogniser = next(path for path in sample_paths(self.sample) if path.name == "ppocr-rec")
        alphabet = (recogniser / "characters.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self._characters = np.array(["", *alphabet], object)
        self._page = read_picture("page.png")

    def check(self, server: Infers) -> list[Finding]:
        lines = self.read(server, self._page)
        findings = [
            Finding(
                input=f"page.png, line {number}",
                answer=f"{text} {score:.3f}",
                expected=f"{expected_text} {expected_score:.3f}",
                is_right=text == expected_text and is_near(score, expected_score, TOLERANCE),
            )
            for number, ((text, score), (expected_text, expected_score)) in enumerate(
                zip(lines, EXPECTED, strict=False), 1
            )
        ]
        return [
            *findings,
            Finding(
                input="page.png",
                answer=f"{len(lines)} lines",
                expected=f"{len(EXPECTED)} lines",
                is_right=len(lines) == len(EXPECTED),
            ),
        ]

    def ask(self, server: Infers) -> None:
        self.read(server, self._page)

    def read(self, server: Infers, page: Tensor) -> list[tuple[str, float]]:
        """The page's lines from top to bottom, each with how sure the model is of its letters on average."""
        crops = [crop(page, box) for box in find_lines(server, page)]
        if not crops:
            return []
        upright = self._turned(server, crops)
        order = sorted(range(len(upright)), key=lambda index: _aspect(upright[index]))
        lines = [("", 0.0)] * len(upright)
        for start in range(0, len(order), READ_TOGETHER):
            group = order[start : start + READ_TOGETHER]
            for index, line in zip(group, self._recognise(server, [upright[index] for index in group]), strict=True):
                lines[index] = line
        return [(text, score) for text, score in lines if score >= SCORE_FROM]

    def _turned(self, server: Infers, crops: list[Tensor]) -> list[Tensor]:
        rows = np.stack([_fitted(line, ORIENT_WIDTH) for line in crops])
        (directions,) = server.infer("ppocr-cls", {"x": rows}).values()
        is_upside_down = directions[:, 1] > UPSIDE_DOWN_FROM
        return [line[::-1, ::-1] if turn else line for line, turn in zip(crops, is_upside_down, strict=True)]

    def _recognise(self, server: Infers, crops: list[Tensor]) -> list[tuple[str, float]]:
        width = max(READ_WIDTH_MIN, int(LINE_HEIGHT * max(map(_aspect, crops))))
        rows = np.stack([_fitted(line, width) for line in crops])
        (steps,) = server.infer("ppocr-rec", {"x": rows}).values()
        return [self._decode(row) for row in steps]

    def _decode(self, steps: Tensor) -> tuple[str, float]:
        """Connectionist temporal classification: repeats are one character, index 0 is none."""
        best = steps.argmax(axis=1)
        is_new = np.concatenate([[True], best[1:] != best[:-1]]) & (best != 0)
        if not is_new.any():
            return "", 0.0
        return "".join(self._characters[best[is_new]]), float(steps.max(axis=1)[is_new].mean())


def find_lines(server: Infers, page: Tensor) -> list[Tensor]:
    """The corners of every line of text, from top to bottom."""
    height, width = page.shape[:2]
    factor = max(1.0, SHORT_SIDE_MIN / min(height, width))
    height_in, width_in = (
        max(1, round(int(side * factor) / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in (height, width)
    )
    (text_map,) = server.infer("ppocr-det", {"x": _scaled(cv2.resize(page, (width_in, height_in)))[None]}).values()
    return boxes_in(text_map[0, 0], (height, width))


def _fitted(line: Tensor, width: int) -> Tensor:
    """A line at the models' height, as wide as it comes out, zeros to its right."""
    filled = min(width, math.ceil(LINE_HEIGHT * _aspect(line)))
    row = np.zeros((3, LINE_HEIGHT, width), np.float32)
    row[:, :, :filled] = _scaled(cv2.resize(line, (filled, LINE_HEIGHT)))
    return row


def _scaled(picture: "cv2.typing.MatLike") -> Tensor:
    """Channels first, 0..255 to [-1, 1]."""
    return (np.asarray(picture, np.float32) / 255 - 0.5).transpose(2, 0, 1) / 0.5


def _aspect(line: Tensor) -> float:
    return float(line.shape[1] / line.shape[0])
