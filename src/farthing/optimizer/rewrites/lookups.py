"""Lookups in constant tables: products of one-hot rows become such, and tables are computed through."""

from typing import Any, Final

import numpy as np

from farthing.optimizer.rewrites.wiring import Wiring, copied
from farthing.types.tensors import Tensor

TABLE_ROWS_MAX: Final = 1 << 16
"""Of a one-hot product that becomes a lookup, or a table that is computed through."""

ELEMENTWISE: Final = frozenset(
    [
        "Abs",
        "Add",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "HardSigmoid",
        "LeakyRelu",
        "Log",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "HardSwish",
        "Gelu",
        "Mish",
    ]
)
"""Operators whose outputs have the shape their inputs broadcast to, value by value."""


def one_hot_to_lookup(model: Any) -> bool:
    """MatMul(Cast(Equal(ids [..., 1], 0 1 2 ...)), W) -> Gather(W and a row of zeros, ids)."""
    from onnx import helper

    graph = Wiring(model)
    for product in graph.proto.node:
        if product.op_type != "MatMul" or product.domain not in ("", "ai.onnx"):
            continue
        cast = graph.maker(product.input[0], "Cast")
        equal = graph.maker(cast.input[0], "Equal") if cast is not None else None
        if equal is None:
            continue
        table = graph.constant(product.input[1])
        if table is None or table.ndim != 2 or table.dtype != np.float32:
            continue
        if not np.isfinite(table).all() or len(table) > TABLE_ROWS_MAX:
            continue
        ids = next((a for a, b in (equal.input, equal.input[::-1]) if _counts(graph.constant(b), len(table))), None)
        if ids is None or not _has_last_size_one(graph, ids):
            continue
        counts = graph.constant(next(b for b in equal.input if b != ids))
        if counts is None or counts.ndim > max(1, len(graph.sizes(ids))):
            continue  # it would add dimensions
        name = graph.new("lookup")
        told = {f"{name}.{part}": np.array(value, counts.dtype) for part, value in (("zero", 0), ("end", len(table)))}
        weights = {f"{name}.table": np.concatenate([table, np.zeros_like(table[:1])]), **told}
        squeeze: dict[str, Any] = {"axes": [-1]} if graph.opset < 13 else {}
        if graph.opset >= 13:
            weights[f"{name}.last"] = np.array([-1], np.int64)
        graph.put(
            product,
            [
                helper.make_node("Less", [ids, f"{name}.zero"], [f"{name}.is_below"], f"{name}.less"),
                helper.make_node("Less", [ids, f"{name}.end"], [f"{name}.is_inside"], f"{name}.inside"),
                helper.make_node("Where", [f"{name}.is_inside", ids, f"{name}.end"], [f"{name}.ids"], f"{name}.where"),
                helper.make_node(
                    "Where",
                    [f"{name}.is_below", f"{name}.end", f"{name}.ids"],
                    [f"{name}.known"],
                    f"{name}.known_where",
                ),
                helper.make_node(
                    "Squeeze",
                    [f"{name}.known", *([f"{name}.last"] if graph.opset >= 13 else [])],
                    [f"{name}.flat"],
                    f"{name}.squeeze",
                    **squeeze,
                ),
                helper.make_node(
                    "Gather", [f"{name}.table", f"{name}.flat"], [product.output[0]], f"{name}.gather", axis=0
                ),
            ],
            weights,
        )
        return True
    return False


def _counts(value: Tensor | None, rows: int) -> bool:
    """Whether it is 0, 1, 2... up to so many, along its last axis."""
    return (
        value is not None
        and value.dtype in (np.int32, np.int64)
        and value.shape[-1:] == (rows,)
        and value.size == rows > 1
        and bool((value.reshape(-1) == np.arange(rows)).all())
    )


