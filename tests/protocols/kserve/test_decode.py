"""Rows V5 to V25 of the protocol's validation order, as far as the bytes alone can tell, and request options."""

import json
import re

import numpy as np
import pytest

from farthing.protocols.kserve import WireLimits, decode_infer
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.requests import RequestedOutput


def refused(wire, request, message, *tensors, kind=InvalidInput, status=400):
    with pytest.raises(kind, match=message) as caught:
        wire.decode(request, *tensors)
    assert caught.value.http_status == status
    return str(caught.value)


def test_a_plain_request_becomes_arrays_and_nothing_else(wire) -> None:
    request = wire.decode(wire.one("FP32", [1, 3], data=[1, 2.5, -3]))
    assert (request.model_name, request.model_version, request.id) == ("m", "", "")
    assert (request.parameters, request.outputs, request.priority, request.timeout_us) == ({}, (), 0, 0)
    assert wire.same(request.inputs["x"], np.array([[1, 2.5, -3]], np.float32))


def test_the_order_of_members_and_white_space_mean_nothing(wire) -> None:
    text = b' {"outputs" : [ {"name":"y"} ] ,\n "inputs":[{"data": [ [ 1 ],[2] ],"datatype":"INT8", "shape":[2 ],"name":"x"}],"id":"a"}'
    request = wire.decode(text)
    assert request.id == "a"
    assert request.inputs["x"].tolist() == [1, 2]
    assert request.outputs == (RequestedOutput("y"),)


def test_absent_null_and_unknown_members_are_the_same(wire) -> None:
    request = {
        **wire.one("INT8", [1], data=[1], parameters=None, later=[{}]),
        "id": None,
        "parameters": None,
        "outputs": None,
        "future": {"a": 1},
    }
    assert wire.decode(request) == wire.decode(wire.one("INT8", [1], data=[1]))


def test_the_last_of_two_members_with_one_name_counts(wire) -> None:
    assert wire.decode(b'{"id":"a","id":"b","inputs":[]}').id == "b"
    assert wire.decode(b'{"id":"a","id":"b","inputs":[]}', b"").id == "b"


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"nonsense", b"{]}", b"\xff\xfe", b'{"inputs":[]}x', b'{"inputs":[NaN', b'{"id":"\xff","inputs":[]}'],
)
def test_v5_a_body_that_is_not_json_is_the_clients_fault(wire, text) -> None:
    refused(wire, text, "failed to parse the request JSON buffer")
    if text:
        refused(wire, text, "failed to parse the request JSON buffer", b"")


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        ([], "got `array`"),
        ({}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [3]}, r"inputs\[0\]"),
        ({"inputs": [], "id": 7}, "id"),
        ({"inputs": [], "parameters": []}, "parameters"),
        ({"inputs": [], "outputs": {}}, "outputs"),
        ({"inputs": [], "outputs": [{}]}, r"outputs\[0\]"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": ["1"], "data": [1]}]}, r"inputs\[0\]\.shape\[0\]"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": 1, "data": [1]}]}, r"inputs\[0\]\.shape"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5], "data": [1]}]}, r"inputs\[0\]\.shape\[0\]"),
        ({"inputs": [{"name": "x", "datatype": 1, "shape": [1], "data": [1]}]}, r"inputs\[0\]\.datatype"),
        ({"inputs": [{"name": None, "datatype": "FP32", "shape": [1], "data": [1]}]}, r"inputs\[0\]\.name"),
        ({"inputs": [{"datatype": "FP32", "shape": [1], "data": [1]}]}, "name"),
    ],
)  # fmt: skip
def test_v6_the_wrong_json_type_is_named_with_its_place(wire, request_, place) -> None:
    refused(wire, request_, place)


def test_v7_a_negative_dimension_is_the_clients_fault(wire) -> None:
    refused(wire, wire.one("FP32", [1, -1], data=[1]), r">= 0.*inputs\[0\]\.shape\[1\]")


def test_an_unknown_datatype_is_answered_with_those_there_are(wire) -> None:
    text = refused(wire, wire.one("TYPE_FP32", [1], data=[1]), r"inputs\[0\]\.datatype.*`TYPE_FP32`")
    assert "BF16, FP32, FP64, BYTES" in text


@pytest.mark.parametrize("shape", [[1 << 62, 1 << 62], [0, 1 << 62, 1 << 62], [(1 << 63) - 1]])
def test_v9_a_shape_beyond_64_bits_is_refused(wire, shape) -> None:
    text = refused(wire, wire.one("FP32", shape, data=[]), "exceed maximum size")
    assert "byte size overflow" in text


