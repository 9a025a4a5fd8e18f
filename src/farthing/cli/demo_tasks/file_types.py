"""What kind of file is this? Magika on the first and last kilobyte of each.

Features of its third generation of models: up to 4096 bytes from either end, white space stripped at the outer side,
then the first 1024 of the one and the last 1024 of the other; 256 stands where there is no byte.
"""

import io
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers
from farthing.repository.samples import input_folder, sample_path
from farthing.types.tensors import Tensor

BLOCK_BYTES: Final = 4096
KEPT_BYTES: Final = 1024
NO_BYTE: Final = 256
SCORE_AT_LEAST: Final = 0.9


class FileTypes:
    sample = "magika"
    question = "what kind of file is this?"

    def __init__(self) -> None:
        folder = sample_path(self.sample)
        self._labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        photographs = input_folder("photographs")
        self._files = [
            ("retina.jpg", (photographs / "retina.jpg").read_bytes(), "jpeg"),
            ("coffee.png", (photographs / "coffee.png").read_bytes(), "png"),
            ("sample.wav", (input_folder("telephone-call") / "sample.wav").read_bytes(), "wav"),
            ("photographs.zip", _archive(photographs), "zip"),
            (Path(__file__).name, Path(__file__).read_bytes(), "python"),
            ("model.onnx", (folder / "1" / "model.onnx").read_bytes(), "onnx"),
        ]
        self._rows = np.stack([features(content) for _, content, _ in self._files])

    def check(self, server: Infers) -> list[Finding]:
        scores = server.infer("magika", {"bytes": self._rows})["target_label"]
        findings = []
        for (name, _, expected), row in zip(self._files, scores, strict=True):
            found, score = self._labels[int(row.argmax())], float(row.max())
            findings.append(
                Finding(
                    input=name,
                    answer=f"{found} {score:.3f}",
                    expected=expected,
                    is_right=found == expected and score >= SCORE_AT_LEAST,
                )
            )
        return findings

    def ask(self, server: Infers) -> None:
        server.infer("magika", {"bytes": self._rows[:1]})


def features(content: bytes) -> Tensor:
    """The model's input row for a file's content."""
    first = content[:BLOCK_BYTES].lstrip()[:KEPT_BYTES]
    last = content[-BLOCK_BYTES:].rstrip()[-KEPT_BYTES:]
    row = np.full(2 * KEPT_BYTES, NO_BYTE, np.int32)
    row[: len(first)] = list(first)
    row[len(row) - len(last) :] = list(last)
    return row


def _archive(folder: Path) -> bytes:
    """Two photographs in a ZIP archive; the same bytes every time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("retina.jpg", "rocket.jpg"):
            archive.writestr(zipfile.ZipInfo(f"photographs/{name}"), (folder / name).read_bytes())
    return packed.getvalue()
