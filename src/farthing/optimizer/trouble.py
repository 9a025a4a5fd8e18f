"""In which layer did numbers go wrong: the first that made a NaN or an infinity, or that int8 cuts off.

The graph is run once more with all that flows between its nodes handed out. What the model as it came shows there too
is no trouble: masks of minus infinity are common in good models. What cannot be taken apart is answered with nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from farthing.types.tensors import Tensor

SATURATED_MAX: Final = 0.1
"""Of a layer's values beyond what its int8 range holds, by more than half the range: then it is trouble, whatever the
outputs say. Calibrated ranges cut off tails on purpose: of EfficientNet-Lite0 on photographs and MiniLM on sentences
some layers lose 0.08 and 0.7 of their values to the percentile's range, but none goes beyond it by half of it."""

HUGE: Final = 9000.0
"""Masks are -10,000 (the first transformers), -1e9 or the least float; outliers of activations reach some thousands."""

ROWS_LOOKED_AT: Final = 8
"""Samples whose values are held against ranges of int8."""

FUSED_STRIDES: Final = (5, 25, 125)
"""Of so many layers one is asked for, where asking for all hides the trouble."""

Kind = Literal["NaN", "infinite"]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what it gives."""

    node: str
    operator: str
    tensor: str

    def __str__(self) -> str:
        return f"layer `{self.node or self.tensor}` ({self.operator})"


def first_bad(
    file: Path, engine: str, row: Mapping[str, Tensor], original: Path | None = None, parameters: Mapping[str, str] = {}
) -> str:
    """`layer NAME (OPERATOR) gives NaN values` for the first that does; empty where that cannot be said.

    `row` is one sample as the model takes it; `original` is a file in which tensors of the same name are known to be
    good.
    """
    try:
        layers = list(_flow(file, engine, row, parameters))
        known = (
            {} if original is None else {layer.tensor: _kind(v) for layer, v in _flow(original, "onnxruntime", row, {})}
        )
    except Exception:  # a model that cannot be taken apart; what is wrong with its outputs has been said already
        return ""
    kinds = _bad(layers, known)
    if not kinds and engine == "openvino":
        kinds = _bad_when_fused(file, row, parameters, known)
    # An infinity often ends as a NaN: the overflow is the cause. But masks are infinite too, and stay without effect.
    for wanted in ("infinite", "NaN") if original is not None else ("NaN", "infinite"):
        for layer, kind in kinds:
            if kind == wanted:
                return f"{layer} gives {kind} values"
    return ""


def _bad(layers: Sequence[tuple[Layer, Tensor]], known: Mapping[str, Kind | None]) -> list[tuple[Layer, Kind]]:
    seen = [(layer, _kind(value)) for layer, value in layers]
    return [(layer, kind) for layer, kind in seen if kind and known.get(layer.tensor) != kind]


def _bad_when_fused(
    file: Path, row: Mapping[str, Tensor], parameters: Mapping[str, str], known: Mapping[str, Kind | None]
) -> list[tuple[Layer, Kind]]:
    """Whoever hands all out fuses nothing, and some trouble is made by what layers become together: asks fewer."""
    for stride in FUSED_STRIDES:
        kinds = _bad(list(_flow_openvino(file, row, parameters, stride)), known)
        if kinds:
            return kinds
    return []


def saturated(quantised: Path, clean: Path, rows: Sequence[Mapping[str, Tensor]]) -> str:
    """`layer NAME (OPERATOR) saturates: ...` for the one that int8 cuts off most, where that is trouble; else empty."""
    try:
        ranges = _ranges(quantised)
        beyond: dict[str, list[float]] = {}
        layers = {}
        for row in rows[:ROWS_LOOKED_AT]:
            for layer, value in _flow(clean, "onnxruntime", row, {}, only=ranges.keys()):
                low, high = ranges[layer.tensor]
                margin = (high - low) / 2
                layers[layer.tensor] = layer
                share = float(((value < low - margin) | (value > high + margin)).mean()) if value.size else 0.0
                beyond.setdefault(layer.tensor, []).append(share)
    except Exception:
        return ""
    if not beyond:
        return ""
    worst = max(beyond, key=lambda name: float(np.mean(beyond[name])))
    share = float(np.mean(beyond[worst]))
    if share <= SATURATED_MAX:
        return ""
    low, high = ranges[worst]
    return f"{layers[worst]} saturates: {share:.0%} of its values are far beyond {low:.3g} to {high:.3g}"


def masking(file: Path, rows: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names of the nodes around values so large that a range of int8 which holds them holds nothing else.

    Attention puts minus infinity, or the least number there is, where nobody may look; quantised with the scores that
    it is added to, the scores are gone (MiniLM on sentences of different lengths lost 0.64 of its cosine to that).
    """
    import onnx
    from onnx import numpy_helper

    try:
        huge = {
            layer.tensor
            for row in rows[:ROWS_LOOKED_AT]
            for layer, value in _flow(file, "onnxruntime", row, {})
            if _is_huge(value)
        }
        graph = onnx.load(str(file)).graph
        constants = {weight.name for weight in graph.initializer if _is_huge(numpy_helper.to_array(weight))}
    except Exception:  # a model that cannot be taken apart
        return []
    for node in graph.node:  # a row may happen not to be masked
        if constants.intersection(node.input):
            huge.update(node.output)
    return [node.name for node in graph.node if node.name and huge.intersection((*node.input, *node.output))]


