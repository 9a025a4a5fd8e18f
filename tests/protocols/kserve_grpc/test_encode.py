"""Answers to messages."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from farthing.config.model import parse_model_config
from farthing.protocols.kserve import index_json, model_metadata, statistics_json
from farthing.protocols.kserve_grpc import config_message, encode_infer, message_class, message_of, status_detail
from farthing.protocols.kserve_grpc.status import STATUS_DETAIL_BYTES_MAX
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.models import ModelSpec, ModelState, ModelStatus
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput, Timing
from farthing.types.tensors import NUMPY_DTYPES, Tensor, TensorSpec

SPEC = ModelSpec(
    name="m",
    version=1,
    platform="p",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3), labels=("a", "b")),),
    batch_rows_max=4,
)


def answer(outputs: dict[str, Tensor], *asked: RequestedOutput, **more: Any) -> Any:
    response = InferResponse(
        model_name="m", model_version="1", outputs=outputs, timing=Timing(0, 0, 0, 0, 1, 1), **more
    )
    data = encode_infer(response, InferRequest(model_name="m", inputs={}, outputs=asked), SPEC)
    return message_class("ModelInferResponse").FromString(data)


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES.keys() - {"BYTES"}))
def test_g5_every_output_is_one_raw_entry(datatype: str) -> None:
    tensor = np.array([[1, 0, 1]], NUMPY_DTYPES[datatype])
    message = answer({"y": tensor, "z": tensor[:, :0]})
    first, second = message.outputs
    assert (first.name, first.datatype, list(first.shape)) == ("y", datatype, [1, 3])
    assert (second.name, second.datatype, list(second.shape)) == ("z", datatype, [1, 0])
    assert list(message.raw_output_contents) == [tensor.tobytes(), b""]
    assert not first.HasField("contents")


def test_bytes_have_their_lengths_and_strides_are_straightened() -> None:
    message = answer({"s": np.array([b"ab", b""], object), "t": np.arange(6, dtype="<i4").reshape(2, 3).T})
    assert list(message.raw_output_contents) == [b"\2\0\0\0ab\0\0\0\0", np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()]


def test_bfloat16_goes_out_as_its_bits() -> None:
    tensor = np.array([1.5], ml_dtypes.bfloat16)
    assert answer({"y": tensor}).raw_output_contents[0] == tensor.tobytes()


def test_classification_is_bytes_with_labels() -> None:
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)
    message = answer({"y": scores}, RequestedOutput("y", 2))
    assert message.outputs[0].datatype == "BYTES"
    assert list(message.outputs[0].shape) == [1, 2]
    assert message.raw_output_contents[0] == b"\x0c\0\0\x000.700000:1:b\x0a\0\0\x000.200000:2"


def test_the_model_s_parameters_keep_their_types() -> None:
    message = answer({}, parameters={"b": True, "i": -1, "u": 2**64 - 1, "f": 0.5, "s": "é"}, id="7")
    found = {name: value.WhichOneof("parameter_choice") for name, value in message.parameters.items()}
    assert found == {
        "b": "bool_param",
        "i": "int64_param",
        "u": "uint64_param",
        "f": "double_param",
        "s": "string_param",
    }
    assert message.parameters["u"].uint64_param == 2**64 - 1
    assert message.id == "7"


def test_what_no_client_could_read_is_the_model_s_failure() -> None:
    with pytest.raises(EngineFailed, match="complex"):
        answer({"y": np.zeros(1, np.complex64)})
    with pytest.raises(EngineFailed, match="put a str into it"):
        answer({"y": np.array(["text"], object)})


def test_metadata_index_and_statistics_are_those_of_http() -> None:
    metadata = message_of("ModelMetadataResponse", model_metadata(SPEC, [1, 2]))
    assert list(metadata.versions) == ["1", "2"]
    assert list(metadata.inputs[0].shape) == [-1, 2]
    lines = [ModelStatus(name="m", version="1", state=ModelState.READY), ModelStatus(name="n")]
    index = message_of("RepositoryIndexResponse", {"models": index_json(lines)})
    assert [(line.name, line.state) for line in index.models] == [("m", "READY"), ("n", "")]
    statistics = ModelStatistics()
    statistics.batch_done(requests=2, rows=3, queue_ns=5, input_ns=1, compute_ns=7, output_ns=2, now_ms=1 << 41)
    one = message_of("ModelStatisticsResponse", statistics_json([statistics.snapshot("m", "1")])).model_stats[0]
    assert (one.inference_count, one.execution_count, one.last_inference) == (3, 1, 1 << 41)
    assert one.inference_stats.compute_infer.ns == 14
    assert one.batch_stats[0].batch_size == 3
    assert one.inference_stats.HasField("cache_hit")


def test_the_configuration_is_a_message_inside() -> None:
    config = config_message(parse_model_config({"name": "m", "max_batch_size": 8, "dynamic_batching": {}})).config
    assert (config.name, config.max_batch_size, config.HasField("dynamic_batching")) == ("m", 8, True)


def test_a_status_carries_the_hint_and_stays_short_enough_for_a_header() -> None:
    assert status_detail(InvalidInput("wrong", hint="do this")) == "wrong\nhint: do this"
    assert len(status_detail(FarthingError("é" * 5000)).encode()) <= STATUS_DETAIL_BYTES_MAX
    assert status_detail(FarthingError("no file \udcff")) == "no file \\udcff"