def _has_last_size_one(graph: Wiring, name: str) -> bool:
    """Whether the last dimension can be seen to be 1."""
    node = graph.made_by.get(name)
    if node is None:
        return any(
            tensor.name == name
            and len(tensor.type.tensor_type.shape.dim) > 0
            and tensor.type.tensor_type.shape.dim[-1].dim_value == 1
            for tensor in graph.proto.input
        )
    if node.op_type == "Expand":
        return _has_last_size_one(graph, node.input[0]) and _last_value(graph, node.input[1]) == 1
    if node.op_type == "Reshape":
        return _last_value(graph, node.input[1]) == 1
    if node.op_type in ("Cast", "Identity"):
        return _has_last_size_one(graph, node.input[0])
    if node.op_type == "Unsqueeze":
        axes = graph.constant(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and axes.reshape(-1).tolist() == [-1]
    return False


def _last_value(graph: Wiring, name: str) -> int | None:
    """The last number of a tensor that tells a shape, as far as it is constant."""
    value = graph.constant(name)
    if value is not None:
        return int(value.reshape(-1)[-1]) if value.size else None
    node = graph.made_by.get(name)
    if node is None or node.op_type not in ("Cast", "Concat", "Identity") or not node.input:
        return None
    return _last_value(graph, node.input[-1])


def into_table(model: Any) -> int:
    """Elementwise nodes behind one lookup in a constant table, computed for the table; answers how many."""
    from onnx import helper

    graph = Wiring(model)
    for gather in graph.proto.node:
        if gather.op_type != "Gather" or any(a.name == "axis" and a.i for a in gather.attribute):
            continue
        table = graph.constant(gather.input[0])
        if table is None or table.ndim != 2 or table.dtype != np.float32 or len(table) > TABLE_ROWS_MAX:
            continue
        region, frontier = _behind(graph, gather)
        if not region or len(frontier) != 1 or frontier[0] == gather.output[0]:
            continue
        [end] = frontier
        through = _through(model, graph, gather, region, end, table)
        if through is None:
            continue
        name = graph.new("table")
        last = next(node for node in region if end in node.output)
        made = helper.make_node("Gather", [name, gather.input[1]], [end], f"{name}.gather", axis=0)
        graph.put(last, [made], {name: through})
        return len(region)
    return 0


def _behind(graph: Wiring, gather: Any) -> tuple[list[Any], list[str]]:
    """Elementwise nodes that depend on nothing but the lookup and constants, in order, and which of what they make, or
    the lookup itself, is read by others."""
    made, region = {gather.output[0]}, []
    for node in graph.proto.node:  # in the order they run
        names = [name for name in node.input if name]
        if (
            node.op_type in ELEMENTWISE
            and node.domain in ("", "ai.onnx")
            and made.intersection(names)
            and all(name in made or _is_row(graph.constant(name)) for name in names)
        ):
            region.append(node)
            made.update(node.output)
    inside = {id(node) for node in region}
    frontier = [
        name
        for name in (gather.output[0], *(name for node in region for name in node.output))
        if name in graph.outputs or any(id(reader) not in inside for reader in graph.read_by.get(name, ()))
    ]
    return region, frontier


def _is_row(value: Tensor | None) -> bool:
    """Whether it broadcasts over rows of a table: nothing but its last dimension counts."""
    return value is not None and all(size == 1 for size in value.shape[:-1])


def _through(model: Any, graph: Wiring, gather: Any, region: list[Any], end: str, table: Tensor) -> Tensor | None:
    """The table behind these nodes, computed by ONNX Runtime; None if it cannot say, or rows do not stay rows."""
    import onnxruntime
    from onnx import TensorProto, helper

    constants = {name for node in region for name in node.input if graph.constant(name) is not None}
    weights = [copied(tensor) for tensor in graph.proto.initializer if tensor.name in constants]
    told = [copied(graph.made_by[name]) for name in constants if name in graph.made_by]
    # As many dimensions as any constant has: each then broadcasts over rows as it would over lookups.
    ranks = [value.ndim for name in constants if (value := graph.constant(name)) is not None]
    if max(ranks, default=0) > max(1, len(graph.sizes(gather.output[0]))):
        return None  # they would add dimensions
    shape = (len(table), *(1,) * (max([2, *ranks]) - 2), table.shape[1])
    body = helper.make_graph(
        [*told, *map(copied, region)],
        "table",
        [helper.make_tensor_value_info(gather.output[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        weights,
    )
    alone = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
        [through] = session.run(None, {gather.output[0]: table.reshape(shape)})
    except Exception:  # of several undocumented types: an operator it has no kernel for, say
        return None
    rows: Tensor = through
    if rows.shape[:-1] != shape[:-1] or rows.dtype != np.float32 or not np.isfinite(rows).all():
        return None
    return rows.reshape(len(table), rows.shape[-1])