@pytest.mark.parametrize("shape", [[1 << 70], [1] * 33, [10**400]])
def test_v9_dimensions_have_a_size_and_a_number(wire, shape) -> None:
    refused(wire, wire.one("FP32", shape, data=[1]), "inputs|range")


def test_v10_a_shape_that_implies_more_than_a_body_may_hold_is_refused_before_allocating(wire) -> None:
    for datatype, elements in (("FP32", 1 << 18), ("BYTES", 1 << 18), ("BOOL", 1 << 20)):
        refused(wire, wire.one(datatype, [elements + 1], data=[]), "exceeds the maximum allowed")
        refused(wire, wire.one_binary(datatype, [elements + 1], 4), "exceeds the maximum allowed", b"1234")
        refused(wire, wire.one(datatype, [elements], data=[]), "0 elements")


@pytest.mark.parametrize("data", [[], [1], [1, 2, 3], [[1, 2], [3, 4]]])
def test_v11_the_number_of_elements_must_fill_the_shape(wire, data) -> None:
    refused(wire, wire.one("FP32", [2], data=data), r"inputs\[0\]\.data: \d elements do not fill shape \[2\]")


def test_v15_the_same_input_or_output_twice_is_refused(wire) -> None:
    x = wire.one("INT8", [1], data=[1])["inputs"][0]
    binary = wire.one_binary("INT8", [1], 1)["inputs"][0]
    refused(wire, {"inputs": [x, x]}, "already exists in request")
    refused(wire, {"inputs": [binary, binary]}, "already exists in request", b"12")
    refused(wire, {"inputs": [binary, x]}, "already exists in request", b"1")
    refused(
        wire,
        {"inputs": [x], "outputs": [{"name": "y"}, {"name": "z"}, {"name": "y"}]},
        r"outputs\[2\].*already exists in request",
    )


def test_v22_an_input_has_its_values_in_exactly_one_place(wire) -> None:
    message = r"inputs\[0\].*exactly one of"
    refused(wire, wire.one("INT8", [1]), message)
    refused(wire, wire.one("INT8", [1], data=[1], parameters={"binary_data_size": 1}), message, b"1")
    refused(wire, wire.one("INT8", [1], data=[1], parameters={"shared_memory_region": "r"}), message)
    refused(wire, wire.one("INT8", [1], parameters={"shared_memory_region": "r", "binary_data_size": 1}), message)


def test_v23_an_output_in_shared_memory_can_be_neither_classes_nor_binary(wire) -> None:
    for parameters in ({"classification": 2}, {"binary_data": True}):
        asked = [{"name": "y", "parameters": {"shared_memory_region": "r", **parameters}}]
        refused(wire, {"inputs": [], "outputs": asked}, r"outputs\[0\]")


def test_shared_memory_is_refused_where_it_is_closed(wire) -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    refused(wire, wire.one("FP32", [1], parameters=parameters), "shared memory", kind=Unsupported, status=501)
    asked = [{"name": "y", "parameters": parameters}]
    refused(wire, {"inputs": [], "outputs": asked}, "shared memory", kind=Unsupported, status=501)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_v24_sixteen_bit_floats_do_not_travel_in_json(wire, datatype) -> None:
    assert "binary_data_size" in refused(wire, wire.one(datatype, [1], data=[1.0]), datatype)


@pytest.mark.parametrize("name", ["triton_enable_empty_final_response", "triton_", "headers"])
def test_v25_reserved_request_parameters_are_refused(wire, name) -> None:
    refused(wire, {"inputs": [], "parameters": {name: True}}, "reserved")


def test_reserved_parameters_go_to_their_fields_and_the_rest_to_the_model(wire) -> None:
    parameters = {
        "priority": 3,
        "timeout": 1000,
        "binary_data_output": True,
        "sequence_id": 7,
        "sequence_start": True,
        "mine": 1.5,
        "text": "t",
        "flag": False,
        "n": -1,
    }
    request = wire.decode({"inputs": [], "parameters": parameters})
    assert (request.priority, request.timeout_us, request.binary_output) == (3, 1000, True)
    assert request.parameters == {
        "sequence_id": 7,
        "sequence_start": True,
        "mine": 1.5,
        "text": "t",
        "flag": False,
        "n": -1,
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": -1}, {"priority": "1"}, {"priority": True}, {"priority": 1.0}, {"timeout": -1}, {"timeout": 1 << 63},
        {"binary_data_output": 1}, {"sequence_id": -1}, {"sequence_id": 1 << 64}, {"sequence_id": 1.5}, {"sequence_start": 1},
        {"sequence_end": "true"}, {"mine": None}, {"mine": []}, {"mine": {}}, {"mine": 1 << 64}, {"mine": -1 << 64},
    ],
)  # fmt: skip
def test_parameters_of_the_wrong_type_are_refused(wire, parameters) -> None:
    refused(wire, {"inputs": [], "parameters": parameters}, "parameters")


