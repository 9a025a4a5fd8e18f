"""PP-OCRv4: the recogniser's alphabet, taken out of the model file so that clients can read it.

The three models are served as they are. Index 0 of the recogniser's output is "no character"; the alphabet's first
line is index 1, and its last, which we add, is the space.
"""

from pathlib import Path

import onnx


def build(raw: Path, out: Path) -> None:
    """Writes `ppocr-rec/characters.txt`."""
    del raw  # nothing is converted
    model = onnx.load(out / "ppocr-rec" / "1" / "model.onnx")
    characters = next(entry.value for entry in model.metadata_props if entry.key == "character")
    (out / "ppocr-rec" / "characters.txt").write_text(f"{characters.rstrip()}\n \n", encoding="utf-8")
