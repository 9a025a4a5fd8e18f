"""What is in the picture? EfficientNet-Lite0 over photographs, 1000 classes."""

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers, is_near, softmax
from farthing.repository.samples import input_folder, sample_path
from farthing.types.tensors import Tensor

SIDE: Final = 224
KEPT: Final = 0.875
"""Share of the shorter side that the centre crop keeps, as in the network's training."""
TOLERANCE: Final = 0.02
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

EXPECTED: Final = (
    # file, class, probability
    ("coffee.png", "espresso", 0.947),
    ("chelsea.png", "tiger cat", 0.406),
    ("rocket.jpg", "missile", 0.284),
    ("motorcycle_left.png", "moped", 0.539),
    ("china.jpg", "palace", 0.257),
    ("flower.jpg", "daisy", 0.280),
)


class Pictures:
    sample = "effnet-lite0"
    question = "what is in the picture?"

    def __init__(self) -> None:
        self._labels = (sample_path(self.sample) / "labels.txt").read_text(encoding="utf-8").splitlines()
        self._pictures = [prepare(read_picture(name)) for name, _, _ in EXPECTED]

    def check(self, server: Infers) -> list[Finding]:
        logits = server.infer("effnet-lite0", {"image": np.stack(self._pictures)})["logits"]
        findings = []
        for (name, label, probability), row in zip(EXPECTED, softmax(logits), strict=True):
            found, score = self._labels[int(row.argmax())], float(row.max())
            findings.append(
                Finding(
                    input=name,
                    answer=f"{found} {score:.3f}",
                    expected=f"{label} {probability:.3f}",
                    is_right=found == label and is_near(score, probability, TOLERANCE),
                )
            )
        return findings

    def ask(self, server: Infers) -> None:
        server.infer("effnet-lite0", {"image": self._pictures[0][None]})


def read_picture(name: str) -> Tensor:
    """A photograph by file name, as rows of blue, green and red; china and flower come with scikit-learn."""
    if name in {"china.jpg", "flower.jpg"}:
        import sklearn.datasets

        path = Path(sklearn.datasets.__file__).parent / "images" / name
    else:
        path = input_folder("photographs") / name
    content = np.frombuffer(_without_profile(path.read_bytes()), np.uint8)
    picture: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert picture is not None, path
    return np.asarray(picture)


def _without_profile(content: bytes) -> bytes:
    """A PNG less its colour profile, which OpenCV does not use but complains about on stderr (page.png's is bad)."""
    start = len(PNG_SIGNATURE)
    if not content.startswith(PNG_SIGNATURE):
        return content
    kept = [PNG_SIGNATURE]
    while start < len(content):  # chunks: length, four letters, data, checksum
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] != b"iCCP":
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def prepare(picture: Tensor) -> Tensor:
    """The network's input: centre crop, 224 x 224, red first, channels first, scaled to [-1, 1]."""
    height, width = picture.shape[:2]
    side = int(min(height, width) * KEPT)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side, ::-1]
    small = np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.ascontiguousarray(small.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)
