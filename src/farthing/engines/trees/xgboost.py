"""XGBoost's model, from JSON or UBJSON (`save_model`): thresholds, inputs and sums are float32.

A row goes left where value < threshold, and right where a category is in the set. XGBoost starts a row's sums at
the base score and adds the trees in order; a first tree that is only a leaf does the same.
"""

import ctypes
import math
from typing import Final

import msgspec
import numpy as np

from farthing.engines.trees.forest import BadModel, Forest, ForestBuilder, Ints, Rule
from farthing.engines.trees.links import Link, LinkKind


class _TreeParam(msgspec.Struct):
    num_nodes: str
    size_leaf_vector: str = "1"


class _Tree(msgspec.Struct):
    left_children: list[int]
    right_children: list[int]
    split_indices: list[int]
    split_conditions: list[float]
    default_left: list[int | bool]
    tree_param: _TreeParam
    split_type: list[int] = []
    categories: list[int] = []
    categories_nodes: list[int] = []
    categories_segments: list[int] = []
    categories_sizes: list[int] = []


class _Trees(msgspec.Struct):
    trees: list[_Tree] = []  # gblinear has none, and is refused by its name
    tree_info: list[int] = []


class _Booster(msgspec.Struct):
    name: str
    model: _Trees | None = None
    gbtree: "_Booster | None" = None
    weight_drop: list[float] = []


class _LearnerParam(msgspec.Struct):
    base_score: str
    num_feature: str
    num_class: str = "0"
    num_target: str = "1"


class _Objective(msgspec.Struct):
    name: str


class _Learner(msgspec.Struct):
    gradient_booster: _Booster
    learner_model_param: _LearnerParam
    objective: _Objective


class XGBoostModel(msgspec.Struct):
    """The fields of XGBoost's model schema that prediction needs; others are skipped."""

    learner: _Learner


_LINKS: Final = {
    "reg:squarederror": LinkKind.IDENTITY,
    "reg:linear": LinkKind.IDENTITY,
    "reg:squaredlogerror": LinkKind.IDENTITY,
    "reg:pseudohubererror": LinkKind.IDENTITY,
    "reg:absoluteerror": LinkKind.IDENTITY,
    "reg:quantileerror": LinkKind.IDENTITY,
    "binary:logitraw": LinkKind.IDENTITY,
    "rank:pairwise": LinkKind.IDENTITY,
    "rank:ndcg": LinkKind.IDENTITY,
    "rank:map": LinkKind.IDENTITY,
    "reg:logistic": LinkKind.SIGMOID,
    "binary:logistic": LinkKind.SIGMOID,
    "binary:hinge": LinkKind.POSITIVE,
    "multi:softprob": LinkKind.SOFTMAX,
    "multi:softmax": LinkKind.SOFTMAX_ARGMAX,
    "count:poisson": LinkKind.EXP,
    "reg:gamma": LinkKind.EXP,
    "reg:tweedie": LinkKind.EXP,
    "survival:cox": LinkKind.EXP,
    "survival:aft": LinkKind.EXP,
}


def forest_of(model: XGBoostModel) -> Forest:
    """The forest of a decoded model. Raises `BadModel`."""
    learner = model.learner
    objective = learner.objective.name
    kind = _LINKS.get(objective)
    param = learner.learner_model_param
    booster, weights = _trees_of(learner.gradient_booster)
    targets = max(1, _integer(param.num_class, "num_class"), _integer(param.num_target, "num_target"))
    builder = ForestBuilder(
        features=_integer(param.num_feature, "num_feature"),
        targets=targets,
        dtype=np.dtype(np.float32),
        is_strict=True,
    )
    if len(booster.tree_info) != len(booster.trees):
        raise BadModel(f"{len(booster.trees)} trees and {len(booster.tree_info)} entries in tree_info")
    for target, score in enumerate(_base_scores(param.base_score, targets)):
        builder.add_constant(_margin(score, kind), target)
    for number, (tree, target) in enumerate(zip(booster.trees, booster.tree_info, strict=True)):
        try:
            _add_tree(builder, tree, target, weights[number] if weights else None)
        except BadModel as error:
            raise BadModel(f"$.learner.gradient_booster.model.trees[{number}]: {error}") from error
    return builder.build(Link(refused=objective[:60]) if kind is None else Link(kind=kind))


def _trees_of(booster: _Booster) -> tuple[_Trees, list[float]]:
    inner = booster.gbtree if booster.name == "dart" and booster.gbtree else booster
    if booster.name not in ("gbtree", "dart") or inner.model is None:
        raise BadModel(f"booster `{booster.name[:40]}`; gbtree and dart can be served")
    if not inner.model.trees:
        raise BadModel("no trees")
    if booster.name == "dart" and len(booster.weight_drop) != len(inner.model.trees):
        raise BadModel(f"{len(inner.model.trees)} trees and {len(booster.weight_drop)} weights in weight_drop")
    return inner.model, booster.weight_drop if booster.name == "dart" else []


