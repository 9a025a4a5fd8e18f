"""Many items in one tensor, or in two, and back: what a step with `each` reads and makes.

Items of one shape are the rows of a tensor. Items of different shapes are a ragged pair: `values` [elements], all
items' elements one after the other, and `shapes` INT64 [items, dimensions]. Taking items apart copies nothing; putting
them together copies once, and only when somebody reads them together. Pure.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np

from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.tensors import DATATYPES, Tensor

ROWS: Final = "rows"
VALUES: Final = "values"
SHAPES: Final = "shapes"

_HINT: Final = "values [elements] are the items' elements one after the other, shapes INT64 [items, dimensions] theirs"


class MadeItems:
    """One output of all items of a step, in order."""

    __slots__ = ("dtype", "items", "name", "shape")

    def __init__(self, name: str, items: Sequence[Tensor], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        """`shape` is what is known of an item's, -1 for any size: without items it is all there is."""
        self.name = name
        self.items = items
        self.dtype = dtype
        self.shape = shape

    def rows(self) -> Tensor:
        """The items as rows of one tensor [items, ...]. Raises `EngineFailed` if they differ in shape."""
        items = self.items
        if not items:
            return np.empty((0, *(max(size, 0) for size in self.shape)), self.dtype)
        shape = items[0].shape
        for place, item in enumerate(items):
            if item.shape != shape:
                raise EngineFailed(
                    f"the items of `{self.name}` have different shapes, {list(shape)} and (item {place}) "
                    f"{list(item.shape)}, so they are no rows of one tensor",
                    hint="take them as a pair, values and shapes, or read them in a step with `each`",
                )
        return items[0][np.newaxis] if len(items) == 1 else np.stack(items)

    def values(self) -> Tensor:
        """All elements, one item after the other."""
        return np.concatenate([item.ravel() for item in self.items]) if self.items else np.empty(0, self.dtype)

    def shapes(self) -> Tensor:
        """INT64 [items, dimensions]."""
        shapes = np.empty((len(self.items), len(self.shape)), np.int64)
        for place, item in enumerate(self.items):
            shapes[place] = item.shape
        return shapes


class Part:
    """Items as one of the tensors they can be read as, which is made when it is first read whole."""

    __slots__ = ("_form", "_tensor", "made")

    def __init__(self, made: MadeItems, form: str) -> None:
        self.made = made
        self._form = form
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The whole tensor. Raises `EngineFailed` if the items cannot be one."""
        if self._tensor is None:
            made = self.made
            self._tensor = (
                made.rows() if self._form == ROWS else made.values() if self._form == VALUES else made.shapes()
            )
        return self._tensor


def parts(made: MadeItems, tensors: Sequence[str]) -> list[tuple[str, Part]]:
    """Items under the name of one tensor, or under the two of a ragged pair."""
    return list(
        zip(tensors, (Part(made, form) for form in ((ROWS,) if len(tensors) == 1 else (VALUES, SHAPES))), strict=True)
    )


def items_of(
    tensors: Sequence[Tensor | Part], names: Sequence[str], *, items_max: int, is_given: bool
) -> Sequence[Tensor]:
    """The items in a tensor, or in a ragged pair; views.

    `is_given`: the client sent them. Raises `InvalidInput` if it is to blame and for more than `items_max`, else
    `EngineFailed`.
    """
    first, last = tensors[0], tensors[-1]
    if isinstance(first, Part) and isinstance(last, Part) and first.made is last.made:
        _bound(len(first.made.items), names, items_max)
        return first.made.items
    if len(tensors) == 1:
        rows = _whole(first)
        if not rows.ndim:
            raise _fault(is_given, f"`{names[0]}` is a single value, so it has no rows to take one by one")
        _bound(len(rows), names, items_max)
        # With the ellipsis, a row of a tensor of one dimension is a tensor too, not an element.
        return [rows[place, ...] for place in range(len(rows))]
    values, shapes = _whole(first), _whole(last)
    if shapes.dtype != np.int64 or shapes.ndim != 2 or values.ndim != 1:
        raise _fault(
            is_given,
            f"`{names[0]}` and `{names[1]}` are {_told(values)} and {_told(shapes)}; expected values of one "
            "dimension and shapes INT64 of two",
        )
    _bound(len(shapes), names, items_max)
    return _cut(values, shapes, names, is_given=is_given)


def _cut(values: Tensor, shapes: Tensor, names: Sequence[str], *, is_given: bool) -> list[Tensor]:
    items = []
    start = 0
    for place, shape in enumerate(shapes.tolist()):
        end = start + prod(shape)
        if min(shape, default=0) < 0 or end > len(values):
            raise _fault(
                is_given,
                f"item {place} of `{names[1]}` has shape {shape}, which takes it to element {end} of "
                f"`{names[0]}`, which has {len(values)}",
            )
        items.append(values[start:end].reshape(shape))
        start = end
    if start != len(values):
        raise _fault(is_given, f"`{names[0]}` has {len(values)} elements; the shapes in `{names[1]}` hold {start}")
    return items


def _whole(tensor: Tensor | Part) -> Tensor:
    return tensor.tensor() if isinstance(tensor, Part) else tensor


def _bound(count: int, names: Sequence[str], items_max: int) -> None:
    if count > items_max:
        raise InvalidInput(
            f"`{names[0]}` has {count} items; allowed: {items_max}",
            hint="send less in one request, or raise `items_max` of the step",
        )


def _fault(is_given: bool, message: str) -> FarthingError:
    return (InvalidInput if is_given else EngineFailed)(message, hint=_HINT)


def _told(tensor: Tensor) -> str:
    return f"{DATATYPES.get(tensor.dtype, str(tensor.dtype))} {list(tensor.shape)}"
