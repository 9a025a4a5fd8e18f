"""PP-OCRv4: the three networks as they are, what runs between them, and the pipeline that makes them one model.

    page -> ppocr-scale -> ppocr-det -> ppocr-cut -> boxes
                                                  -> N lines, each -> ppocr-cls -> ppocr-turn
            N upright lines, each -> ppocr-rec, ppocr-best -> ppocr-read -> N texts

The files between are in `ppocr_page`. They are no part of the package but a user's Python models: each is copied into a
folder of its own and runs in a process of its own. The recogniser's alphabet is taken out of its file: index 0 of its
output is "no character"; the alphabet's first line is index 1, and its last, which we add, is the space.
"""

import shutil
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, helper

FILES: Final = Path(__file__).parent / "ppocr_page"
GLUE: Final = ("scale", "cut", "turn", "read")


def build(raw: Path, out: Path) -> None:
    """Writes all folders but the three that hold networks, and `ppocr-rec/characters.txt`."""
    del raw  # nothing is converted
    model = onnx.load(out / "ppocr-rec" / "1" / "model.onnx")
    characters = next(entry.value for entry in model.metadata_props if entry.key == "character")
    (out / "ppocr-rec" / "characters.txt").write_text(f"{characters.rstrip()}\n \n", encoding="utf-8")
    for name in GLUE:
        folder = out / f"ppocr-{name}"
        (folder / "1").mkdir(parents=True)
        shutil.copyfile(FILES / f"{name}.py", folder / "1" / "model.py")
    shutil.copyfile(FILES / "text_boxes.py", out / "ppocr-cut" / "text_boxes.py")
    shutil.copyfile(out / "ppocr-rec" / "characters.txt", out / "ppocr-read" / "characters.txt")
    (out / "ppocr-best" / "1").mkdir(parents=True)
    onnx.save(_best(), out / "ppocr-best" / "1" / "model.onnx")
    (out / "ppocr-v4").mkdir()
    shutil.copyfile(FILES / "pipeline.toml", out / "ppocr-v4" / "pipeline.toml")


def _best() -> onnx.ModelProto:
    """`chances` [lines, places, characters] to the likeliest `character` and its `chance`, [lines, places]."""
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["chances"], ["character"], axis=2, keepdims=0),
            helper.make_node("ReduceMax", ["chances"], ["chance"], axes=[2], keepdims=0),
        ],
        "best",
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["lines", "places", "characters"])],
        [
            helper.make_tensor_value_info("character", TensorProto.INT64, ["lines", "places"]),
            helper.make_tensor_value_info("chance", TensorProto.FLOAT, ["lines", "places"]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
