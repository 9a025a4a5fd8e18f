"""`ModelConfig` as the protobuf message of Triton's clients and files, and back.

The message classes live in a descriptor pool of their own: a process that also imports Triton's client library
has the same names in the default pool, and neither notices the other. protobuf is imported on first use.
"""

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from farthing.config.model import ModelConfig, config_json, parse_model_config

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message


@cache
def pool() -> "DescriptorPool":
    """The descriptors of `model_config.proto`; a file that imports it may be added."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    compiled = resources.files("farthing.repository").joinpath("model_config.binpb").read_bytes()
    private = DescriptorPool()
    for file in FileDescriptorSet.FromString(compiled).file:
        private.Add(file)
    return private


@cache
def message_class() -> "type[Message]":
    """The class of `inference.ModelConfig` messages."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName("inference.ModelConfig"))


def to_message(config: ModelConfig) -> "Message":
    """The message a gRPC client gets as the model's configuration."""
    from google.protobuf.json_format import ParseDict

    message = message_class()()
    ParseDict(config_json(config), message)
    return message


def from_message(message: "Message", *, source: str = "model configuration") -> ModelConfig:
    """The configuration in a message. Raises `LoadFailed` as `parse_model_config` does."""
    from google.protobuf.json_format import MessageToDict

    values: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return parse_model_config(values, source=source)
