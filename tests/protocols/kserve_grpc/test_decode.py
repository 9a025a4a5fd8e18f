"""Messages to requests: raw and typed contents, parameters, and everything a message can have wrong."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.protocols.kserve_grpc.conftest import GrpcWire

from farthing.protocols.kserve_grpc import decode_infer, message_class, parse_message
from farthing.protocols.kserve_grpc.contents import TYPED_FIELDS
from farthing.types.errors import AlreadyExists, InvalidInput, TooLarge, Unsupported
from farthing.types.tensors import NUMPY_DTYPES

EXAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP32": [float("-inf"), 1.5],
    "FP64": [1e308, -0.1],
    "BYTES": [b"", b"\xff\x00a"],
}


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES.keys() - {"BYTES"}))
def test_raw_contents_of_every_datatype(grpc_wire: GrpcWire, datatype: str) -> None:
    tensor = np.array([[1, 0], [0, 1]], NUMPY_DTYPES[datatype])
    found = grpc_wire.tensor(datatype, [2, 2], tensor.tobytes())
    assert found.dtype == tensor.dtype
    assert found.shape == (2, 2)
    assert found.tobytes() == tensor.tobytes()


def test_raw_bytes_have_a_length_before_each_element(grpc_wire: GrpcWire) -> None:
    found = grpc_wire.tensor("BYTES", [2], b"\1\0\0\0a\0\0\0\0")
    assert found.tolist() == [b"a", b""]


@pytest.mark.parametrize("datatype", EXAMPLES)
def test_typed_contents_of_every_datatype_that_has_them(grpc_wire: GrpcWire, datatype: str) -> None:
    values = EXAMPLES[datatype]
    found = grpc_wire.tensor(datatype, [1, 2], **{TYPED_FIELDS[datatype]: values})
    assert found.dtype == NUMPY_DTYPES[datatype]
    assert found.shape == (1, 2)
    assert found.tolist() == [values]


def test_bfloat16_keeps_its_bits(grpc_wire: GrpcWire) -> None:
    tensor = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert grpc_wire.tensor("BF16", [2], tensor.tobytes()).tolist() == [1.5, -2]


def test_empty_tensors_are_tensors(grpc_wire: GrpcWire) -> None:
    assert grpc_wire.tensor("FP32", [0, 3], b"").shape == (0, 3)
    message = grpc_wire.one("FP32", [0, 3])
    message.inputs[0].contents.SetInParent()
    assert grpc_wire.decode(message).inputs["x"].shape == (0, 3)


# -- G1 to G4: where the values are --------------------------------------------------------------------------------------


def test_g1_raw_and_typed_contents_exclude_each_other_over_the_whole_request(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], int_contents=[1])
    message.inputs.add(name="y", datatype="INT8", shape=[1])
    message.raw_input_contents.append(b"\1")
    with pytest.raises(InvalidInput, match="must not be specified when using raw_input_contents for 'x'"):
        grpc_wire.decode(message)


def test_g2_raw_contents_are_in_the_order_of_the_inputs(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], b"\1")
    message.inputs.add(name="y", datatype="INT8", shape=[1])
    message.raw_input_contents.append(b"\2")
    assert {name: tensor.tolist() for name, tensor in grpc_wire.decode(message).inputs.items()} == {"x": [1], "y": [2]}


def test_g2_too_few_raw_entries_name_the_input_without(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], b"\1")
    message.inputs.add(name="y", datatype="INT8", shape=[1])
    with pytest.raises(InvalidInput, match="unable to find data for input tensor 'y'"):
        grpc_wire.decode(message)


def test_g2_surplus_raw_entries_are_refused(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], b"\1")
    message.raw_input_contents.append(b"\2")
    with pytest.raises(InvalidInput, match="2 entries for 1 inputs"):
        grpc_wire.decode(message)


@pytest.mark.parametrize("datatype", EXAMPLES)
def test_g3_the_filled_list_must_be_that_of_the_datatype(grpc_wire: GrpcWire, datatype: str) -> None:
    wrong = next(field for field in ("fp64_contents", "fp32_contents") if field != TYPED_FIELDS[datatype])
    with pytest.raises(InvalidInput, match=f"`{wrong}` is filled, but input 'x' is {datatype}") as refused:
        grpc_wire.tensor(datatype, [1], **{wrong: [1]})
    assert TYPED_FIELDS[datatype] in refused.value.hint


def test_g3_two_filled_lists_are_one_too_many(grpc_wire: GrpcWire) -> None:
    with pytest.raises(InvalidInput, match="`int64_contents` is filled"):
        grpc_wire.tensor("INT32", [1], int_contents=[1], int64_contents=[1])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_g3_sixteen_bit_floats_are_raw_only(grpc_wire: GrpcWire, datatype: str) -> None:
    with pytest.raises(InvalidInput, match=f"{datatype} has no typed contents"):
        grpc_wire.tensor(datatype, [1], fp32_contents=[1])


def test_g4_an_input_without_data_is_told_so(grpc_wire: GrpcWire) -> None:
    with pytest.raises(InvalidInput, match="unable to find data for input tensor 'x'"):
        grpc_wire.tensor("FP32", [1])


def test_g4_shared_memory_and_contents_contradict(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], int_contents=[1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="both `contents` and `shared_memory_region`"):
        grpc_wire.decode(message)


def test_shared_memory_is_refused_where_it_is_closed(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="`shared_memory_byte_size` is missing"):
        grpc_wire.decode(message)
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 1
    with pytest.raises(Unsupported, match="shared memory"):
        grpc_wire.decode(message)
    message = grpc_wire.one("INT8", [1], b"\1")
    asked = message.outputs.add(name="y")
    asked.parameters["shared_memory_region"].string_param = "r"
    asked.parameters["shared_memory_byte_size"].int64_param = 1
    with pytest.raises(Unsupported, match="shared memory"):
        grpc_wire.decode(message)


# -- counts, sizes, names ------------------------------------------------------------------------------------------------


def test_sizes_and_counts_must_be_those_of_the_shape(grpc_wire: GrpcWire) -> None:
    with pytest.raises(InvalidInput, match="input byte size mismatch for input 'x'"):
        grpc_wire.tensor("FP32", [2], bytes(7))
    with pytest.raises(InvalidInput, match="3 elements, and `fp32_contents` has 2"):
        grpc_wire.tensor("FP32", [3], fp32_contents=[1, 2])
    with pytest.raises(InvalidInput, match="expected 1 string elements"):
        grpc_wire.tensor("BYTES", [1], b"\0\0\0\0\0\0\0\0")


@pytest.mark.parametrize(("datatype", "field", "value"), [("INT8", "int_contents", 128), ("UINT8", "uint_contents", 256), ("INT16", "int_contents", -32769), ("UINT16", "uint_contents", 65536)])  # fmt: skip
def test_values_are_not_wrapped_into_narrow_datatypes(
    grpc_wire: GrpcWire, datatype: str, field: str, value: int
) -> None:
    with pytest.raises(InvalidInput, match=f"{value} does not fit {datatype}"):
        grpc_wire.tensor(datatype, [2], **{field: [0, value]})


def test_a_dimension_of_minus_one_is_refused(grpc_wire: GrpcWire) -> None:
    with pytest.raises(InvalidInput, match="negative dimension"):
        grpc_wire.tensor("FP32", [-1, 2], bytes(8))


def test_shapes_are_measured_before_anything_is_allocated(grpc_wire: GrpcWire) -> None:
    with pytest.raises(TooLarge, match="exceeds the maximum allowed input size"):
        grpc_wire.tensor("FP32", [1 << 30], b"")
    with pytest.raises(TooLarge, match="byte size overflow"):
        grpc_wire.tensor("FP32", [1 << 62, 1 << 62], b"")
    with pytest.raises(TooLarge, match="33 dimensions"):
        grpc_wire.tensor("FP32", [1] * 33, bytes(4))


def test_numbers_of_tensors_and_the_id_are_bounded(grpc_wire: GrpcWire) -> None:
    with pytest.raises(TooLarge, match="1025 inputs"):
        grpc_wire.decode(grpc_wire.message(inputs=[{"name": str(i)} for i in range(1025)]))
    with pytest.raises(TooLarge, match="1025 outputs"):
        grpc_wire.decode(grpc_wire.message(outputs=[{"name": str(i)} for i in range(1025)]))
    with pytest.raises(TooLarge, match="id: 4097 characters"):
        grpc_wire.decode(grpc_wire.message(id="i" * 4097))


def test_names_stand_once_and_datatypes_are_known(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.message(inputs=[{"name": "x"}, {"name": "x"}])
    with pytest.raises(AlreadyExists, match="already exists in request"):
        grpc_wire.decode(message)
    with pytest.raises(AlreadyExists, match="already exists in request"):
        grpc_wire.decode(grpc_wire.message(outputs=[{"name": "y"}, {"name": "y"}]))
    with pytest.raises(InvalidInput, match="`TYPE_FP32` is not a datatype"):
        grpc_wire.tensor("TYPE_FP32", [1], bytes(4))


# -- G6, G7: parameters --------------------------------------------------------------------------------------------------

Parameterised = Callable[..., Any]


def test_parameters_of_every_type_reach_the_model(grpc_wire: GrpcWire, with_parameter: Parameterised) -> None:
    for choice, value in (
        ("bool_param", True),
        ("int64_param", -(2**62)),
        ("uint64_param", 2**64 - 1),
        ("double_param", 0.5),
        ("string_param", "é"),
    ):
        found = grpc_wire.decode(with_parameter("mine", **{choice: value})).parameters["mine"]
        assert found == value
        assert type(found) is type(value)


def test_reserved_parameters_are_taken_out(grpc_wire: GrpcWire, with_parameter: Parameterised) -> None:
    for choice in ("int64_param", "uint64_param"):
        assert grpc_wire.decode(with_parameter("priority", **{choice: 2})).priority == 2
        assert grpc_wire.decode(with_parameter("timeout", **{choice: 1500})).timeout_us == 1500
    assert grpc_wire.decode(with_parameter("timeout", int64_param=1)).parameters == {}
    assert grpc_wire.decode(with_parameter("sequence_id", string_param="s")).parameters == {"sequence_id": "s"}


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("sequence_id", {"double_param": 1.0}),
        ("sequence_start", {"int64_param": 1}),
        ("sequence_end", {"string_param": "true"}),
        ("priority", {"int64_param": -1}),
        ("priority", {"string_param": "1"}),
        ("timeout", {"double_param": 1.0}),
        ("timeout", {"bool_param": True}),
        ("anything", {}),
    ],
)
def test_g6_a_parameter_of_the_wrong_type_is_named(
    grpc_wire: GrpcWire, with_parameter: Parameterised, name: str, choice: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=f"parameters.{name}"):
        grpc_wire.decode(with_parameter(name, **choice))


def test_g6_binary_flags_are_meaningless(grpc_wire: GrpcWire, with_parameter: Parameterised) -> None:
    request = grpc_wire.decode(with_parameter("binary_data_output", string_param="whatever"))
    assert request.binary_output
    assert request.parameters == {}


def test_g6_classification_is_a_number_over_0(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], b"\1")
    wanted = message.outputs.add(name="y").parameters["classification"]
    wanted.int64_param = 3
    assert grpc_wire.decode(message).outputs[0].classes == 3
    for wrong in (0, -1, 1_000_000):
        wanted.int64_param = wrong
        with pytest.raises(InvalidInput, match="classification"):
            grpc_wire.decode(message)
    wanted.string_param = "3"
    with pytest.raises(InvalidInput, match="classification"):
        grpc_wire.decode(message)


def test_g7_triton_parameters_are_reserved_but_for_one(grpc_wire: GrpcWire, with_parameter: Parameterised) -> None:
    for name in ("triton_final_response", "triton_x", "headers"):
        with pytest.raises(InvalidInput, match="reserved"):
            grpc_wire.decode(with_parameter(name, bool_param=True))
    assert grpc_wire.decode(with_parameter("triton_enable_empty_final_response", bool_param=True)).parameters == {}
    with pytest.raises(InvalidInput, match="reserved"):
        grpc_wire.decode(with_parameter("triton_enable_empty_final_response", int64_param=1))


def test_g13_the_version_is_left_to_whoever_knows_the_versions(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("INT8", [1], b"\1")
    assert grpc_wire.decode(message).model_version == ""
    message.model_version = "one"
    assert grpc_wire.decode(message).model_version == "one"


# -- strangers -----------------------------------------------------------------------------------------------------------

WIRE = GrpcWire()


@given(st.binary(max_size=400))
def test_random_bytes_are_no_message_or_a_request_or_an_error(data: bytes) -> None:
    with suppress(InvalidInput, Unsupported):
        WIRE.decode(parse_message(message_class("ModelInferRequest"), data))


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
parameter = st.one_of(
    st.just({}),
    st.builds(lambda v: {"bool_param": v}, st.booleans()),
    st.builds(lambda v: {"int64_param": v}, st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: {"uint64_param": v}, st.integers(0, 2**64 - 1)),
    st.builds(lambda v: {"double_param": v}, st.floats()),
    st.builds(lambda v: {"string_param": v}, names),
)
parameters = st.dictionaries(
    st.sampled_from(["sequence_id", "priority", "timeout", "classification", "shared_memory_region", "triton_x", "p"]),
    parameter,
    max_size=2,
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=3),
        "fp32_contents": st.lists(st.floats(width=32), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=3), max_size=3),
    },
)
dims = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([-1, 2**31, 2**63 - 1])), max_size=3)
inputs = st.fixed_dictionaries(
    {"name": names, "datatype": st.sampled_from([*NUMPY_DTYPES, "", "FP8"]), "shape": dims},
    optional={"contents": contents, "parameters": parameters},
)
messages = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=2), "raw_input_contents": st.lists(st.binary(max_size=24), max_size=3)},
    optional={
        "parameters": parameters,
        "outputs": st.lists(st.fixed_dictionaries({"name": names, "parameters": parameters}), max_size=2),
        "id": names,
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_random_messages_are_requests_or_errors_with_a_status(fields: dict[str, Any]) -> None:
    message = message_class("ModelInferRequest")(model_name="m", **fields)
    try:
        request = decode_infer(message, WIRE.limits)
    except (InvalidInput, Unsupported):
        return
    for item in message.inputs:
        tensor = request.inputs[item.name]
        assert tensor.shape == tuple(item.shape)
        assert tensor.dtype == NUMPY_DTYPES[item.datatype]
