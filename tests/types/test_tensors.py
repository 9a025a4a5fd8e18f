"""Datatypes and shapes by the protocol's names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.types.tensors import DATATYPES, NUMPY_DTYPES, TensorSpec, datatype_of, shape_fits

SIZES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "UINT32": 4}
SIZES |= {"FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}


def test_every_datatype_of_the_protocol_has_its_own_dtype_of_the_right_size() -> None:
    assert NUMPY_DTYPES.keys() == SIZES.keys() | {"BYTES"}
    assert len(DATATYPES) == len(NUMPY_DTYPES)
    for name, size in SIZES.items():
        assert NUMPY_DTYPES[name].itemsize == size
        assert datatype_of(np.zeros(1, NUMPY_DTYPES[name])) == name
    assert datatype_of(np.array([b"text"], object)) == "BYTES"


def test_a_dtype_the_protocol_lacks_has_no_name() -> None:
    with pytest.raises(KeyError):
        datatype_of(np.zeros(1, np.complex64))


@pytest.mark.parametrize(
    ("shape", "expected", "fits"),
    [
        ((3, 4), (-1, 4), True),
        ((3, 4), (3, 4), True),
        ((3, 5), (-1, 4), False),
        ((3,), (-1, 4), False),
        ((), (), True),
        ((0, 4), (-1, 4), True),
        ((1,), (), False),
    ],
)
def test_minus_one_is_any_size(shape: tuple[int, ...], expected: tuple[int, ...], fits: bool) -> None:
    assert shape_fits(shape, expected) is fits


@given(st.lists(st.integers(0, 9), max_size=5), st.data())
def test_a_shape_fits_whatever_of_it_is_left_open(shape: list[int], data: st.DataObject) -> None:
    is_open = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    expected = tuple(-1 if free else size for size, free in zip(shape, is_open, strict=True))
    assert shape_fits(tuple(shape), expected)
    assert not shape_fits((*shape, 1), expected)


@pytest.mark.parametrize(
    ("datatype", "shape", "row_bytes"),
    [
        ("FP32", (-1, 3, 2), 24),
        ("INT8", (5,), 1),
        ("BF16", (-1, 0), 0),
        ("BYTES", (-1, 3), None),
        ("FP32", (-1, -1), None),
    ],
)
def test_a_row_has_a_size_if_its_shape_is_fixed(datatype: str, shape: tuple[int, ...], row_bytes: int | None) -> None:
    assert TensorSpec(name="x", datatype=datatype, shape=shape).row_bytes == row_bytes
