"""Tensor values as JSON, both ways."""

import json
import math

import numpy as np
import pytest

from farthing.protocols.kserve.bytes_tensor import object_tensor
from farthing.protocols.kserve.json_tensor import PACKERS_MAX, json_from_tensor
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import NUMPY_DTYPES

INTEGERS = [name for name in NUMPY_DTYPES if "INT" in name]


def refused(wire, datatype, data, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        wire.decode(wire.one(datatype, [1], data=data))
    return str(caught.value)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_exact_to_the_ends_of_their_range_and_refused_beyond(wire, datatype) -> None:
    info = np.iinfo(NUMPY_DTYPES[datatype])
    for many in (1, PACKERS_MAX):  # with a packer kept and one made for it
        data = [int(info.min), int(info.max)] * many
        tensor = wire.tensor(wire.one(datatype, [2 * many], data=data))
        assert tensor.tolist() == data
        assert json.loads(json_from_tensor(tensor, "y")) == data
        for beyond in (int(info.min) - 1, int(info.max) + 1, 1 << 200):
            with pytest.raises(InvalidInput, match=f"element 1 is .*{datatype} holds"):
                wire.decode(wire.one(datatype, [2 * many], data=[0, beyond] * many))


@pytest.mark.parametrize("value", [1.0, 1.5, True, None, "1", {}, [[1], 2], float("nan")])
def test_only_integers_are_integers(wire, value) -> None:
    refused(wire, "INT32", [value], r"inputs\[0\]\.data")


@pytest.mark.parametrize("value", [True, None, "1", {}])
def test_only_numbers_are_numbers(wire, value) -> None:
    assert "FP32 takes" in refused(wire, "FP32", [value], r"inputs\[0\]\.data")


@pytest.mark.parametrize("data", [1, "1", {}, None, True])
def test_data_is_an_array(wire, data) -> None:
    refused(wire, "FP32", data, r"inputs\[0\]\.data")


@pytest.mark.parametrize("many", [1, PACKERS_MAX + 1])
def test_a_number_too_large_for_its_datatype_is_refused_not_made_infinite(wire, many) -> None:
    for value in (1e39, -1e39):
        with pytest.raises(InvalidInput, match=r"element 0 is -?1e\+39; FP32 holds"):
            wire.decode(wire.one("FP32", [many], data=[value] * many))
    refused(wire, "FP64", [10**400], r"inputs\[0\]\.data")


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("many", [1, PACKERS_MAX])
def test_bare_nan_and_infinity_come_in_and_go_out(wire, datatype, many) -> None:
    values = [1.5, math.nan, math.inf, -math.inf, -0.0] * many
    tensor = wire.tensor(wire.one(datatype, [len(values)], data=values))
    assert wire.same(tensor, np.array(values, NUMPY_DTYPES[datatype]))
    assert json_from_tensor(tensor, "y") == b"[" + b",".join([b"1.5,NaN,Infinity,-Infinity,-0.0"] * many) + b"]"


def test_a_request_with_nan_is_checked_like_any_other(wire) -> None:
    for datatype, data in (
        ("BOOL", [math.nan]),
        ("INT8", [math.nan]),
        ("BYTES", [math.nan]),
        ("FP32", [[math.nan], [1, 2]]),
        ("FP32", math.nan),
        ("FP32", ["NaN"]),
    ):
        refused(wire, datatype, data, r"inputs\[0\]\.data")
    request = {**wire.one("FP32", [1], data=[math.nan]), "id": 3}
    with pytest.raises(InvalidInput, match="id"):
        wire.decode(request)
    with pytest.raises(InvalidInput, match="nested"):
        wire.decode(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN,' + b"[" * 250_000)
    with pytest.raises(InvalidInput, match="surrogate"):
        wire.decode(b'{"id":"\\ud800","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}')
    with pytest.raises(InvalidInput, match="failed to parse"):
        wire.decode(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN,' + b"9" * 5000 + b"]}]}")
    assert wire.decode({**wire.one("FP32", [1, 1], data=[[math.nan]]), "id": "\U0001f600"}).id == "\U0001f600"


def test_floats_go_out_as_short_as_they_read_back(wire) -> None:
    assert json_from_tensor(np.array([0.1, 1e30, 16777216], np.float32), "y") == b"[0.1,1e+30,16777216.0]"
    assert json_from_tensor(np.array([0.1], np.float64), "y") == b"[0.1]"


def test_booleans_are_words_or_zero_and_one(wire) -> None:
    for many in (1, PACKERS_MAX):
        tensor = wire.tensor(wire.one("BOOL", [4 * many], data=[True, False, 1, 0] * many))
        assert wire.same(tensor, np.array([True, False, True, False] * many))
    assert json_from_tensor(np.array([True, False]), "y") == b"[true,false]"
    for value in (2, -1, 1.5, "true", None):
        refused(wire, "BOOL", [value], r"inputs\[0\]\.data")


def test_strings_are_utf8_both_ways(wire) -> None:
    words = ["", "grün", "a\n\0", "\U0001f600"]
    tensor = wire.tensor(wire.one("BYTES", [2, 2], data=words))
    assert wire.same(tensor, object_tensor([word.encode() for word in words], (2, 2)))
    assert json.loads(json_from_tensor(tensor, "y")) == words
    with pytest.raises(InvalidInput, match="utf-8"):
        wire.decode(b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["\xff"]}]}')
    refused(wire, "BYTES", [1], "BYTES takes a flat or evenly nested array of strings")


def test_bytes_that_are_no_text_ask_for_the_binary_form() -> None:
    with pytest.raises(InvalidInput, match=r"`y`.*not UTF-8") as caught:
        json_from_tensor(object_tensor([b"ok", b"\xff"], (2,)), "y")
    assert "binary_data" in caught.value.hint


def test_a_model_that_puts_other_things_into_bytes_is_named() -> None:
    wrong = np.array([b"a", 3], object)
    with pytest.raises(EngineFailed, match="`y` is BYTES and the model put a int"):
        json_from_tensor(wrong, "y")


def test_nested_data_is_read_row_by_row_whatever_its_depth(wire) -> None:
    for data in (
        [[1, 2, 3], [4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        [[[1], [2]], [[3], [4]], [[5], [6]]],
        [[[[[1, 2, 3, 4, 5, 6]]]]],
    ):
        assert wire.tensor(wire.one("INT16", [2, 3], data=data)).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("data", [[[1, 2], [3]], [[1], 2], [1, [2]], [[[1, 2]], [[3], [4]]], [[], [1]]])
def test_ragged_data_is_no_tensor(wire, data) -> None:
    refused(wire, "INT32", data, r"inputs\[0\]\.data")


@pytest.mark.parametrize("shape", [[0], [0, 3], [3, 0], [1, 0, 2]])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
def test_empty_tensors_keep_their_shape(wire, shape, datatype) -> None:
    for data in ([], [[]], [[], []]):
        tensor = wire.tensor(wire.one(datatype, shape, data=data))
        assert tensor.shape == tuple(shape)
        assert tensor.dtype == NUMPY_DTYPES[datatype]
        assert json_from_tensor(tensor, "y") == b"[]"


def test_a_scalar_is_an_array_of_one(wire) -> None:
    tensor = wire.tensor(wire.one("FP32", [], data=[2]))
    assert tensor.shape == ()
    assert json_from_tensor(tensor, "y") == b"[2.0]"


def test_memory_with_gaps_is_written_too() -> None:
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert json_from_tensor(table[:, 1], "y") == b"[1.0,4.0]"
    assert json_from_tensor(table.T, "y") == b"[0.0,3.0,1.0,4.0,2.0,5.0]"
