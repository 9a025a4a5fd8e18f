"""From the likeliest character at each place to text: connectionist temporal classification."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from farthing import Context, Tensor

SCORE_FROM: Final = 0.5
"""A line of which the model is less sure is none."""


class Read:
    """N lines' characters and chances to the M <= N lines that could be read, each with its box."""

    inputs: ClassVar = [
        Tensor("character", "INT64", [-1]),
        Tensor("length", "INT64", [-1, 1]),
        Tensor("chance", "FP32", [-1]),
        Tensor("box", "FP32", [-1, 4, 2]),
    ]
    outputs: ClassVar = [
        Tensor("text", "BYTES", [-1]),
        Tensor("score", "FP32", [-1]),
        Tensor("box", "FP32", [-1, 4, 2]),
    ]
    max_batch_size = 0

    def load(self, context: Context) -> None:
        """Reads the alphabet; index 0 is no character."""
        alphabet = (context.folder / "characters.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self._characters = np.array(["", *alphabet], object)

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        ends = np.cumsum(inputs["length"].ravel())
        texts, scores = [], []
        start = 0
        for end in ends.tolist():
            text, score = self._decode(inputs["character"][start:end], inputs["chance"][start:end])
            texts.append(text.encode())
            scores.append(score)
            start = end
        kept = np.array(scores, np.float32) >= SCORE_FROM
        text_column = np.empty(len(texts), object)
        text_column[:] = texts
        return {"text": text_column[kept], "score": np.array(scores, np.float32)[kept], "box": inputs["box"][kept]}

    def _decode(self, characters: Any, chances: Any) -> tuple[str, float]:
        """Repeats are one character, index 0 is none; the score is the mean chance of those that are left."""
        is_new = np.concatenate([[True], characters[1:] != characters[:-1]])[: len(characters)] & (characters != 0)
        if not is_new.any():
            return "", 0.0
        return "".join(self._characters[characters[is_new]]), float(chances[is_new].mean())
