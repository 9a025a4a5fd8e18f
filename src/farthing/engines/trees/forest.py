"""Decision trees as flat arrays: what every parser produces and the ONNX writer reads.

`ForestBuilder` takes one tree at a time from files nobody trusts; what comes out of `build` is checked: every child
exists, no node is reached twice, nothing is deeper or larger than the limits below. What the sums mean (sigmoid,
softmax) is a `Link`, applied by `links`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farthing.engines.trees.links import Link

Ints = NDArray[np.int64]

NODES_MAX: Final = 10_000_000
"""Nodes, leaves, and members of category sets, each, of one model. ONNX Runtime takes a model of at most 2 GiB and
a node is some 40 bytes of it; the largest boosted models in use have about a million nodes."""

DEPTH_MAX: Final = 1_000
"""Decisions between root and leaf. ONNX Runtime builds trees by recursion, nearly 1 KiB a level: this fits the
smallest stacks threads are given (1 MiB), and trained trees are a few dozen deep."""

TREES_MAX: Final = 1_000_000
FEATURES_MAX: Final = 1_000_000
TARGETS_MAX: Final = 65_536


class BadModel(ValueError):
    """A model file breaks its format or a limit; the message says where. Becomes `LoadFailed` in `engine`."""


ZERO_AT_MOST: Final = float(np.float32(1e-35))
"""Values up to this far from zero are zero to LightGBM (`kZeroThreshold`, a float32 there)."""


class Rule(Enum):
    """How a derived column is made of a feature, for decisions that differ from comparing the value itself."""

    ZERO_AS_MISSING = "zero as missing"
    """LightGBM `zero_as_missing`: |x| <= ZERO_AT_MOST goes where missing values go."""
    TRUNCATED = "truncated"
    """LightGBM categories: the value is cut towards zero to an integer."""
    FLOORED = "floored"
    """XGBoost categories: the same, but everything below zero is no category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Trees whose leaves add up to `targets` sums a row, and the link that makes predictions of the sums.

    A child >= 0 is a node, below 0 it is leaf `~child`. `yes` is where a row goes when the node's condition holds:
    value <= threshold (or <, see `is_strict`), or for a node in `members`: value is in the set.
    """

    features: int
    """Values in an input row."""
    derived: tuple[tuple[Rule, int], ...]
    """Columns after the features, each made by a rule of a feature."""
    targets: int
    dtype: np.dtype[Any]
    """float32 (XGBoost) or float64 (LightGBM): of thresholds, inputs and sums."""
    is_strict: bool
    roots: Ints
    column: Ints
    threshold: NDArray[Any]
    yes: Ints
    no: Ints
    missing_is_yes: NDArray[np.bool_]
    members: dict[int, Ints]
    leaf_value: NDArray[Any]
    leaf_target: Ints
    link: Link


@dataclass(slots=True, kw_only=True)
class ForestBuilder:
    """Collects trees; `build` checks and joins them."""

    features: int
    targets: int
    dtype: np.dtype[Any]
    is_strict: bool
    _nodes: int = 0
    _leaves: int = 0
    _member_count: int = 0
    _roots: list[int] = field(default_factory=list)
    _parts: list[tuple[Ints, NDArray[Any], Ints, Ints, NDArray[np.bool_]]] = field(default_factory=list)
    _members: dict[int, Ints] = field(default_factory=dict)
    _leaf_values: list[NDArray[Any]] = field(default_factory=list)
    _leaf_targets: list[Ints] = field(default_factory=list)
    _derived: dict[tuple[Rule, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.features <= FEATURES_MAX:
            raise BadModel(f"{self.features} features; 1 to {FEATURES_MAX} are allowed")
        if not 1 <= self.targets <= TARGETS_MAX:
            raise BadModel(f"{self.targets} outputs a row; 1 to {TARGETS_MAX} are allowed")

    def derive(self, rule: Rule, feature: int) -> int:
        """The column that holds `feature` after `rule`; made on first use."""
        if not 0 <= feature < self.features:
            raise BadModel(f"split on feature {feature}; the model has {self.features} features")
        return self._derived.setdefault((rule, feature), self.features + len(self._derived))

    def add_constant(self, value: float, target: int) -> None:
        """A tree without decisions. ONNX has no such thing: a decision both of whose ways end in the same leaf."""
        self.add_tree(
            column=[0],
            threshold=[0.0],
            yes=[-1],
            no=[-1],
            missing_is_yes=[False],
            members={},
            leaf_value=[value],
            target=target,
        )

    def add_tree(
        self,
        *,
        column: ArrayLike,
        threshold: ArrayLike,
        yes: ArrayLike,
        no: ArrayLike,
        missing_is_yes: ArrayLike,
        members: dict[int, Ints],
        leaf_value: ArrayLike,
        target: int,
    ) -> None:
        """One tree, node 0 its root, children numbered within the tree."""
        tree = len(self._roots)
        columns, goes_yes, goes_no = (np.asarray(a, np.int64) for a in (column, yes, no))
        missing = np.asarray(missing_is_yes, np.bool_)
        with np.errstate(over="ignore"):  # a leaf value over float32 becomes infinite, and is refused below
            thresholds, leaves = np.asarray(threshold, self.dtype), np.asarray(leaf_value, self.dtype)
        n, n_leaves = len(columns), len(leaves)
        if any(a.shape != (n,) for a in (columns, thresholds, goes_yes, goes_no, missing)) or n == 0:
            raise BadModel(f"tree {tree}: the arrays of its nodes differ in length")
        if columns.min() < 0 or columns.max() >= self.features + len(self._derived):
            raise BadModel(f"tree {tree}: a split on a feature the model lacks (it has {self.features})")
        for children in (goes_yes, goes_no):
            if children.min() < -n_leaves or children.max() >= n:
                raise BadModel(f"tree {tree}: a child that is neither one of {n} nodes nor {n_leaves} leaves")
        if np.isnan(thresholds).any() or not np.isfinite(leaves).all():
            raise BadModel(f"tree {tree}: a threshold or a leaf value that is not a number")
        if not 0 <= target < self.targets:
            raise BadModel(f"tree {tree}: adds to output {target}; the model has {self.targets}")
        if tree >= TREES_MAX:
            raise BadModel(f"over {TREES_MAX} trees")
        self._member_count += sum(len(s) for s in members.values())
        if max(self._nodes + n, self._leaves + n_leaves, self._member_count) > NODES_MAX:
            raise BadModel(f"over {NODES_MAX} nodes, leaves or categories")
        self._roots.append(self._nodes)
        goes_yes, goes_no = (c + np.where(c >= 0, self._nodes, -self._leaves) for c in (goes_yes, goes_no))
        self._parts.append((columns, thresholds, goes_yes, goes_no, missing))
        self._members |= {self._nodes + node: categories for node, categories in members.items()}
        self._leaf_values.append(leaves)
        self._leaf_targets.append(np.full(n_leaves, target, np.int64))
        self._nodes += n
        self._leaves += n_leaves

    def build(self, link: Link) -> Forest:
        """The checked forest. Raises `BadModel`."""
        if not self._roots:
            raise BadModel("no trees")
        column, threshold, yes, no, missing = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        forest = Forest(
            features=self.features,
            derived=tuple(self._derived),
            targets=self.targets,
            dtype=self.dtype,
            is_strict=self.is_strict,
            roots=np.array(self._roots, np.int64),
            column=column,
            threshold=threshold,
            yes=yes,
            no=no,
            missing_is_yes=missing,
            members=self._members,
            leaf_value=np.concatenate(self._leaf_values),
            leaf_target=np.concatenate(self._leaf_targets),
            link=link,
        )
        _check_trees(forest)
        return forest


def _check_trees(forest: Forest) -> None:
    """Walks all trees at once, level by level. A node met twice would be a cycle, or a graph that is no tree."""
    is_met = np.zeros(len(forest.yes), np.bool_)
    level = forest.roots
    depth = 0
    while len(level):
        depth += 1
        if depth > DEPTH_MAX:
            raise BadModel(f"a tree deeper than {DEPTH_MAX} decisions")
        if is_met[level].any() or len(np.unique(level)) != len(level):
            raise BadModel("a node that is the child of two nodes")
        is_met[level] = True
        children = np.concatenate((forest.yes[level], forest.no[level]))
        level = children[children >= 0]
