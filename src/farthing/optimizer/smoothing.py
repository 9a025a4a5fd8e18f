"""Moves the outliers of activations into weights, so that int8 meets neither.

Some channels of what enters a transformer's matrix products are tens of times larger than the others, and one range for
all leaves these with a handful of steps. Dividing a channel by a factor and multiplying its row of the weights by the
same changes nothing in float; it spreads the difficulty over both (Xiao et al., "SmoothQuant", 2023, section 4).

    x [rows, channels] @ w [channels, columns]  =  (x / s) @ (s w),    s = max|x| ** a / max|w| ** (1 - a)

How far to go (`a`) is tried for each product on the calibration samples themselves, by the error of the product with
both sides rounded. Products that share an input share its factors. Quantising comes after, in `optimizer.quantise`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.engines.failure import reason_of
from farthing.types.errors import LoadFailed
from farthing.types.tensors import Tensor

EXPONENTS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Tried beside leaving all as it is. MiniLM's vectors turn by 0.72 % in int8 without, by 0.2 % with 0.7 or 0.8; below
0.6 it is worse than without."""

ROWS_TRIED: Final = 512
"""Of each product, to compare exponents by; more changed no choice of MiniLM's."""

TINY: Final = 1e-5


class Seen:
    """What was seen of one activation: each channel's extremes, and some of its rows."""

    def __init__(self) -> None:
        self.low = np.zeros(0, np.float32)
        self.high = np.zeros(0, np.float32)
        self.rows: list[Tensor] = []

    def take(self, activation: Tensor, rows_wanted: int) -> None:
        """[..., channels] of one run, of which so many rows are kept."""
        flat = activation.reshape(-1, activation.shape[-1])
        low, high = flat.min(0), flat.max(0)
        self.low = np.minimum(self.low, low) if self.low.size else low
        self.high = np.maximum(self.high, high) if self.high.size else high
        self.rows.append(flat[:: max(1, len(flat) // rows_wanted)])


def smooth(prepared: Path, rows: Sequence[Mapping[str, Tensor]], out: Path) -> None:
    """Writes the model with smoothed matrix products; each of `rows` feeds one run. Raises `LoadFailed`."""
    import onnx

    model = onnx.load(str(prepared))
    products = _products(model.graph)
    if not products:
        raise LoadFailed(f"{prepared.name}: has no matrix product with constant weights to smooth")
    try:
        seen = _watch(model, list(products), rows)
    except Exception as error:  # onnxruntime's own, of many types
        raise LoadFailed(f"activations could not be looked at: {reason_of(error)}") from error
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for activation, nodes in products.items():
        factors = best_factors(seen[activation], [_matrix(node, weights) for node in nodes])
        if factors is not None:
            _divide(model.graph, activation, nodes, factors, weights)
    onnx.save(model, str(out))


def best_factors(seen: Seen, matrices: Sequence[Tensor]) -> Tensor | None:
    """Factors [channels] that leave the products of the seen rows, in int8, nearest to what they are; None: as it is.

    `matrices` are the weights, [channels, columns] each, that share the input.
    """
    rows = np.concatenate(seen.rows)
    largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), TINY)
    heaviest = np.maximum(np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0), TINY)
    found: Tensor | None = None
    least = _error(np.ones_like(largest), seen, rows, matrices)
    for exponent in EXPONENTS:
        factors = (largest**exponent / heaviest ** (1 - exponent)).astype(np.float32)
        error = _error(factors, seen, rows, matrices)
        if error < least:
            found, least = factors, error
    return found


def _error(factors: Tensor, seen: Seen, rows: Tensor, matrices: Sequence[Tensor]) -> float:
    """Mean square by which int8 moves the products, in parts of their own."""
    low, high = min(0.0, float((seen.low / factors).min())), max(0.0, float((seen.high / factors).max()))
    step = max((high - low) / 255, TINY**2)
    rounded = np.round(rows / factors / step) * step
    moved = 0.0
    for matrix in matrices:
        scaled = matrix * factors[:, None]
        steps = np.maximum(np.abs(scaled).max(0), TINY**2) / 127
        true = rows @ matrix
        off = rounded @ (np.round(scaled / steps) * steps) - true
        moved += float((off**2).mean() / max(float((true**2).mean()), TINY**2))
    return moved


def _products(graph: Any) -> dict[str, list[Any]]:
    """Activation -> the products whose left side it is, their right side constant."""
    constant = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    uses: dict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            uses[name] += 1
    found: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constant or uses[node.input[1]] > 1:
            continue
        turned = {attribute.name: attribute.i for attribute in node.attribute if attribute.name == "transA"}
        if not turned.get("transA"):
            found[node.input[0]].append(node)
    return dict(found)


def _is_turned(node: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _matrix(node: Any, weights: Mapping[str, Any]) -> Tensor:
    from onnx import numpy_helper

    matrix: Tensor = numpy_helper.to_array(weights[node.input[1]])
    return matrix.T if _is_turned(node) else matrix


def _watch(model: Any, activations: Sequence[str], rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Seen]:
    """Runs the model with these activations as outputs."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {port.name for port in (*watched.graph.input, *watched.graph.output)}
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(a) for a in activations if a not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = {name: Seen() for name in activations}
    wanted = max(1, ROWS_TRIED // len(rows))
    given = {port.name for port in watched.graph.input}
    computed = [name for name in activations if name not in given]
    for row in rows:
        answers = session.run(computed, dict(row)) if computed else []
        for name, array in (*zip(computed, answers, strict=True), *((name, row[name]) for name in given & seen.keys())):
            seen[name].take(array, wanted)
    return seen


def _divide(graph: Any, activation: str, nodes: Sequence[Any], factors: Tensor, weights: Mapping[str, Any]) -> None:
    from onnx import helper, numpy_helper

    divided, by = f"{activation}.smooth", f"{activation}.smooth.by"
    graph.initializer.append(numpy_helper.from_array((1 / factors).astype(np.float32), by))
    first = next(at for at, node in enumerate(graph.node) if node in nodes)
    graph.node.insert(first, helper.make_node("Mul", [activation, by], [divided], name=divided))
    for node in nodes:
        node.input[0] = divided
        scaled = (_matrix(node, weights) * factors[:, None]).astype(np.float32)
        name = node.input[1]
        weights[name].CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(scaled.T if _is_turned(node) else scaled), name)
        )
