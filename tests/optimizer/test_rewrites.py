"""A rewritten graph gives what it gave, and what only looks like one of the patterns is left alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, shape_inference
from tests.models import model, tensor_info

from farthing.optimizer.graphs import _cut_dead
from farthing.optimizer.rewrites import rewrite

node = helper.make_node
RANDOM = np.random.default_rng(3)


def run(proto: Any, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, inputs)


def rewritten(data: bytes) -> tuple[Any, Any, tuple[str, ...]]:
    """The model before and after, and what was done."""
    before = shape_inference.infer_shapes(onnx.load_from_string(data))
    after = type(before)()
    after.CopyFrom(before)
    done = rewrite(after)
    _cut_dead(after.graph)
    onnx.checker.check_model(after, full_check=True)
    return before, after, done


def operators(proto: Any) -> list[str]:
    return [one.op_type for one in proto.graph.node]


def check(data: bytes, tolerance: float = 1e-5, **inputs: np.ndarray) -> tuple[list[str], tuple[str, ...]]:
    """Both give the same; the operators that are left, and what was done."""
    before, after, done = rewritten(data)
    for was, now in zip(run(before, **inputs), run(after, **inputs), strict=True):
        np.testing.assert_allclose(now, was, rtol=tolerance, atol=tolerance)
    return operators(after), done


def one_hot(table: np.ndarray, *, datatype: str = "INT32", counts: np.ndarray | None = None, behind: Any = ()) -> bytes:
    """`ids` [batch, 5] -> one-hot -> x table -> what is `behind` it, which makes `y`."""
    dtype = np.int32 if datatype == "INT32" else np.int64
    weights = {
        "shape": np.array([-1, 5, 1], np.int64),
        "counts": np.arange(len(table), dtype=dtype).reshape(1, 1, -1) if counts is None else counts,
        "table": table,
    }
    nodes = [
        node("Reshape", ["ids", "shape"], ["column"]),
        node("Equal", ["column", "counts"], ["is_it"]),
        node("Cast", ["is_it"], ["hot"], to=1),
        node("MatMul", ["hot", "table"], ["rows"]),
    ]
    end, more = behind if behind else ([node("Identity", ["rows"], ["y"])], {})
    return model(
        [*nodes, *end],
        [tensor_info("ids", datatype, ["batch", 5])],
        [tensor_info("y", "FP32", ["batch", 5, None])],
        {**weights, **more},
    )


@given(st.lists(st.integers(-3, 12), min_size=5, max_size=5), st.sampled_from(["INT32", "INT64"]))
@settings(max_examples=20, deadline=None)
def test_a_product_of_one_hot_rows_is_a_lookup_for_any_id(ids: list[int], datatype: str) -> None:
    table = RANDOM.standard_normal((10, 3)).astype(np.float32)
    dtype = np.int32 if datatype == "INT32" else np.int64
    left, done = check(one_hot(table, datatype=datatype), ids=np.array([ids, ids[::-1]], dtype))
    assert "MatMul" not in left
    assert "Gather" in left
    assert done == ("a product of one-hot rows became a lookup",)


@pytest.mark.parametrize(
    "data",
    [
        one_hot(np.ones((10, 3), np.float32), counts=np.arange(1, 11, dtype=np.int32).reshape(1, 1, -1)),
        one_hot(np.ones((10, 3), np.float32), counts=np.arange(10, dtype=np.int32)[::-1].reshape(1, 1, -1)),
        one_hot(np.full((10, 3), np.inf, np.float32)),
    ],
    ids=["from 1", "downwards", "infinite"],
)
def test_what_is_no_one_hot_row_stays(data: bytes) -> None:
    before, after, done = rewritten(data)
    assert not done
    assert operators(before) == operators(after)


def gelu_nodes(x: str, y: str, spelling: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Ways to spell a tanh-GELU that exporters have."""
    weights = {
        "c": np.array(0.044715, np.float32),
        "s": np.array(0.7978846, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "two": np.array(2, np.float32),
        "cs": np.array(0.044715 * 0.7978846, np.float32),
        "three": np.array(3, np.float32),
    }
    heads = [
        [  # x + x (x (c x))
            node("Mul", ["c", x], ["g1"]),
            node("Mul", [x, "g1"], ["g2"]),
            node("Mul", [x, "g2"], ["g3"]),
            node("Add", [x, "g3"], ["g4"]),
            node("Mul", ["s", "g4"], ["angle"]),
        ],
        [  # s x (1 + c x^2)
            node("Mul", [x, x], ["g1"]),
            node("Mul", ["g1", "c"], ["g2"]),
            node("Add", ["one", "g2"], ["g3"]),
            node("Mul", ["s", x], ["g4"]),
            node("Mul", ["g4", "g3"], ["angle"]),
        ],
        [  # s x + (s c) x^3
            node("Pow", [x, "three"], ["g1"]),
            node("Mul", ["g1", "cs"], ["g2"]),
            node("Mul", [x, "s"], ["g3"]),
            node("Add", ["g3", "g2"], ["angle"]),
        ],
    ]
    tails = [
        [
            node("Add", ["one", "t"], ["g5"]),
            node("Mul", ["half", "g5"], ["g6"]),
            node("Mul", [x, "g6"], [y]),
        ],
        [
            node("Mul", [x, "half"], ["g5"]),
            node("Mul", ["g5", "t"], ["g6"]),
            node("Add", ["g6", "g5"], [y]),
        ],
        [
            node("Add", ["t", "one"], ["g5"]),
            node("Mul", ["g5", x], ["g6"]),
            node("Div", ["g6", "two"], [y]),
        ],
    ]
    head, tail = heads[spelling % 3], tails[spelling // 3]
    used = {name for one in (*head, *tail) for name in one.input}
    nodes = [*head, node("Tanh", ["angle"], ["t"]), *tail]
    return nodes, {name: value for name, value in weights.items() if name in used}


CANONICAL = ["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"]


@pytest.mark.parametrize("spelling", range(9))
def test_a_gelu_is_respelled_however_it_was_spelled(spelling: int) -> None:
    nodes, weights = gelu_nodes("x", "y", spelling)
    shape = ["batch", 7]
    data = model(nodes, [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)
    left, done = check(data, x=np.linspace(-6, 6, 70, dtype=np.float32).reshape(10, 7))
    assert (left, done) == (CANONICAL, ("GELU respelled in 1 place",))


@pytest.mark.parametrize(("name", "factor"), [("c", 1.1), ("s", 0.9), ("one", 2.0), ("half", 1.5)])
def test_what_is_almost_a_gelu_stays(name: str, factor: float) -> None:
    nodes, weights = gelu_nodes("x", "y", 0)
    weights[name] = (weights[name] * factor).astype(np.float32)
    shape = ["batch", 7]
    data = model(nodes, [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)
    assert rewritten(data)[2] == ()


def test_what_the_middle_of_a_gelu_is_read_for_stays() -> None:
    nodes, weights = gelu_nodes("x", "y", 0)
    shape = ["batch", 7]
    outputs = [tensor_info("y", "FP32", shape), tensor_info("t", "FP32", shape)]
    data = model(nodes, [tensor_info("x", "FP32", shape)], outputs, weights)
    check(data, x=np.linspace(-6, 6, 70, dtype=np.float32).reshape(10, 7))


def test_a_gelu_of_looked_up_rows_is_part_of_the_table() -> None:
    nodes, weights = gelu_nodes("sum", "y", 0)
    bias = {"bias": RANDOM.standard_normal((1, 1, 3)).astype(np.float32)}
    behind = ([node("Add", ["rows", "bias"], ["sum"]), *nodes], {**weights, **bias})
    data = one_hot(RANDOM.standard_normal((10, 3)).astype(np.float32), behind=behind)
    left, done = check(data, ids=np.arange(-2, 13, dtype=np.int32).reshape(3, 5))
    assert left.count("Gather") == 1
    assert not {"Tanh", "Mul", "Add"} & set(left)
    assert done[1] == "10 elementwise nodes moved into a table"


def test_only_what_treats_all_lookups_alike_moves_into_the_table() -> None:
    places = {"places": RANDOM.standard_normal((1, 5, 3)).astype(np.float32)}  # a position's own: no property of a row
    behind = ([node("Tanh", ["rows"], ["turned"]), node("Add", ["turned", "places"], ["y"])], places)
    data = one_hot(RANDOM.standard_normal((10, 3)).astype(np.float32), behind=behind)
    left, done = check(data, ids=np.arange(15, dtype=np.int32).reshape(3, 5))
    assert "Add" in left
    assert "Tanh" not in left
    assert done[1] == "1 elementwise nodes moved into a table"


Made = tuple[list[Any], dict[str, np.ndarray]]


def convolved(behind: Callable[[], Made], outputs: list[Any]) -> bytes:
    """`x` [batch, 6, 4] -> turned, convolved [batch, 5, 5, 1] -> `heard` [batch, 5, 5] -> what is behind it."""
    nodes, more = behind()
    weights = {
        "three": np.array([3], np.int64),
        "kernels": RANDOM.standard_normal((5, 4, 2, 1)).astype(np.float32),
        "starts": np.zeros(4, np.int64),
        "ends": np.array([2147483647] * 3 + [1], np.int64),
        "axes": np.arange(4, dtype=np.int64),
    }
    front = [
        node("Unsqueeze", ["x", "three"], ["wide"]),
        node("Transpose", ["wide"], ["turned"], perm=[0, 2, 1, 3]),
        node("Conv", ["turned", "kernels"], ["found"], kernel_shape=[2, 1]),
        node("Slice", ["found", "starts", "ends", "axes"], ["all"]),
        node("Squeeze", ["all", "three"], ["heard"]),
    ]
    return model([*front, *nodes], [tensor_info("x", "FP32", ["batch", 6, 4])], outputs, {**weights, **more})


X = RANDOM.standard_normal((3, 6, 4)).astype(np.float32)


def test_what_surrounds_a_convolution_over_time_becomes_part_of_it() -> None:
    def behind() -> Made:
        nodes, weights = gelu_nodes("sum", "active", 0)
        bias = {"bias": RANDOM.standard_normal((1, 5, 1)).astype(np.float32)}
        added = node("Add", ["heard", "bias"], ["sum"])
        return [added, *nodes, node("GlobalMaxPool", ["active"], ["y"])], {**weights, **bias}

    data = convolved(behind, [tensor_info("y", "FP32", ["batch", 5, 1])])
    left, done = check(data, x=X)
    assert left == ["Unsqueeze", "Transpose", "Conv", *CANONICAL, "GlobalMaxPool", "Squeeze"]
    _, after, _ = rewritten(data)
    [turn] = [one for one in after.graph.node if one.op_type == "Transpose"]
    assert list(turn.attribute[0].ints) == [0, 3, 1, 2]
    assert done == (
        "slices of everything left out",
        "what is added to a convolution's channels became its bias",
        "channels turned to the front as engines know it",
        "a pool over whole channels moved before a squeeze",
        "GELU respelled in 1 place",
    )


def test_a_sum_that_others_see_the_parts_of_stays() -> None:
    def behind() -> Made:
        bias = {"bias": RANDOM.standard_normal((1, 5, 1)).astype(np.float32)}
        return [node("Add", ["heard", "bias"], ["y"])], bias

    outputs = [tensor_info(name, "FP32", ["batch", 5, 5]) for name in ("y", "heard")]
    left, _ = check(convolved(behind, outputs), x=X)
    assert "Add" in left


def test_a_sum_over_time_is_no_bias() -> None:
    def behind() -> Made:
        return [node("Add", ["heard", "by_time"], ["y"])], {"by_time": np.arange(5, dtype=np.float32).reshape(1, 1, 5)}

    left, _ = check(convolved(behind, [tensor_info("y", "FP32", ["batch", 5, 5])]), x=X)
    assert "Add" in left


@given(
    st.integers(-3, 3),
    st.sampled_from([-2, 1, 5, 6, 7, 100, 2147483647, 9223372036854775807]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, -1, 0]),
)
@settings(max_examples=60, deadline=None)
def test_a_slice_is_left_out_only_if_it_takes_everything(start: int, end: int, step: int, axis: int) -> None:
    weights = {
        "starts": np.array([start], np.int64),
        "ends": np.array([end], np.int64),
        "axes": np.array([axis], np.int64),
        "steps": np.array([step], np.int64),
    }
    nodes = [node("Slice", ["x", "starts", "ends", "axes", "steps"], ["some"]), node("Neg", ["some"], ["y"])]
    data = model(nodes, [tensor_info("x", "FP32", ["batch", 6])], [tensor_info("y", "FP32", [None, None])], weights)
    left, _ = check(data, x=np.arange(18, dtype=np.float32).reshape(3, 6))
    takes_all = start == 0 and step == 1 and (end > 1e9 or (axis != 0 and end >= 6))
    assert ("Slice" not in left) == takes_all


def test_outputs_keep_their_names_where_copies_are_left_out() -> None:
    weights = {"starts": np.zeros(1, np.int64), "ends": np.array([2147483647], np.int64)}
    nodes = [node("Neg", ["x"], ["below"]), node("Slice", ["below", "starts", "ends"], ["y"])]
    shape = ["batch", 6]
    data = model(nodes, [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)
    check(data, x=np.arange(18, dtype=np.float32).reshape(3, 6))
    assert [output.name for output in rewritten(data)[1].graph.output] == ["y"]
