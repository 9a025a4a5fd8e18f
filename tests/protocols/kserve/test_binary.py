"""Rows B1 to B5 and B10 of the binary tensor data extension, V20 and V21: what comes in."""

import struct

import ml_dtypes
import numpy as np
import pytest

from farthing.protocols.kserve import WireLimits, decode_infer, parse_header_length
from farthing.types.errors import AlreadyExists, InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec


def packed(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def refused(wire, request, message, *tensors):
    with pytest.raises(InvalidInput, match=message) as caught:
        wire.decode(request, *tensors)
    return str(caught.value)


def test_b1_without_the_header_the_whole_body_is_json(wire) -> None:
    refused(wire, b'{"inputs":[]}1234', "failed to parse")


@pytest.mark.parametrize(
    "value", ["", "12abc", "-1", "+1", " 1", "1 ", "1.0", "0x1", "١", "2147483648", "9" * 10_000, "1_0"]
)
def test_b2_a_header_length_is_plain_digits_within_int32(value) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        parse_header_length(value, 1 << 40)
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        parse_header_length(value.encode(), 1 << 40)


def test_b2_a_header_length_lies_within_the_body() -> None:
    assert parse_header_length(b"0", 0) == 0
    assert parse_header_length("10", 10) == 10
    assert parse_header_length(b"0010", 10) == 10
    with pytest.raises(InvalidInput, match="11 bytes of JSON announced, the body has 10"):
        parse_header_length(b"11", 10)


@pytest.mark.parametrize("size", ["8", 8.0, 8.5, True, -1, 1 << 70])
def test_b3_a_binary_size_is_an_unsigned_integer(wire, size) -> None:
    refused(wire, wire.one_binary("FP32", [2], size), r"inputs\[0\]\.parameters\.binary_data_size", b"8" * 8)


def test_b3_a_binary_size_of_zero_is_an_empty_tensor(wire) -> None:
    for datatype in ("FP32", "BYTES", "BOOL", "BF16"):
        for tensors in ((), (b"",)):
            assert wire.tensor(wire.one_binary(datatype, [0, 4], 0), *tensors).shape == (0, 4)


def test_b4_too_few_bytes_says_which_input_and_how_many_are_missing(wire) -> None:
    request = {
        "inputs": [
            wire.one_binary("FP32", [2], 8)["inputs"][0],
            {**wire.one_binary("FP32", [1], 4)["inputs"][0], "name": "z"},
        ]
    }
    refused(wire, request, "unexpected size for input 'x', expecting 3 additional bytes", b"12345")
    refused(wire, request, "unexpected size for input 'z', expecting 4 additional bytes", b"12345678")
    refused(wire, wire.one_binary("FP32", [1], 4), "unexpected size for input 'x', expecting 4 additional bytes")


def test_b5_too_many_bytes_are_refused(wire) -> None:
    refused(wire, wire.one_binary("FP32", [1], 4), "unexpected additional input data", b"12345")
    refused(wire, wire.one("FP32", [1], data=[1]), "unexpected additional input data", b"1")


@pytest.mark.parametrize("size", [7, 9, 4, 0])
def test_v20_the_size_must_be_the_shapes(wire, size) -> None:
    refused(wire, wire.one_binary("FP32", [2], size), f"input byte size mismatch.*Expected 8, got {size}", b"1" * size)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([2], packed(b"one") + b"\1", "incomplete length"),
        ([1], packed(b"one", b"two"), "expected 1 string elements"),
        ([2], packed(b"one") + b"\1\0\0", "incomplete length"),
        ([2], packed(b"one") + struct.pack("<I", 9) + b"12345678", "incomplete string element 1"),
        ([1], struct.pack("<I", 0xFFFFFFFF), "incomplete string element 0"),
        ([2], packed(b"12345"), "expected 2 string elements, got 1"),
        ([0], b"1234", "expected 0 string elements"),
    ],
)
def test_v21_string_elements_must_fill_the_shape_and_the_bytes(wire, shape, data, message) -> None:
    text = refused(wire, wire.one_binary("BYTES", shape, len(data)), message, data)
    assert "inputs[0]" in text


def test_v21_more_elements_than_bytes_is_known_before_reading(wire) -> None:
    refused(wire, wire.one_binary("BYTES", [3], 8), "input byte size mismatch.*Expected 12 or more, got 8", b"12345678")


def test_tensors_follow_each_other_without_gaps_wherever_they_come_to_lie(wire) -> None:
    first, second = np.arange(3, dtype=np.uint8), np.linspace(0, 1, 5000)
    text = np.array([b"a", b"", b"\xff\0"], object)
    request = {
        "inputs": [
            {"name": "b", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
            {"name": "j", "datatype": "INT8", "shape": [1], "data": [5]},
            {"name": "s", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": 15}},
            {"name": "d", "datatype": "FP64", "shape": [5000], "parameters": {"binary_data_size": 40000}},
        ]
    }
    for _ in range(2):  # the second time around, from what was kept
        inputs = wire.decode(request, first.tobytes(), packed(*text), second.tobytes()).inputs
        assert wire.same(inputs["b"], first)
        assert wire.same(inputs["s"], text)
        assert wire.same(inputs["d"], second)
        assert wire.same(inputs["j"], np.array([5], np.int8))


@pytest.mark.parametrize("padding", range(8))
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_every_tensor_lies_on_its_own_boundary(wire, padding, kind) -> None:
    for elements in (3, 4096):
        tensor = np.arange(elements, dtype=np.int64)
        text = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[%d],"parameters":{"binary_data_size":%d}}]}' % (
            elements,
            tensor.nbytes,
        )
        text += b" " * padding
        request = decode_infer(
            kind(text + tensor.tobytes()),
            model_name="m",
            model_version="",
            header_length=len(text),
            spec=LookupError,
            limits=WireLimits(),
        )
        found = request.inputs["x"]
        assert found.flags.aligned
        assert found.flags.c_contiguous
        assert wire.same(found, tensor)


