"""CenterFace: the same network, declared for pictures of any number and size.

The file says ten pictures of 32 x 32. Nothing inside depends on that, so only the declarations change, and the
shapes that were inferred from them go.
"""

from pathlib import Path
from typing import Final

import onnx

SHAPES: Final[dict[str, tuple[str | int, ...]]] = {
    "input.1": ("batch", 3, "height", "width"),
    "537": ("batch", 1, "rows", "columns"),
    "538": ("batch", 2, "rows", "columns"),
    "539": ("batch", 2, "rows", "columns"),
    "540": ("batch", 10, "rows", "columns"),
}
"""Picture; then heat map, scale, offset and five landmarks, one cell for every four pixels."""


def build(raw: Path, out: Path) -> None:
    """Writes `centerface`."""
    model = onnx.load(raw / "centerface.onnx")
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in SHAPES:
            continue  # old files list their weights as inputs too
        for dimension, size in zip(value.type.tensor_type.shape.dim, SHAPES[value.name], strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
            else:
                dimension.dim_value = size
    onnx.checker.check_model(model)
    path = out / "centerface" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
