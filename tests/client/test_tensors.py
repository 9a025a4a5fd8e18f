"""Arrays on the wire: what is sent is what the protocol says, and what comes back is what was sent."""

import contextlib
import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from farthing.client.tensors import decode_response, encode_request
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import NUMPY_DTYPES

NUMBERS = [dtype for name, dtype in NUMPY_DTYPES.items() if name not in {"BYTES", "BF16"}]
any_numbers = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4))
)


def answer_to(body: bytes, json_bytes: int | None) -> bytearray:
    """The bytes of a server that sends its inputs back."""
    head = json.loads(body[:json_bytes])
    document = {"model_name": "echo", "model_version": "1", "outputs": head["inputs"]}
    packed = json.dumps(document).encode()
    answer_to.json_bytes = None if json_bytes is None else len(packed)  # type: ignore[attr-defined]
    return bytearray(packed + (body[json_bytes:] if json_bytes is not None else b""))


def echoed(inputs: dict[str, Any], *, is_binary: bool) -> dict[str, NDArray[Any]]:
    answer = answer_to(*encode_request(inputs, (), {}, "", is_binary=is_binary))
    return decode_response(answer, answer_to.json_bytes)[1]  # type: ignore[attr-defined]


@given(any_numbers)
def test_numbers_survive_in_binary_bit_for_bit(array: NDArray[Any]) -> None:
    back = echoed({"x": array}, is_binary=True)["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(any_numbers.filter(lambda array: array.dtype != np.float16))
def test_numbers_survive_in_json(array: NDArray[Any]) -> None:
    back = echoed({"x": array}, is_binary=False)["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_byte_strings_survive_in_binary(elements: list[bytes]) -> None:
    sent = np.empty(len(elements), object)
    sent[:] = elements
    assert echoed({"x": sent}, is_binary=True)["x"].tolist() == elements


@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_survive_both_ways_as_utf8(elements: list[str]) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        encoded = [element.encode() for element in elements]
        sent = np.empty(len(elements), object)
        sent[:] = elements
        for is_binary in (True, False):
            assert echoed({"x": sent}, is_binary=is_binary)["x"].tolist() == encoded


def test_half_floats_of_both_kinds_travel_in_binary_only() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        array = np.array([1.5, -2], dtype)
        assert echoed({"x": array}, is_binary=True)["x"].tobytes() == array.tobytes()
        with pytest.raises(InvalidInput, match="JSON cannot carry"):
            encode_request({"x": array}, (), {}, "", is_binary=False)


def test_big_endian_arrays_are_turned_round() -> None:
    assert echoed({"x": np.array([1, 2], ">i4")}, is_binary=True)["x"].tolist() == [1, 2]


def test_an_array_of_no_protocol_type_is_named_with_what_is_allowed() -> None:
    with pytest.raises(InvalidInput, match="input `x` is an array of complex128") as caught:
        encode_request({"x": np.zeros(1, complex)}, (), {}, "", is_binary=True)
    assert "FP32" in caught.value.hint


def test_the_request_says_what_the_protocol_says() -> None:
    body, json_bytes = encode_request(
        {"a": np.array([[1, 2]], np.int32), "b": np.array([b"xy"], object)}, ["y"], {"timeout": 5}, "r1", is_binary=True
    )
    assert json.loads(body[:json_bytes]) == {
        "id": "r1",
        "inputs": [
            {"name": "a", "datatype": "INT32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "b", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5},
    }
    assert body[json_bytes:] == bytes([1, 0, 0, 0, 2, 0, 0, 0]) + b"\x02\x00\x00\x00xy"


def test_without_named_outputs_all_are_asked_for_in_binary() -> None:
    body, json_bytes = encode_request({"a": np.zeros(1)}, (), {}, "", is_binary=True)
    assert json.loads(body[:json_bytes])["parameters"] == {"binary_data_output": True}


def test_outputs_are_arrays_one_can_write_to() -> None:
    back = echoed({"x": np.zeros(3, np.float32)}, is_binary=True)["x"]
    back[0] = 1
    assert back.tolist() == [1, 0, 0]


def test_not_a_number_survives_in_json() -> None:
    assert math.isnan(echoed({"x": np.array([np.nan], np.float32)}, is_binary=False)["x"][0])


OUTPUT = {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"outputs": [{}]},
        {"outputs": [{**OUTPUT, "shape": [3]}]},
        {"outputs": [{**OUTPUT, "datatype": "FP99"}]},
        {"outputs": [{**OUTPUT, "parameters": {"binary_data_size": 4}}]},
        {"outputs": [{**OUTPUT, "datatype": "BYTES"}]},
        {"outputs": [{**OUTPUT, "parameters": {}, "data": [1]}]},
        {"outputs": [{**OUTPUT, "parameters": {}, "data": ["a", "b"]}]},
    ],
)
def test_an_answer_that_does_not_add_up_is_the_servers_fault(document: Any) -> None:
    head = json.dumps(document).encode()
    with pytest.raises(EngineFailed, match="not in the protocol's form"):
        decode_response(bytearray(head + b"\xff" * 8), len(head))


@given(st.binary(max_size=100), st.integers(0, 100) | st.none())
def test_any_bytes_are_an_answer_or_an_error(body: bytes, json_bytes: int | None) -> None:
    with pytest.raises(EngineFailed):
        decode_response(bytearray(body), json_bytes)
