"""LightGBM's JSON dump (`dump_model`): the same trees as the text file's, nested node in node."""

import math
from typing import Final

import msgspec
import numpy as np

from farthing.engines.trees.forest import BadModel, Forest, ForestBuilder, Ints, Rule
from farthing.engines.trees.lightgbm_rules import VERSIONS, link_of, thresholds_without_zeros


class _Node(msgspec.Struct):
    """A decision or, with nothing but `leaf_value`, a leaf."""

    leaf_value: float | None = None
    split_feature: int = -1
    threshold: float | str = 0.0
    decision_type: str = "<="
    default_left: bool = False
    missing_type: str = "None"
    left_child: "_Node | None" = None
    right_child: "_Node | None" = None


class _Tree(msgspec.Struct):
    tree_structure: _Node


class LightGBMModel(msgspec.Struct):
    """The fields of LightGBM's dump that prediction needs; others are skipped."""

    version: str
    num_tree_per_iteration: int
    max_feature_idx: int
    tree_info: list[_Tree]
    objective: str = ""
    average_output: bool = False


_CATEGORY_MAX: Final = 1 << 31
_INFINITE_FROM: Final = 1e300
"""The dump, being JSON, writes infinite thresholds as this; the text file has `inf`."""


def forest_of(model: LightGBMModel) -> Forest:
    """The forest of a decoded dump. Raises `BadModel`."""
    if model.version not in VERSIONS:
        raise BadModel(f"version `{model.version[:20]}`; {', '.join(VERSIONS)} can be read")
    targets, trees = model.num_tree_per_iteration, len(model.tree_info)
    if not 1 <= targets <= max(1, trees) or trees % targets:
        raise BadModel(f"num_tree_per_iteration {targets} does not divide {trees} trees")
    builder = ForestBuilder(
        features=model.max_feature_idx + 1, targets=targets, dtype=np.dtype(np.float64), is_strict=False
    )
    for number, tree in enumerate(model.tree_info):
        try:
            _add_tree(builder, tree.tree_structure, number % targets)
        except BadModel as error:
            raise BadModel(f"$.tree_info[{number}]: {error}") from error
    return builder.build(link_of(model.objective, trees // targets if model.average_output else 1))


def _add_tree(builder: ForestBuilder, root: _Node, target: int) -> None:
    if root.left_child is None and root.right_child is None:
        builder.add_constant(_leaf(root), target)
        return
    column: list[int] = []
    threshold: list[float] = []
    yes: list[int] = []
    no: list[int] = []
    missing_is_yes: list[bool] = []
    members: dict[int, Ints] = {}
    leaves: list[float] = []
    # Whose child list gets the number of the node that is taken next, and where in it.
    waiting: list[tuple[_Node, list[int], int]] = [(root, [0], 0)]
    while waiting:
        node, parent, place = waiting.pop()
        if node.left_child is None or node.right_child is None:
            parent[place] = ~len(leaves)
            leaves.append(_leaf(node))
            continue
        at = parent[place] = len(column)
        if node.decision_type == "==":
            members[at] = _categories(node.threshold)
            column.append(builder.derive(Rule.TRUNCATED, node.split_feature))
            threshold.append(0.0)
            missing_is_yes.append(False)
        elif node.decision_type == "<=" and isinstance(node.threshold, float):
            is_zero_missing = node.missing_type == "Zero"
            column.append(
                builder.derive(Rule.ZERO_AS_MISSING, node.split_feature) if is_zero_missing else node.split_feature
            )
            is_infinite = abs(node.threshold) >= _INFINITE_FROM
            threshold.append(math.copysign(math.inf, node.threshold) if is_infinite else node.threshold)
            # NaN is 0 where the missing type is none.
            missing_is_yes.append(node.threshold >= 0 if node.missing_type == "None" else node.default_left)
        else:
            raise BadModel(f"decision type `{node.decision_type[:20]}`; `<=` and `==` are known")
        yes.append(0)
        no.append(0)
        waiting.append((node.right_child, no, at))
        waiting.append((node.left_child, yes, at))
    builder.add_tree(
        column=column,
        threshold=thresholds_without_zeros(np.array(threshold)),
        yes=yes,
        no=no,
        missing_is_yes=missing_is_yes,
        members=members,
        leaf_value=leaves,
        target=target,
    )


def _leaf(node: _Node) -> float:
    if node.leaf_value is None or node.left_child is not None or node.right_child is not None:
        raise BadModel("a node that is neither a leaf nor a split in two (linear trees are not supported)")
    return node.leaf_value


def _categories(text: float | str) -> Ints:
    """`1||5||9` as numbers."""
    parts = text.split("||") if isinstance(text, str) else []
    if not parts or not all(part.isascii() and part.isdecimal() and len(part) <= 10 for part in parts):
        raise BadModel(f"categories `{str(text)[:40]}`; expected numbers with || between")
    categories = np.unique(np.array([int(part) for part in parts], np.int64))
    if categories[-1] >= _CATEGORY_MAX:
        raise BadModel(f"category {categories[-1]}; under {_CATEGORY_MAX} is allowed")
    return categories
