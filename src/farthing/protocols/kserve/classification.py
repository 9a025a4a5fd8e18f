"""The classification extension: a tensor of scores becomes the few best, as `value:index:label` strings."""

from math import prod
from typing import Final

import numpy as np

from farthing.protocols.kserve.bytes_tensor import object_tensor
from farthing.protocols.kserve.parameters import CLASSES_MAX
from farthing.types.errors import InvalidInput, TooLarge
from farthing.types.tensors import Tensor, TensorSpec

_SCORE_DTYPE: Final = np.dtype(np.float32)
"""What 16-bit scores are compared as: numpy sorts no bfloat16."""


def check_classification(output: TensorSpec) -> None:
    """Raises unless this output holds scores."""
    if output.datatype == "BYTES":
        raise InvalidInput(
            f"output `{output.name}`: classification needs numbers to sort, and it is BYTES",
            hint="leave `classification` out of this output's parameters",
        )


def classify(scores: Tensor, classes: int, output: TensorSpec, *, is_batched: bool) -> Tensor:
    """The `classes` best of each row (of the whole tensor where rows are no batch), best first.

    Equal scores keep the order of their indices, NaN comes last. Integer scores are written as integers, all
    others with six decimals.
    """
    check_classification(output)
    rows = scores.shape[0] if is_batched and scores.ndim else 1
    table = scores.reshape(rows, scores.size // rows if rows else prod(scores.shape[1:]))
    shown = min(classes, table.shape[1])
    if rows * shown >= CLASSES_MAX:
        raise TooLarge(
            f"output `{output.name}`: {rows} rows of {shown} classes; classification output tensor too "
            f"large, the limit is {CLASSES_MAX - 1} elements",
            hint="ask for fewer classes, or send fewer rows a request",
        )
    if output.datatype in ("FP16", "BF16"):
        table = table.astype(_SCORE_DTYPE)
    elif output.datatype == "BOOL":
        table = table.astype(np.uint8)
    best = _best_first(table)[:, :shown]
    is_integer = table.dtype.kind in "iu"
    labels = output.labels
    values = [
        _element(value, index, labels, is_integer)
        for row, picks in zip(table, best.tolist(), strict=True)
        for value, index in zip(row[picks].tolist(), picks, strict=True)
    ]
    return object_tensor(values, (rows, shown) if is_batched else (shown,))


def _best_first(table: Tensor) -> Tensor:
    """Indices of each row by falling score. Sorting the reversed row upwards and reversing keeps ties in order."""
    if table.dtype.kind == "f":
        table = np.where(np.isnan(table), -np.inf, table)
    last = table.shape[1] - 1
    order: Tensor = last - np.argsort(table[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order


def _element(value: float, index: int, labels: tuple[str, ...], is_integer: bool) -> bytes:
    text = f"{value}:{index}" if is_integer else f"{value:.6f}:{index}"
    if index < len(labels) and labels[index]:
        text += f":{labels[index]}"
    return text.encode()