def test_an_aligned_large_tensor_is_not_copied(wire) -> None:
    header = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[8192],"parameters":{"binary_data_size":8192}}]}'
    assert not wire.tensor(header, bytes(8192)).flags.owndata


def test_any_byte_but_zero_is_true(wire) -> None:
    found = wire.tensor(wire.one_binary("BOOL", [4], 4), b"\0\1\2\xff")
    assert wire.same(found, np.array([False, True, True, True]))


def test_a_kept_header_gives_each_request_its_own_id_and_bytes(wire) -> None:
    rest = wire.one_binary("FP32", [1], 4)
    for name in ("a", "b", "", "a b-c", 'q"uote', "ü", "tab\t", "\\", "\\u0041"):
        for value in (1.0, 2.0):
            request = wire.decode({"id": name, **rest}, struct.pack("<f", value))
            assert (request.id, request.inputs["x"].tolist()) == (name, [value])


def test_a_kept_header_does_not_make_a_broken_one_right(wire) -> None:
    rest = wire.one_binary("FP32", [1], 4)
    wire.decode({"id": "a", **rest}, b"1234")
    tail = b'","inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}'
    for broken in (
        tail,
        tail[1:],
        b'{"id":"a\n' + tail,
        b'{"id":"a\xff' + tail,
        b'{"id":"a' + tail[:-1],
        b'{"id":"' + b"a" * 5000 + tail,
    ):
        refused(wire, broken, "failed to parse", b"1234")


def test_an_id_inside_the_kept_part_still_counts_last(wire) -> None:
    rest = b'"inputs":[{"name":"x","datatype":"INT8","shape":[1],"parameters":{"binary_data_size":1}}]}'
    for key in (b'"id"', b'"\\u0069d"'):
        text = b'{"id":"%s",' + key + b':"last",' + rest
        assert wire.decode(text % b"first", b"1").id == "last"
        assert wire.decode(text % b"last", b"1").id == "last"
        assert wire.decode(text % b"other", b"1").id == "last"


def test_a_mistake_is_not_kept(wire) -> None:
    request = {"inputs": [wire.one_binary("INT8", [1], 1)["inputs"][0]] * 2}
    for _ in range(2):
        with pytest.raises(AlreadyExists):
            wire.decode(request, b"12")


def spec_of(*inputs: TensorSpec, batch_rows_max: int = 0) -> ModelSpec:
    return ModelSpec(name="m", version=1, platform="p", inputs=inputs, outputs=(), batch_rows_max=batch_rows_max)


def raw(body: bytes, spec: ModelSpec):
    return decode_infer(body, model_name="m", model_version="", header_length=0, spec=lambda: spec, limits=WireLimits())


def x(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "batch_rows_max", "size", "found"),
    [
        ("FP32", (-1, 4), 8, 16, (1, 4)),
        ("FP32", (-1, -1), 8, 12, (1, 3)),
        ("FP32", (2, 2), 0, 16, (2, 2)),
        ("INT8", (-1, 3), 0, 9, (3, 3)),
        ("BF16", (-1, 2, -1), 8, 12, (1, 2, 3)),
        ("BOOL", (-1,), 0, 0, (0,)),
    ],
)
def test_b10_a_raw_request_is_the_bytes_of_the_only_input(datatype, shape, batch_rows_max, size, found) -> None:
    request = raw(bytes(size), spec_of(x(datatype, *shape), batch_rows_max=batch_rows_max))
    assert request.inputs["x"].shape == found
    assert request.inputs["x"].dtype == x(datatype).dtype
    assert (request.binary_output, request.id, request.outputs, request.parameters) == (True, "", (), {})


@pytest.mark.parametrize("shape", [(-1, 1), (-1, -1), (1,), (1, -1)])
def test_b10_a_raw_string_is_sent_bare(shape) -> None:
    tensor = raw(b"hello", spec_of(x("BYTES", *shape), batch_rows_max=1 if len(shape) > 1 else 0)).inputs["x"]
    assert tensor.shape == (1,) * len(shape)
    assert tensor.reshape(-1).tolist() == [b"hello"]


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (spec_of(), 4),
        (spec_of(x("FP32", 1), x("FP32", 1)), 4),
        (spec_of(x("FP32", -1, -1)), 4),
        (spec_of(x("FP32", -1, -1, -1), batch_rows_max=8), 4),
        (spec_of(x("FP32", 2)), 4),
        (spec_of(x("FP32", -1, 3)), 13),
        (spec_of(x("FP32", -1, 0)), 4),
        (spec_of(x("BYTES", 2)), 4),
        (spec_of(x("BYTES", 0)), 4),
    ],
)
def test_b10_a_raw_request_that_leaves_a_question_open_is_refused(spec, size) -> None:
    with pytest.raises(InvalidInput):
        raw(bytes(size), spec)


def test_bf16_arrives_as_bf16(wire) -> None:
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert wire.same(wire.tensor(wire.one_binary("BF16", [2], 4), values.tobytes()), values)