def _is_huge(value: Tensor) -> bool:
    return bool(np.issubdtype(value.dtype, np.floating) and value.size and np.abs(value).max() >= HUGE)


def _kind(value: Tensor) -> Kind | None:
    if not np.issubdtype(value.dtype, np.floating):
        return None
    if np.isnan(value).any():
        return "NaN"
    return "infinite" if np.isinf(value).any() else None


def _flow(
    file: Path, engine: str, row: Mapping[str, Tensor], parameters: Mapping[str, str], only: Any = None
) -> Iterator[tuple[Layer, Tensor]]:
    """Each node's outputs on one row, in the order they run."""
    if engine == "openvino":
        return _flow_openvino(file, row, parameters)
    return _flow_onnx(file, row, only)


def _flow_onnx(file: Path, row: Mapping[str, Tensor], only: Any) -> Iterator[tuple[Layer, Tensor]]:
    import onnx
    import onnxruntime

    proto = onnx.load(str(file))
    graph = proto.graph
    there = {output.name for output in graph.output}
    layers = [
        Layer(node=node.name, operator=node.op_type, tensor=name)
        for node in graph.node
        for name in node.output
        if name and (only is None or name in only)
    ]
    graph.output.extend(onnx.ValueInfoProto(name=layer.tensor) for layer in layers if layer.tensor not in there)
    options = onnxruntime.SessionOptions()
    # As it is written: fusions would take away what is asked for.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    inputs = {name: value for name, value in row.items() if name in wanted}
    for layer, value in zip(layers, session.run([layer.tensor for layer in layers], inputs), strict=True):
        if isinstance(value, np.ndarray):
            yield layer, value


def _flow_openvino(
    file: Path, row: Mapping[str, Tensor], parameters: Mapping[str, str], stride: int = 1
) -> Iterator[tuple[Layer, Tensor]]:
    import openvino

    model = openvino.Core().read_model(str(file))
    skipped = {"Parameter", "Constant", "Result"}
    asked = []
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in skipped]
    last = {result.input_value(0).get_node().get_friendly_name() for result in model.get_results()}
    for at, node in enumerate(nodes):
        if at % stride and node.get_friendly_name() not in last:
            continue
        for port in node.outputs():
            layer = Layer(
                node=node.get_friendly_name(), operator=node.get_type_name(), tensor=min(port.get_names(), default="")
            )
            model.add_outputs(port)
            asked.append((layer, (node.get_friendly_name(), port.get_index())))
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": parameters.get("precision", "f32")}
    )
    request = compiled.create_infer_request()
    request.infer(dict(row))
    given = {}  # a port that is an output already gets no second one
    for at, result in enumerate(model.get_results()):
        source = result.input_value(0)
        given[source.get_node().get_friendly_name(), source.get_index()] = at
    for layer, place in asked:
        yield layer, request.get_output_tensor(given[place]).data.copy()


def _ranges(quantised: Path) -> dict[str, tuple[float, float]]:
    """Tensor -> the least and the largest value its int8 codes stand for."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(quantised)).graph
    constants = {weight.name: weight for weight in graph.initializer}
    ranges = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not all(name in constants for name in node.input[1:3]):
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
            continue
        limits = np.iinfo(zero.dtype)
        low, high = ((limit - int(zero)) * float(scale) for limit in (limits.min, limits.max))
        ranges[node.input[0]] = (low, high)
    return ranges