def _add_tree(builder: ForestBuilder, tree: _Tree, target: int, weight: float | None) -> None:
    if _integer(tree.tree_param.size_leaf_vector, "size_leaf_vector") > 1:
        raise BadModel("leaves hold vectors (`multi_strategy=multi_output_tree`); train with one_output_per_tree")
    try:
        left, right, feature = (
            np.array(values, np.int64) for values in (tree.left_children, tree.right_children, tree.split_indices)
        )
    except OverflowError as error:
        raise BadModel("a node number over 64 bits") from error
    n = len(left)
    with np.errstate(over="ignore"):
        condition = np.array(tree.split_conditions, np.float32)
    is_default_left = np.array(tree.default_left, np.bool_)
    if n == 0 or not n == len(right) == len(feature) == len(condition) == len(is_default_left):
        raise BadModel("the arrays of its nodes differ in length")
    is_leaf = left == -1
    if ((left < -1) | (left >= n) | (right < -1) | (right >= n)).any() or (is_leaf != (right == -1)).any():
        raise BadModel(f"a child that is none of its {n} nodes")
    leaf_value = condition[is_leaf] if weight is None else condition[is_leaf] * np.float32(weight)
    if is_leaf[0]:
        builder.add_constant(leaf_value[0], target)
        return
    # Number of a node among the decisions, or ~ its number among the leaves.
    place = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1)
    inner = ~is_leaf
    yes, no = place[left[inner]], place[right[inner]]
    column = np.where(feature[inner] < 0, -1, feature[inner])
    missing_is_yes = is_default_left[inner]
    members: dict[int, Ints] = {}
    for node, categories in _category_sets(tree, n):
        if is_leaf[node]:
            raise BadModel(f"node {node} is a leaf and has categories")
        at = int(place[node])
        members[at] = categories
        column[at] = builder.derive(Rule.FLOORED, int(column[at]))
        yes[at], no[at], missing_is_yes[at] = no[at], yes[at], not missing_is_yes[at]
    splits_by_set = sum(1 for node, kind in enumerate(tree.split_type) if kind == 1 and node < n and inner[node])
    if splits_by_set != len(members):
        raise BadModel(f"{splits_by_set} splits by category and {len(members)} category sets")
    builder.add_tree(
        column=column,
        threshold=condition[inner],
        yes=yes,
        no=no,
        missing_is_yes=missing_is_yes,
        members=members,
        leaf_value=leaf_value,
        target=target,
    )


def _category_sets(tree: _Tree, nodes: int) -> list[tuple[int, Ints]]:
    if not len(tree.categories_nodes) == len(tree.categories_segments) == len(tree.categories_sizes):
        raise BadModel("categories_nodes, _segments and _sizes differ in length")
    if len(set(tree.categories_nodes)) != len(tree.categories_nodes):
        raise BadModel("a node with two category sets")
    sets = []
    for node, start, size in zip(tree.categories_nodes, tree.categories_segments, tree.categories_sizes, strict=True):
        if not 0 <= node < nodes or start < 0 or size < 0 or start + size > len(tree.categories):
            raise BadModel(f"the categories of node {node} are not all there")
        members = tree.categories[start : start + size]
        if members and not 0 <= min(members) <= max(members) < _CATEGORY_MAX:
            raise BadModel(f"node {node}: a category outside 0 to {_CATEGORY_MAX - 1}")
        sets.append((node, np.unique(np.array(members, np.int64))))
    return sets


_CATEGORY_MAX: Final = 1 << 24
"""XGBoost's own limit: integers beyond it are not exact in float32."""


def _base_scores(text: str, targets: int) -> list[float]:
    """One a target; written as `5E-1`, and since XGBoost 3.1 as `[5E-1]` or one for each target."""
    try:
        scores = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise BadModel(f"base_score `{text[:40]}` is not a number") from None
    if len(scores) not in (1, targets):
        raise BadModel(f"{len(scores)} base scores for {targets} outputs")
    return scores if len(scores) == targets else scores * targets


def _margin(score: float, kind: LinkKind | None) -> float:
    """The base score before the link: XGBoost stores it as a prediction (`binary:logitraw` has no link)."""
    value = np.float32(score)
    if kind is LinkKind.SIGMOID:
        if not 0 < value < 1:
            raise BadModel(f"base_score {score:g} is no probability")
        with np.errstate(over="ignore"):  # an infinite margin is refused with the tree it makes
            return -_logf(float(np.float32(1) / value - np.float32(1)))
    if kind is LinkKind.EXP:
        if not 0 < value < math.inf:
            raise BadModel(f"base_score {score:g} for an objective of positive values")
        return _logf(float(value))
    return float(value)


def _logf(value: float) -> float:
    """The C library's `logf`, which XGBoost calls: in one of a hundred values it is not the rounded logarithm."""
    try:
        logf = ctypes.CDLL(None).logf
    except (AttributeError, OSError, TypeError):  # where the process does not carry one
        return float(np.float32(math.log(value)))
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    return float(logf(value))


def _integer(text: str, key: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise BadModel(f"{key}: `{text[:40]}` is not a whole number")
    return int(text)
