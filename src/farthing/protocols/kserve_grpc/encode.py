"""Answers to messages. Inference answers are put together from pieces; all others from the values that HTTP sends."""

from typing import Any, Final

import numpy as np

from farthing.config.model import ModelConfig
from farthing.protocols.kserve.classification import classify
from farthing.protocols.kserve.encode import datatype_named, output_spec, tensor_bytes
from farthing.protocols.kserve_grpc.messages import message_class
from farthing.protocols.kserve_grpc.parameters import write_parameter
from farthing.protocols.memo import Memo
from farthing.repository import wire
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Regions

RAW_OUTPUT_CONTENTS: Final = 6
"""The number of that field."""

_heads: Final[Memo[tuple[str, str], bytes]] = Memo(1024)
"""A response with a model's name and version."""

_outputs: Final[Memo[tuple[str, np.dtype[Any], tuple[int, ...]], bytes]] = Memo(4096)
"""A response with one output's name, datatype and shape. Those clients really use are few."""


def encode_infer(
    response: InferResponse, request: InferRequest, spec: ModelSpec, regions: Regions | None = None
) -> bytes:
    """A `ModelInferResponse` on the wire. Tensors always travel in `raw_output_contents`, one entry for each output,
    which is empty for those put into shared memory.

    Fields may stand in any order and a message may be put together from pieces (protobuf's encoding, "field order" and
    "last one wins"), so what repeats from answer to answer is serialized once, and the tensors' bytes are added.
    """
    parts = [_head(response.model_name, response.model_version)]
    if response.id or response.parameters:
        own = message_class("ModelInferResponse")(id=response.id)
        for name, value in response.parameters.items():
            write_parameter(own.parameters[name], value)
        parts.append(own.SerializeToString())
    classes_by_name = {asked.name: asked.classes for asked in request.outputs if asked.classes}
    parts_by_name = {asked.name: asked.part for asked in request.outputs if asked.part is not None}
    for name, tensor in response.outputs.items():
        shown = tensor
        if name in classes_by_name:
            is_batched = spec.batch_rows_max > 0
            shown = classify(tensor, classes_by_name[name], output_spec(name, spec), is_batched=is_batched)
        raw = tensor_bytes(name, shown)
        if name in parts_by_name and regions is not None:
            regions.write(parts_by_name[name], raw, f"output '{name}'")
            raw = b""
        key = (name, shown.dtype, shown.shape)
        parts += (
            _outputs.get(key) or _outputs.remember(key, _output(*key)),
            length_prefix(RAW_OUTPUT_CONTENTS, len(raw)),
            raw,
        )
    return b"".join(parts)


def _head(model_name: str, model_version: str) -> bytes:
    key = (model_name, model_version)
    found = _heads.get(key)
    if found is None:
        message = message_class("ModelInferResponse")(model_name=model_name, model_version=model_version)
        found = _heads.remember(key, message.SerializeToString())
    return found


def _output(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    message = message_class("ModelInferResponse")()
    message.outputs.add(name=name, datatype=datatype_named(name, dtype), shape=shape)
    serialized: bytes = message.SerializeToString()
    return serialized


def length_prefix(number: int, size: int) -> bytes:
    """What stands before `size` bytes that are field `number` (protobuf's encoding, "length-delimited records")."""
    encoded = bytearray((number << 3 | 2,))
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def message_of(name: str, values: dict[str, Any]) -> Any:
    """The message of that name with the values that HTTP would send as JSON: the fields have the same names."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(values, message_class(name)())


def config_message(config: ModelConfig) -> Any:
    """A `ModelConfigResponse`."""
    message = message_class("ModelConfigResponse")()
    message.config.CopyFrom(wire.to_message(config))
    return message
