"""What surrounds convolutions over time, which exporters write as convolutions over pictures one pixel wide."""

from typing import Any, Final

import numpy as np

from farthing.optimizer.rewrites.wiring import Wiring, axes_of, copied

ENDLESS: Final = 1_000_000_000
"""What exporters write for the end of whatever there is; no tensor has so many values along an axis."""


def without_full_slice(model: Any) -> bool:
    """A Slice with constant arguments that takes all there is."""
    from onnx import helper

    graph = Wiring(model)
    for cut in graph.proto.node:
        if cut.op_type != "Slice" or cut.domain not in ("", "ai.onnx") or len(cut.input) < 3:
            continue
        starts, ends = graph.constant(cut.input[1]), graph.constant(cut.input[2])
        steps = graph.constant(cut.input[4]) if len(cut.input) > 4 and cut.input[4] else np.ones(1, np.int64)
        if starts is None or ends is None or steps is None or (steps != 1).any() or starts.any():
            continue
        axes = graph.constant(cut.input[3]) if len(cut.input) > 3 and cut.input[3] else np.arange(len(ends))
        sizes = graph.sizes(cut.input[0])
        if axes is None or any(
            end < ENDLESS and not (sizes and -len(sizes) <= axis < len(sizes) and 0 < sizes[axis] <= end)
            for axis, end in zip(axes.tolist(), ends.tolist(), strict=True)
        ):
            continue
        name = graph.new("whole")
        graph.put(cut, [helper.make_node("Identity", [cut.input[0]], [cut.output[0]], name)], {})
        return True
    return False


def turn_channels(model: Any) -> bool:
    """Transpose(Unsqueeze(x, 3), 0 2 1 3) -> Transpose(Unsqueeze(x, 2), 0 3 1 2), for x of three dimensions."""
    from onnx import helper

    graph = Wiring(model)
    for turn in graph.proto.node:
        if turn.op_type != "Transpose" or list(turn.attribute[0].ints if turn.attribute else ()) != [0, 2, 1, 3]:
            continue
        wide = graph.maker(turn.input[0], "Unsqueeze")
        if wide is None or axes_of(graph, wide) != [3]:
            continue
        name = graph.new("turn")
        told = graph.opset >= 13
        attributes: dict[str, Any] = {} if told else {"axes": [2]}
        graph.put(
            turn,
            [
                helper.make_node(
                    "Unsqueeze",
                    [wide.input[0], *([f"{name}.axis"] if told else [])],
                    [name],
                    f"{name}.unsqueeze",
                    **attributes,
                ),
                helper.make_node("Transpose", [name], [turn.output[0]], f"{name}.transpose", perm=[0, 3, 1, 2]),
            ],
            {f"{name}.axis": np.array([2], np.int64)} if told else {},
        )
        return True
    return False


def into_bias(model: Any) -> bool:
    """Add(Squeeze(Conv), one value a channel) -> Squeeze(Conv with a bias), where nobody else reads between."""
    from onnx import helper

    graph = Wiring(model)
    for add in graph.proto.node:
        if add.op_type != "Add" or add.domain not in ("", "ai.onnx"):
            continue
        for given, name in (add.input, add.input[::-1]):
            values, squeeze = graph.constant(name), graph.maker(given, "Squeeze")
            conv = graph.maker(squeeze.input[0], "Conv") if squeeze is not None else None
            if values is None or conv is None or squeeze is None or len(conv.input) > 2:
                continue
            kernels, axes = graph.constant(conv.input[1]), axes_of(graph, squeeze)
            between = [squeeze.input[0], given]
            if (
                kernels is None
                or values.dtype != kernels.dtype
                or not axes
                or min(axes) < 2
                or any(name in graph.outputs or len(graph.read_by[name]) > 1 for name in between)
                or values.ndim != kernels.ndim - len(axes)
                or values.shape != (1, len(kernels), *(1,) * (values.ndim - 2))
            ):
                continue
            bias = graph.new("bias")
            made = copied(conv)
            made.input.append(bias)
            graph.put(conv, [made], {bias: values.reshape(-1)})
            graph = Wiring(model)
            again = graph.made_by[add.output[0]]
            graph.put(again, [helper.make_node("Identity", [given], [add.output[0]], graph.new("biased"))], {})
            return True
    return False


def pool_before_squeeze(model: Any) -> bool:
    """GlobalMaxPool(Squeeze(x)) -> Squeeze(GlobalMaxPool(x)): dimensions of size 1 change nothing."""
    from onnx import helper

    graph = Wiring(model)
    for pool in graph.proto.node:
        if pool.op_type not in ("GlobalMaxPool", "GlobalAveragePool") or pool.domain not in ("", "ai.onnx"):
            continue
        squeeze = graph.maker(pool.input[0], "Squeeze")
        if squeeze is None or min(axes_of(graph, squeeze), default=0) < 2:
            continue
        name = graph.new("pool")
        behind = helper.make_node("Squeeze", [name, *squeeze.input[1:]], [pool.output[0]], f"{name}.squeeze")
        behind.attribute.extend(squeeze.attribute)
        graph.put(pool, [helper.make_node(pool.op_type, [squeeze.input[0]], [name], f"{name}.node"), behind], {})
        return True
    return False
