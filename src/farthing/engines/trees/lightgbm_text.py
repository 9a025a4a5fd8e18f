"""LightGBM's own model file (`save_model`): `key=value` lines, a block a tree. Thresholds and sums are float64.

What a row does at a node follows LightGBM's documented missing-value handling: `missing_type` none takes NaN for 0,
zero sends NaN and zeros the default way, nan sends only NaN there. Category sets are bit sets of 32-bit words.
"""

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.engines.trees.forest import TREES_MAX, BadModel, Forest, ForestBuilder, Ints, Rule
from farthing.engines.trees.lightgbm_rules import VERSIONS, link_of, thresholds_without_zeros

FIRST_LINE: Final = b"tree"

CATEGORY_WORDS_MAX: Final = 1_000_000
"""Words of a tree's category sets, 32 categories each; unpacked they take 32 bytes a word."""

_IS_CATEGORICAL, _DEFAULT_LEFT = 1, 2  # bits of decision_type; the two above them are the missing type
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2

Fields = dict[str, str]


def parse_text(raw: bytes) -> Forest:
    """The forest in a LightGBM text model. Raises `BadModel`."""
    text = raw.decode("utf-8", "replace")
    body, end, _ = text.partition("\nend of trees")
    if not end:
        raise BadModel("no line `end of trees`: the file is cut off")
    if body.count("\nTree=") > TREES_MAX:
        raise BadModel(f"over {TREES_MAX} trees")
    head_text, *blocks = body.split("\nTree=")
    head = _fields(head_text)
    if head.get("version") not in VERSIONS:
        raise BadModel(f"version `{head.get('version', '')[:20]}`; {', '.join(VERSIONS)} can be read")
    if "tree_sizes" in head and len(head["tree_sizes"].split()) != len(blocks):
        raise BadModel(f"{len(blocks)} trees where the head announces {len(head['tree_sizes'].split())}")
    targets = _integer(head, "num_tree_per_iteration")
    if not 1 <= targets <= max(1, len(blocks)) or len(blocks) % targets:
        raise BadModel(f"num_tree_per_iteration={targets} does not divide {len(blocks)} trees")
    builder = ForestBuilder(
        features=_integer(head, "max_feature_idx") + 1,
        targets=targets,
        dtype=np.dtype(np.float64),
        is_strict=False,
    )
    for number, block in enumerate(blocks):
        try:
            _add_tree(builder, _fields(block), number % targets)
        except BadModel as error:
            raise BadModel(f"Tree={number}: {error}") from error
    is_averaged = "average_output" in head_text.splitlines()
    return builder.build(link_of(head.get("objective", ""), len(blocks) // targets if is_averaged else 1))


def _add_tree(builder: ForestBuilder, fields: Fields, target: int) -> None:
    if fields.get("is_linear", "0") != "0":
        raise BadModel("linear trees (`linear_tree=true`) are not supported; train without")
    leaf_value = _numbers(fields, "leaf_value", np.float64)
    if len(leaf_value) != _integer(fields, "num_leaves"):
        raise BadModel(f"{len(leaf_value)} leaf values for num_leaves={fields['num_leaves']}")
    if len(leaf_value) == 1:
        builder.add_constant(leaf_value[0], target)
        return
    column = _numbers(fields, "split_feature", np.int64)
    threshold = _numbers(fields, "threshold", np.float64)
    if not len(column) == len(threshold) == len(leaf_value) - 1:
        raise BadModel(f"{len(column)} features and {len(threshold)} thresholds for {len(leaf_value)} leaves")
    decision = _numbers(fields, "decision_type", np.int64) if "decision_type" in fields else np.zeros_like(column)
    if len(decision) != len(column):
        raise BadModel(f"{len(decision)} decision types for {len(column)} splits")
    is_default_left = (decision & _DEFAULT_LEFT) > 0
    missing_type = decision >> 2 & 3
    is_categorical = (decision & _IS_CATEGORICAL) > 0
    for node in np.flatnonzero((missing_type == MISSING_ZERO) & ~is_categorical):
        column[node] = builder.derive(Rule.ZERO_AS_MISSING, int(column[node]))
    members: dict[int, Ints] = {}
    if is_categorical.any():
        sets = _bit_sets(fields)
        for node in np.flatnonzero(is_categorical):
            which = threshold[node]
            if not 0 <= which < len(sets):
                raise BadModel(f"split {node} uses category set {which:g} of {len(sets)}")
            members[int(node)] = sets[int(which)]
            column[node] = builder.derive(Rule.TRUNCATED, int(column[node]))
    builder.add_tree(
        column=column,
        threshold=thresholds_without_zeros(threshold),
        yes=_numbers(fields, "left_child", np.int64),
        no=_numbers(fields, "right_child", np.int64),
        # NaN is 0 where the missing type is none; no category is NaN.
        missing_is_yes=np.where(missing_type == MISSING_NONE, threshold >= 0, is_default_left) & ~is_categorical,
        members=members,
        leaf_value=leaf_value,
        target=target,
    )


def _bit_sets(fields: Fields) -> list[Ints]:
    bounds = _numbers(fields, "cat_boundaries", np.int64)
    words = _numbers(fields, "cat_threshold", np.int64)
    if len(words) > CATEGORY_WORDS_MAX:
        raise BadModel(f"{len(words)} words of category sets; {CATEGORY_WORDS_MAX} a tree are allowed")
    if len(words) and not 0 <= words.min() <= words.max() < 2**32:
        raise BadModel("cat_threshold: not all numbers of 32 bits")
    if len(bounds) < 2 or bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] != len(words):
        raise BadModel("cat_boundaries do not divide cat_threshold")
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    return [np.flatnonzero(bits[a * 32 : b * 32]) for a, b in itertools.pairwise(bounds)]


def _fields(block: str) -> Fields:
    return {key: value for line in block.splitlines() for key, equals, value in [line.partition("=")] if equals}


def _integer(fields: Fields, key: str) -> int:
    return int(_numbers(fields, key, np.int64, length=1)[0])


def _numbers(fields: Fields, key: str, dtype: type[np.generic], length: int | None = None) -> NDArray[Any]:
    if key not in fields:
        raise BadModel(f"no line `{key}=`")
    try:
        # Six times less memory than splitting first. (Before numpy 2.4 it warns and stops at what is no number; the
        # lengths that every caller compares then differ.)
        numbers = np.fromstring(fields[key], dtype, sep=" ")
    except ValueError as error:
        raise BadModel(f"{key}: not all numbers: `{fields[key][:40]}`") from error
    if length is not None and len(numbers) != length:
        raise BadModel(f"{key}: {len(numbers)} numbers where {length} was expected")
    return numbers
