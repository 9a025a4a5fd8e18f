"""A forest as an ONNX model: one `TreeEnsemble` node (ai.onnx.ml, opset 5), written straight to bytes.

The `onnx` package would do this too, but is no dependency of serving; the file format needed here is three kinds of
protobuf fields. Field numbers are those of onnx.proto; tests read the result with the `onnx` package and check it.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.engines.trees.forest import Forest

INPUT: Final = "input"
OUTPUT: Final = "sums"

_FLOAT32, _UINT8, _FLOAT64 = 1, 2, 11  # TensorProto.DataType
_ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS = 2, 4, 7  # AttributeProto.AttributeType
_BRANCH_LEQ, _BRANCH_LT, _BRANCH_MEMBER = 0, 1, 6  # modes of TreeEnsemble-5
_SUM = 1
IR_VERSION: Final = 10
OPSET: Final = 21
OPSET_ML: Final = 5


def onnx_bytes(forest: Forest) -> bytes:
    """The model: input (rows, features and derived columns), output (rows, targets), both of `forest.dtype`."""
    columns = forest.features + len(forest.derived)
    element = _FLOAT32 if forest.dtype == np.float32 else _FLOAT64
    graph = (
        _message(1, _ensemble_node(forest))
        + _message(2, b"trees")
        + _message(11, _value_info(INPUT, element, columns))
        + _message(12, _value_info(OUTPUT, element, forest.targets))
    )
    return (
        _integer(1, IR_VERSION)
        + _message(7, graph)
        + _message(8, _integer(2, OPSET))
        + _message(8, _message(1, b"ai.onnx.ml") + _integer(2, OPSET_ML))
    )


def _ensemble_node(forest: Forest) -> bytes:
    modes = np.full(len(forest.column), _BRANCH_LT if forest.is_strict else _BRANCH_LEQ, np.uint8)
    modes[list(forest.members)] = _BRANCH_MEMBER
    attributes = [
        _attribute("n_targets", _ATTRIBUTE_INT, _integer(3, forest.targets)),
        _attribute("aggregate_function", _ATTRIBUTE_INT, _integer(3, _SUM)),
        _ints("tree_roots", forest.roots),
        _ints("nodes_featureids", forest.column),
        _tensor("nodes_splits", forest.threshold),
        _tensor("nodes_modes", modes),
        _ints("nodes_truenodeids", _index(forest.yes)),
        _ints("nodes_falsenodeids", _index(forest.no)),
        _ints("nodes_trueleafs", forest.yes < 0),
        _ints("nodes_falseleafs", forest.no < 0),
        _ints("nodes_missing_value_tracks_true", forest.missing_is_yes),
        _ints("leaf_targetids", forest.leaf_target),
        _tensor("leaf_weights", forest.leaf_value),
    ]
    if forest.members:
        # Sets in the order of their nodes, a NaN after each.
        sets = [np.append(forest.members[node], np.nan) for node in sorted(forest.members)]
        attributes.append(_tensor("membership_values", np.concatenate(sets).astype(forest.dtype)))
    return (
        _message(1, INPUT.encode())
        + _message(2, OUTPUT.encode())
        + _message(4, b"TreeEnsemble")
        + b"".join(_message(5, attribute) for attribute in attributes)
        + _message(7, b"ai.onnx.ml")
    )


def _index(children: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(children >= 0, children, ~children)


def _value_info(name: str, element: int, width: int) -> bytes:
    shape = _message(1, _message(2, b"rows")) + _message(1, _integer(1, width))
    return _message(1, name.encode()) + _message(2, _message(1, _integer(1, element) + _message(2, shape)))


def _attribute(name: str, kind: int, value: bytes) -> bytes:
    return _message(1, name.encode()) + value + _integer(20, kind)


def _ints(name: str, values: NDArray[Any]) -> bytes:
    return _attribute(name, _ATTRIBUTE_INTS, _message(8, _varints(values.astype(np.uint64))))


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    element = {"f": _FLOAT32, "d": _FLOAT64, "B": _UINT8}[values.dtype.char]
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    tensor = _integer(1, len(values)) + _integer(2, element) + _message(9, raw)
    return _attribute(name, _ATTRIBUTE_TENSOR, _message(5, tensor))


def _message(number: int, payload: bytes) -> bytes:
    """A length-delimited field: strings, messages, packed numbers."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(values: NDArray[np.uint64]) -> bytes:
    """Many at once: seven bits a column, and of each row only the columns up to its highest bit."""
    groups: Iterable[int] = range(0, max(1, int(values.max(initial=0)).bit_length()), 7)
    shifted = np.stack([values >> np.uint64(shift) for shift in groups], axis=1)
    is_kept = shifted > 0
    is_kept[:, 0] = True
    has_more = np.zeros_like(is_kept)
    has_more[:, :-1] = is_kept[:, 1:]
    encoded = (shifted & np.uint64(0x7F)).astype(np.uint8) | has_more.astype(np.uint8) << 7
    return encoded[is_kept].tobytes()
