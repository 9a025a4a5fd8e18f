"""How many operations a row takes, and what share of the machine's peak a rate is.

Products and sums of convolutions and matrix products, two operations each, the shapes as they are in a run; all else is
little beside them. What lies inside branches of a graph is not counted.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PEAK_PER_CORE: Final = {"f32": 0.23e12, "bf16": 0.46e12, "int8": 1.0e12}
"""Of a Zen 5 server core: products of 512-bit vectors as measured in loops without memory (see the design's floors);
f32 has half of bf16's lanes."""


def operations(file: Path, row: dict[str, NDArray[Any]]) -> float:
    """Of one run on this row; 0 for what is no network of ONNX."""
    if file.suffix != ".onnx":
        return 0.0
    import onnx
    import onnxruntime

    model = onnx.load(str(file))
    known = {port.name for port in (*model.graph.input, *model.graph.output)}
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    wanted = {name for node in nodes for name in (*node.input[:2], node.output[0])}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted -= weights.keys()
    made = {name for node in model.graph.node for name in node.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in sorted((wanted & made) - known)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    shapes = weights | {name: array.shape for name, array in row.items()}
    shapes |= {name: array.shape for name, array in zip(names, session.run(names, row), strict=True)}
    total = 0.0
    for node in nodes:
        out, right = shapes[node.output[0]], shapes[node.input[1]]
        if node.op_type == "Conv":
            each = float(np.prod(right[1:]))
        elif node.op_type == "ConvTranspose":
            each = float(np.prod(right)) / out[1]
        else:
            each = float(shapes[node.input[0]][-1])
        total += 2 * float(np.prod(out)) * each
    return total
