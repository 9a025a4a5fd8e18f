"""Answers to messages. Inference answers are written field by field; all others from the values that HTTP sends."""

from typing import Any

import numpy as np

from farthing.config.model import ModelConfig
from farthing.protocols.kserve.bytes_tensor import pack_bytes
from farthing.protocols.kserve.classification import classify
from farthing.protocols.kserve.encode import datatype_named, output_spec
from farthing.protocols.kserve_grpc.messages import message_class
from farthing.protocols.kserve_grpc.parameters import write_parameter
from farthing.repository import wire
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor


def encode_infer(response: InferResponse, request: InferRequest, spec: ModelSpec) -> Any:
    """A `ModelInferResponse`. Tensors always travel in `raw_output_contents`, one entry for each output."""
    message = message_class("ModelInferResponse")(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, value in response.parameters.items():
        write_parameter(message.parameters[name], value)
    classes_by_name = {asked.name: asked.classes for asked in request.outputs if asked.classes}
    for name, tensor in response.outputs.items():
        shown = tensor
        if name in classes_by_name:
            is_batched = spec.batch_rows_max > 0
            shown = classify(tensor, classes_by_name[name], output_spec(name, spec), is_batched=is_batched)
        message.outputs.add(name=name, datatype=datatype_named(name, shown), shape=shown.shape)
        message.raw_output_contents.append(_raw(name, shown))
    return message


def _raw(name: str, tensor: Tensor) -> bytes:
    if tensor.dtype.kind == "O":
        return pack_bytes(tensor, name)
    return np.ascontiguousarray(tensor).tobytes()


def message_of(name: str, values: dict[str, Any]) -> Any:
    """The message of that name with the values that HTTP would send as JSON: the fields have the same names."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(values, message_class(name)())


def config_message(config: ModelConfig) -> Any:
    """A `ModelConfigResponse`."""
    message = message_class("ModelConfigResponse")()
    message.config.CopyFrom(wire.to_message(config))
    return message
