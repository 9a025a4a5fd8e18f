"""Items in one tensor, in two, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.runtime.items import MadeItems, Part, items_of, parts
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import Tensor

SHAPES = st.integers(0, 3).flatmap(
    lambda rank: st.lists(st.lists(st.integers(0, 4), min_size=rank, max_size=rank), max_size=6).map(
        lambda shapes: (rank, shapes)
    )
)


def made(items: list[Tensor], shape: tuple[int, ...]) -> MadeItems:
    return MadeItems("y", items, np.dtype(np.float32), shape)


@given(SHAPES)
def test_items_of_any_shapes_come_back_from_a_ragged_pair_as_they_were(shapes: tuple[int, list[list[int]]]) -> None:
    rank, each = shapes
    items = [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in each]
    (_, values), (_, sizes) = parts(made(items, (-1,) * rank), ("v", "s"))
    assert values.tensor().dtype == np.float32
    assert sizes.tensor().shape == (len(items), rank)
    back = items_of([values.tensor(), sizes.tensor()], ["v", "s"], items_max=6, is_given=True)
    assert [item.shape for item in back] == [item.shape for item in items]
    for one, other in zip(back, items, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not one.size or np.shares_memory(one, values.tensor())
    assert items_of([values, sizes], ["v", "s"], items_max=6, is_given=False) is items


def test_no_items_have_the_shape_and_datatype_that_are_known() -> None:
    empty = made([], (3, -1))
    assert (empty.rows().shape, empty.rows().dtype) == ((0, 3, 0), np.float32)
    assert (empty.values().shape, empty.shapes().shape, empty.shapes().dtype) == ((0,), (0, 2), np.int64)


def test_rows_are_views_and_items_of_one_shape_become_rows() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    items = items_of([rows], ["x"], items_max=3, is_given=True)
    assert all(np.shares_memory(item, rows) for item in items)
    np.testing.assert_array_equal(made(list(items), (2,)).rows(), rows)
    words = np.array([b"a", b"b"], object)
    assert [item.shape for item in items_of([words], ["x"], items_max=3, is_given=True)] == [(), ()]


def test_a_part_is_put_together_once() -> None:
    part = Part(made([np.zeros(2, np.float32)] * 2, (2,)), "rows")
    assert part.tensor() is part.tensor()


def test_items_that_differ_are_no_rows() -> None:
    with pytest.raises(EngineFailed, match=r"different shapes, \[1\] and \(item 1\) \[2\]"):
        made([np.zeros(1, np.float32), np.zeros(2, np.float32)], (-1,)).rows()


@pytest.mark.parametrize(
    ("values", "shapes", "words"),
    [
        (np.zeros(4), np.array([[2], [3]]), r"item 1 of `s` has shape \[3\], which takes it to element 5 of `v`"),
        (np.zeros(4), np.array([[2]]), "`v` has 4 elements; the shapes in `s` hold 2"),
        (np.zeros(4), np.array([[-2, -2]]), r"has shape \[-2, -2\]"),
        (np.zeros(4), np.array([[2**62, 4]]), "takes it to element 18446744073709551616"),
        (np.zeros(4), np.array([2, 2]), r"INT64 \[2\]; expected values of one dimension and shapes INT64 of two"),
        (np.zeros(4), np.array([[2.0], [2.0]]), "expected values"),
        (np.zeros((2, 2)), np.array([[2], [2]]), "expected values"),
        (np.zeros(4), np.ones((4, 1), np.int64), "`v` has 4 items; allowed: 3"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_in_the_name_of_who_made_it(
    values: Tensor, shapes: Tensor, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        items_of([values, shapes], ["v", "s"], items_max=3, is_given=True)
    with pytest.raises((EngineFailed, InvalidInput), match=words):
        items_of([values, shapes], ["v", "s"], items_max=3, is_given=False)


def test_a_single_value_has_no_rows() -> None:
    with pytest.raises(EngineFailed, match="no rows"):
        items_of([np.array(1.0)], ["v"], items_max=3, is_given=False)
