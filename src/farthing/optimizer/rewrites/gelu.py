"""tanh-GELU, found by what it computes and not by how it is spelled: sums and products are read as polynomials."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from farthing.optimizer.rewrites.wiring import Wiring, axes_of

DEPTH_MAX: Final = 8
"""Nodes between the parts of one GELU."""

GELU_INNER: Final = math.sqrt(2 / math.pi)
GELU_CUBE: Final = 0.044715
NEAR: Final = 1e-3
"""Exporters round the constants to a few digits."""

Polynomial = Mapping[tuple[int, int], float]
"""Powers of x and of t -> factor."""


def respell_gelu(model: Any) -> bool:
    """One tanh-GELU that is spelled in another way, respelled."""
    from onnx import helper

    graph = Wiring(model)
    for tanh in graph.proto.node:
        if tanh.op_type != "Tanh" or tanh.input[0].startswith("gelu."):
            continue
        x = next((name for name in _ancestors(graph, tanh.input[0]) if _is_inner(graph, tanh.input[0], name)), None)
        if x is None:
            continue
        y = next((name for name in _descendants(graph, tanh.output[0]) if _is_gelu(graph, name, x, tanh)), None)
        if y is None:
            continue
        name = graph.new("gelu")
        squeeze = _only_squeeze(graph, x, y, tanh)
        end = y
        if squeeze is not None:
            x, y = squeeze.input[0], f"{name}.whole"
        values = {"three": 3.0, "cube": GELU_CUBE, "inner": GELU_INNER, "one": 1.0, "half": 0.5}
        steps = (
            ("Pow", x, "three", "cubed"),
            ("Mul", "cubed", "cube", "scaled"),
            ("Add", x, "scaled", "sum"),
            ("Mul", "sum", "inner", "angle"),
            ("Tanh", "angle", "", "tanh"),
            ("Add", "tanh", "one", "raised"),
            ("Mul", x, "half", "halved"),
            ("Mul", "halved", "raised", y),
        )
        own = {made for *_, made in steps} - {y} | values.keys()
        after = (
            [] if squeeze is None else [helper.make_node("Squeeze", [y, *squeeze.input[1:]], [end], f"{name}.squeeze")]
        )
        for squeezed in after:
            squeezed.attribute.extend(squeeze.attribute)
        nodes = [
            helper.make_node(
                kind,
                [f"{name}.{given}" if given in own else given for given in inputs if given],
                [f"{name}.{made}" if made in own else made],
                f"{name}.{at}",
            )
            for at, (kind, *inputs, made) in enumerate(steps)
        ]
        weights = {f"{name}.{part}": np.array(value, np.float32) for part, value in values.items()}
        graph.put(graph.made_by[end], [*nodes, *after], weights)
        return True
    return False


def _only_squeeze(graph: Wiring, x: str, y: str, tanh: Any) -> Any:
    """The Squeeze of spatial dimensions that makes `x`, if `x` is for nothing but the GELU that ends in `y`."""
    squeeze = graph.maker(x, "Squeeze")
    if squeeze is None or x in graph.outputs or min(axes_of(graph, squeeze), default=0) < 2:
        return None
    inside = {y, *_ancestors(graph, y), tanh.input[0], *_ancestors(graph, tanh.input[0])}
    return squeeze if all(reader.output[0] in inside for reader in graph.read_by[x]) else None


def _ancestors(graph: Wiring, name: str) -> list[str]:
    """Tensors it is computed from by sums and products, the nearest first, itself aside."""
    found: list[str] = []
    ahead = [(name, 0)]
    for at, depth in ahead:
        node = graph.made_by.get(at)
        if node is None or node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow", "Neg") or depth >= DEPTH_MAX:
            continue
        for given in node.input:
            if given not in found and graph.constant(given) is None:
                found.append(given)
                ahead.append((given, depth + 1))
    return found


def _descendants(graph: Wiring, name: str) -> list[str]:
    """Tensors that are computed from it by sums and products, the nearest first."""
    found: list[str] = []
    ahead = [(name, 0)]
    for at, depth in ahead:
        for reader in graph.read_by.get(at, ()) if depth < DEPTH_MAX else ():
            made = reader.output[0]
            if reader.op_type in ("Add", "Sub", "Mul", "Div") and made not in found:
                found.append(made)
                ahead.append((made, depth + 1))
    return found


def _is_inner(graph: Wiring, name: str, x: str) -> bool:
    return _is_near(_polynomial(graph, name, {x: {(1, 0): 1.0}}), {(1, 0): GELU_INNER, (3, 0): GELU_INNER * GELU_CUBE})


def _is_gelu(graph: Wiring, name: str, x: str, tanh: Any) -> bool:
    known = {x: {(1, 0): 1.0}, tanh.output[0]: {(0, 1): 1.0}}
    return _is_near(_polynomial(graph, name, known), {(1, 0): 0.5, (1, 1): 0.5})


def _is_near(found: Polynomial | None, wanted: Polynomial) -> bool:
    if found is None:
        return False
    found = {power: factor for power, factor in found.items() if factor}
    return found.keys() == wanted.keys() and all(
        math.isclose(found[power], factor, rel_tol=NEAR) for power, factor in wanted.items()
    )


def _polynomial(graph: Wiring, name: str, known: Mapping[str, Polynomial], depth: int = 0) -> Polynomial | None:
    """The tensor as a polynomial of those known; None if it is none."""
    if name in known:
        return known[name]
    value = graph.scalar(name)
    if value is not None:
        return {(0, 0): value}
    node = graph.made_by.get(name)
    if node is None or depth >= DEPTH_MAX or node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow", "Neg"):
        return None
    parts = [_polynomial(graph, given, known, depth + 1) for given in node.input]
    first = parts[0]
    if first is None:
        return None
    if node.op_type == "Neg":
        return _times(first, {(0, 0): -1.0})
    second = parts[1]
    if second is None:
        return None
    match node.op_type:
        case "Add":
            return _plus(first, second)
        case "Sub":
            return _plus(first, _times(second, {(0, 0): -1.0}))
        case "Mul":
            return _times(first, second)
    constant = second.get((0, 0), 0.0) if second.keys() <= {(0, 0)} else None
    if node.op_type == "Div":
        return _times(first, {(0, 0): 1 / constant}) if constant else None
    if constant not in (1.0, 2.0, 3.0):
        return None
    power = first
    for _ in range(int(constant) - 1):
        power = _times(power, first)
    return power


def _plus(one: Polynomial, other: Polynomial) -> Polynomial:
    return {power: one.get(power, 0.0) + other.get(power, 0.0) for power in one.keys() | other.keys()}


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    product: dict[tuple[int, int], float] = {}
    for (a, b), factor in one.items():
        for (c, d), by in other.items():
            product[a + c, b + d] = product.get((a + c, b + d), 0.0) + factor * by
    return product
