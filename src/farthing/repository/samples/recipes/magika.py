"""Magika: the class names of its output, as a label file beside the model."""

import json
from pathlib import Path
from typing import Final

MODEL_TOML: Final = """\
# The first and last 1024 bytes of a file, white space stripped, 256 for "no byte"; 214 kinds of file out.
max_batch_size = 256

[[input]]
name = "bytes"
data_type = "TYPE_INT32"
dims = [2048]

[[output]]
name = "target_label"
data_type = "TYPE_FP32"
dims = [214]
label_filename = "labels.txt"
"""


def build(raw: Path, out: Path) -> None:
    """Writes `magika/labels.txt` and what makes the server use it."""
    labels = json.loads((raw / "config.json").read_text(encoding="utf-8"))["target_labels_space"]
    (out / "magika" / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    (out / "magika" / "model.toml").write_text(MODEL_TOML, encoding="utf-8")