@pytest.mark.parametrize("text", ["", "a", "x" * 128, "\u00e4" * 64])
def test_a_sequences_id_may_be_a_text_of_128_bytes(wire, text) -> None:
    request = wire.decode({"inputs": [], "parameters": {"sequence_id": text}})
    assert request.parameters == {"sequence_id": text}


@pytest.mark.parametrize("text", ["x" * 129, "\u00e4" * 65])
def test_a_longer_one_is_refused(wire, text) -> None:
    message = {"inputs": [], "parameters": {"sequence_id": text}}
    refused(wire, message, "parameters.sequence_id: string correlation ID cannot exceed 128 bytes")


def test_outputs_carry_classes_and_binary(wire) -> None:
    asked = [
        {"name": "a"},
        {"name": "b", "parameters": {"classification": 3, "binary_data": False}},
        {"name": "c", "parameters": {"binary_data": True}},
    ]
    outputs = wire.decode({"inputs": [], "outputs": asked}).outputs
    assert outputs == (RequestedOutput("a"), RequestedOutput("b", 3, False), RequestedOutput("c", 0, True))


@pytest.mark.parametrize(
    "parameters", [{"classification": -1}, {"classification": "3"}, {"classification": 1_000_000}, {"binary_data": 1}]
)
def test_output_parameters_of_the_wrong_type_are_refused(wire, parameters) -> None:
    asked = [{"name": "y", "parameters": parameters}]
    refused(wire, {"inputs": [], "outputs": asked}, r"outputs\[0\]\.parameters")


def test_t8_data_nested_deeper_than_a_hundred_names_the_limit(wire) -> None:
    deep = wire.one("INT8", [1], data=json.loads("[" * 100 + "1" + "]" * 100))
    assert wire.decode(deep).inputs["x"].tolist() == [1]
    deeper = wire.one("INT8", [1], data=json.loads("[" * 101 + "1" + "]" * 101))
    refused(wire, deeper, "101 deep; the limit is 100")


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b'{"inputs":',
        b'{"parameters":{"a":',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":',
        b'{"other":',
        b'{"NaN":',
    ],
)
def test_t8_a_quarter_million_brackets_are_survived(wire, before) -> None:
    refused(wire, before + b"[" * 250_000, "array|nested|expected")
    refused(wire, before + b"[" * 250_000 + b"]" * 250_000 + (b"}" if before else b""), "array|nested|required")


def test_a_thousand_inputs_are_too_many_when_there_is_one_more(wire) -> None:
    inputs = [{"name": str(n), "datatype": "INT8", "shape": [1], "data": [1]} for n in range(1025)]
    assert len(wire.decode({"inputs": inputs[:1024]}).inputs) == 1024
    refused(wire, {"inputs": inputs}, "inputs")


def test_an_id_has_a_length(wire) -> None:
    refused(wire, {"id": "a" * 4097, "inputs": []}, "id")
    refused(wire, {"id": "a" * 4097, "inputs": []}, "id", b"")


def test_b10_a_raw_request_asks_the_model_and_others_do_not() -> None:
    def spec():
        raise LookupError("asked")

    def decode(header_length):
        return decode_infer(
            b'{"inputs":[]}',
            model_name="m",
            model_version="1",
            header_length=header_length,
            spec=spec,
            limits=WireLimits(),
        )

    assert decode(None).model_version == decode(13).model_version == "1"
    with pytest.raises(LookupError, match="asked"):
        decode(0)


def test_every_message_says_where(wire) -> None:
    good = {"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}
    text = refused(wire, {"inputs": [good, {"name": "b", "datatype": "INT8", "shape": [1], "data": [999]}]}, "999")
    assert re.search(r"inputs\[1\]\.data: element 0 is 999; INT8 holds -128 to 127", text)
