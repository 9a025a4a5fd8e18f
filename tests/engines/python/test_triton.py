"""`triton_python_backend_utils` answers as Triton's does."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.python import triton as pb_utils
from farthing.types.tensors import NUMPY_DTYPES


def test_datatypes_translate_both_ways() -> None:
    assert pb_utils.triton_string_to_numpy("TYPE_FP32") is np.float32
    assert pb_utils.triton_string_to_numpy("TYPE_BOOL") is bool
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy("TYPE_FLOAT")
    assert pb_utils.numpy_to_triton_type(np.bool_) == 1
    assert pb_utils.numpy_to_triton_type(np.float32) == 11
    assert pb_utils.numpy_to_triton_type(np.bytes_) == 13
    assert pb_utils.numpy_to_triton_type(complex) is None
    assert pb_utils.triton_to_numpy_type(13) is np.object_
    assert pb_utils.triton_to_numpy_type(0) is None
    for dtype in NUMPY_DTYPES.values():
        number = pb_utils.numpy_to_triton_type(dtype.type)
        assert number is not None
        assert np.dtype(pb_utils.triton_to_numpy_type(number)) == dtype


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=9))
def test_bytes_tensors_are_serialised_as_the_protocol_says(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    data = pb_utils.serialize_byte_tensor(array)
    assert isinstance(data, bytes)
    assert pb_utils.deserialize_bytes_tensor(data).tolist() == elements


def test_what_is_no_bytes_tensor_is_serialised_as_triton_does() -> None:
    assert pb_utils.serialize_byte_tensor(np.empty(0, object)) == ()
    assert pb_utils.serialize_byte_tensor(np.zeros(2)) is None
    assert pb_utils.serialize_byte_tensor(np.array([12], object)) == b"\x02\0\0\x0012"
    assert pb_utils.serialize_byte_tensor(np.array([b"ab"])) == b"\x02\0\0\0ab"
    with pytest.raises(ValueError, match="element 0 is cut off"):
        pb_utils.deserialize_bytes_tensor(b"\x05\0\0\0ab")


def test_a_tensor_shares_memory_with_what_it_was_made_from() -> None:
    array = np.arange(3, dtype=np.float32)
    tensor = pb_utils.Tensor("t", array)
    assert (tensor.name(), tensor.is_cpu(), tensor.triton_dtype(), tensor.shape()) == ("t", True, 11, [3])
    assert tensor.as_numpy() is array
    for sharer in (tensor, tensor.to_dlpack(), array):
        again = pb_utils.Tensor.from_dlpack("u", sharer)
        assert np.shares_memory(again.as_numpy(), array)
    assert np.shares_memory(np.from_dlpack(tensor), array)
    assert pb_utils.Tensor("s", np.array(["é"])).as_numpy().dtype == object
    with pytest.raises(pb_utils.TritonModelException, match="is made of a list"):
        pb_utils.Tensor("t", [1])  # type: ignore[arg-type]
    with pytest.raises(pb_utils.TritonModelException, match="dtype complex128"):
        pb_utils.Tensor("t", np.zeros(1, complex))


def test_a_request_answers_every_question_of_the_interface() -> None:
    tensor = pb_utils.Tensor("x", np.zeros(1))
    request = pb_utils.InferenceRequest(
        "id", 7, ["y"], "m", 3, [tensor], flags=1, timeout=5, parameters={"a": 1, "b": "c"}
    )
    assert request.inputs() == [tensor]
    assert request.request_id() == "id"
    assert request.correlation_id() == 7
    assert request.requested_output_names() == ["y"]
    assert (request.model_name(), request.model_version()) == ("m", 3)
    assert request.flags() == pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
    assert request.timeout() == 5
    assert json.loads(request.parameters()) == {"a": 1, "b": "c"}
    assert request.preferred_memory().preferred_memory_type() == pb_utils.TRITONSERVER_MEMORY_CPU
    assert request.preferred_memory().preferred_device_id() == 0
    assert request.trace().get_context() is None
    assert request.is_cancelled() is False
    assert pb_utils.get_input_tensor_by_name(request, "x") is tensor
    assert pb_utils.get_input_tensor_by_name(request, "z") is None


def test_what_is_not_offered_says_so() -> None:
    refused: Any
    for refused in (pb_utils.load_model, pb_utils.MetricFamily):
        with pytest.raises(pb_utils.TritonModelException, match="is not offered by this server"):
            refused()


def test_a_request_is_released_or_runs_again() -> None:
    request = pb_utils.InferenceRequest(model_name="other", requested_output_names=["y"], inputs=[])
    assert not request.is_rescheduled
    request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
    assert request.is_rescheduled
    request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL)
    assert not request.is_rescheduled
    with pytest.raises(pb_utils.TritonModelException, match="release flags are 3"):
        request.set_release_flags(3)


def test_a_response_holds_outputs_or_an_error() -> None:
    tensor = pb_utils.Tensor("y", np.zeros(1))
    response = pb_utils.InferenceResponse([tensor], parameters={"n": 1})
    assert pb_utils.get_output_tensor_by_name(response, "y") is tensor
    assert pb_utils.get_output_tensor_by_name(response, "z") is None
    assert not response.has_error()
    assert json.loads(response.parameters()) == {"n": 1}
    failed = pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.NOT_FOUND))
    error = failed.error()
    assert error is not None
    assert (error.message(), error.code()) == ("no", 2)
    with pytest.raises(pb_utils.TritonModelException, match="response parameter 'n' is a list"):
        pb_utils.InferenceResponse(parameters={"n": []})
    with pytest.raises(pb_utils.TritonModelException, match=r"no pb_utils\.Tensor"):
        pb_utils.InferenceResponse([np.zeros(1)])  # type: ignore[list-item]


def configuration(**fields: Any) -> pb_utils.ModelConfig:
    return pb_utils.ModelConfig(json.dumps({"name": "m", "max_batch_size": 0, "input": [], "output": [], **fields}))


def test_a_configuration_is_completed() -> None:
    config = configuration(output=[{"name": "y", "data_type": "TYPE_INVALID", "dims": []}])
    config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4], "optional": True})
    config.add_output({"name": "y", "data_type": "TYPE_INT8", "dims": [-1]})
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    config.set_model_transaction_policy({"decoupled": False})
    done = config.as_dict()
    assert done["max_batch_size"] == 8
    assert done["dynamic_batching"] == {}
    assert pb_utils.get_input_config_by_name(done, "x") == {
        "name": "x",
        "data_type": "TYPE_FP32",
        "dims": [4],
        "optional": True,
    }
    assert pb_utils.get_output_config_by_name(done, "y") == {"name": "y", "data_type": "TYPE_INT8", "dims": [-1]}
    assert pb_utils.get_output_config_by_name(done, "z") is None
    assert not pb_utils.using_decoupled_model_transaction_policy(done)
    assert not pb_utils.using_decoupled_model_transaction_policy({})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x", "data_type": "TYPE_FP64", "dims": [4]}, "data_type is configured as TYPE_FP32"),
        ({"name": "x", "data_type": "TYPE_FP32", "dims": [5]}, r"dims is configured as \[4\], the model says \[5\]"),
        ({"name": "x", "data_type": "TYPE_FP32"}, "`dims` is missing"),
        ({"name": "x", "data_type": "TYPE_FP32", "dims": [4], "kind": 1}, "unknown property `kind`"),
    ],
)
def test_completing_must_agree_with_what_is_configured(entry: dict[str, Any], message: str) -> None:
    config = configuration(input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}])
    with pytest.raises(ValueError, match=message):
        config.add_input(entry)


def test_other_settings_must_agree_too() -> None:
    with pytest.raises(ValueError, match="max_batch_size is configured as 16, the model allows 8"):
        configuration(max_batch_size=16).set_max_batch_size(8)
    with pytest.raises(ValueError, match="sequence_batching is configured"):
        configuration(sequence_batching={}).set_dynamic_batching()
    with pytest.raises(ValueError, match="decoupled is configured as true, the model says false"):
        configuration(model_transaction_policy={"decoupled": True}).set_model_transaction_policy({"decoupled": False})
    with pytest.raises(ValueError, match="no transaction policy is `other`"):
        configuration().set_model_transaction_policy({"other": True})
