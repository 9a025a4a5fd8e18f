"""The model that is written is one that ONNX's own library reads, checks and evaluates alike."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.trees.forest import BadModel, Forest, ForestBuilder
from farthing.engines.trees.links import Link
from farthing.engines.trees.onnx_writer import _varints, onnx_bytes


def small_forest(dtype: type) -> Forest:
    builder = ForestBuilder(features=3, targets=2, dtype=np.dtype(dtype), is_strict=dtype is np.float32)
    builder.add_constant(0.5, 1)
    builder.add_tree(
        column=[0, 2, 1],
        threshold=[0.25, 0.0, -1.5],
        yes=[1, -1, -3],
        no=[2, -2, -4],
        missing_is_yes=[True, False, True],
        members={1: np.array([0, 3, 700])},
        leaf_value=[1, 2, 4, 8],
        target=0,
    )
    return builder.build(Link())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_onnx_checks_it_and_finds_the_same_attributes(dtype: type) -> None:
    forest = small_forest(dtype)
    model = onnx.load_from_string(onnx_bytes(forest))
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found["tree_roots"] == forest.roots.tolist()
    assert found["nodes_featureids"] == forest.column.tolist() == [0, 0, 2, 1]
    assert found["nodes_truenodeids"] == [0, 2, 1, 3]
    assert found["nodes_trueleafs"] == [1, 0, 1, 1]
    assert found["leaf_targetids"] == [1, 0, 0, 0, 0]
    assert np.array_equal(onnx.numpy_helper.to_array(found["nodes_splits"]), forest.threshold)
    sets = onnx.numpy_helper.to_array(found["membership_values"])
    assert np.array_equal(sets, [0, 3, 700, np.nan], equal_nan=True)
    assert onnx.numpy_helper.to_array(found["nodes_modes"])[2] == 6


@given(st.lists(st.integers(0, 2**63 - 1), max_size=40))
def test_many_varints_are_each_written_as_protobuf_does(values: list[int]) -> None:
    packed = _varints(np.array(values, np.uint64))
    attribute = onnx.AttributeProto.FromString(bytes([0x42]) + _varints(np.array([len(packed)], np.uint64)) + packed)
    assert list(attribute.ints) == values


def forest_of_one(**tree: Any) -> Forest:
    builder = ForestBuilder(features=2, targets=1, dtype=np.dtype(np.float64), is_strict=False)
    builder.add_tree(**tree)
    return builder.build(Link())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"column": [0, 3]}, "feature the model lacks"),
        ({"column": [-1, 0]}, "feature the model lacks"),
        ({"yes": [1]}, "differ in length"),
        ({"yes": [2, -1]}, "neither one of 2 nodes nor 3 leaves"),
        ({"no": [-4, -3]}, "neither one of 2 nodes nor 3 leaves"),
        ({"no": [1, -3]}, "child of two nodes"),
        ({"yes": [0, -1]}, "child of two nodes"),
        ({"threshold": [0, np.nan]}, "not a number"),
        ({"leaf_value": [0, 1, np.inf]}, "not a number"),
        ({"target": 1}, "adds to output 1"),
    ],
)
def test_a_tree_that_is_none_is_refused(change: dict[str, object], reason: str) -> None:
    whole = {
        "column": [0, 1],
        "threshold": [0.0, 0.0],
        "yes": [1, -1],
        "no": [-2, -3],
        "missing_is_yes": [False, False],
        "members": {},
        "leaf_value": [1.0, 2.0, 3.0],
        "target": 0,
    }
    assert forest_of_one(**whole).leaf_value.tolist() == [1, 2, 3]
    with pytest.raises(BadModel, match=reason):
        forest_of_one(**{**whole, **change})
