"""What does the page say? PP-OCRv4 as one model: the file goes in, its lines come out.

What happens in between is the pipeline's (`repository/samples/recipes/ppocr_page`).
"""

from typing import Final

import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.repository.samples import input_folder

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
        self._page = (input_folder("photographs") / "page.png").read_bytes()

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

    def read(self, server: Infers, page: bytes) -> list[tuple[str, float]]:
        """The page's lines from top to bottom, each with how sure the model is of its letters on average."""
        answer = server.infer("ppocr-v4", {"page": np.array([page], object)}, ["text", "score"])
        return [(text.decode(), float(score)) for text, score in zip(answer["text"], answer["score"], strict=True)]
