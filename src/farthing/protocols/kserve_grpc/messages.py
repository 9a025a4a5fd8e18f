"""The message classes of the service, in a descriptor pool of their own.

KServe's and Triton's client libraries both register the package `inference` in protobuf's default pool, and so a
process can import only one of them; ours live beside either. protobuf is imported on first use.
"""

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from farthing.protocols.kserve_grpc.fields import FIELDS_MAX, check_fields
from farthing.repository import wire
from farthing.types.errors import InvalidInput

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

REFLECTION_SERVICES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
COMPILED: Final = ("grpc_service.binpb", "health.binpb", "reflection.binpb", "reflection_v1alpha.binpb")

Message = Any
"""A protobuf message: its fields are made at run time, so no type checker knows them."""


@cache
def pool() -> "DescriptorPool":
    """The service's messages, the model configuration they contain, and the standard health check and reflection."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    private = wire.pool()
    folder = resources.files("farthing.protocols.kserve_grpc")
    for compiled in COMPILED:
        for file in FileDescriptorSet.FromString(folder.joinpath(compiled).read_bytes()).file:
            private.Add(file)
    return private


@cache
def message_class(name: str) -> Any:
    """The class of one of the service's messages, such as `ModelInferRequest`."""
    return _class(f"inference.{name}")


@cache
def health_message_class(name: str) -> Any:
    """The class of one of the health check's messages."""
    return _class(f"grpc.health.v1.{name}")


@cache
def reflection_message_class(service: str, name: str) -> Any:
    """The class of one of the messages of a reflection service, each of which has its own."""
    return _class(f"{service.rpartition('.')[0]}.{name}")


def _class(full_name: str) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName(full_name))


def parse_message(kind: Any, data: bytes | memoryview) -> Message:
    """A message of this class. Raises `InvalidInput` for bytes that are none, and for too many fields."""
    from google.protobuf.message import DecodeError

    if len(data) > FIELDS_MAX:  # each field takes a byte or more
        check_fields(data)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(
            f"the {len(data)} bytes sent are no {kind.DESCRIPTOR.name} message: {str(error)[:200]}",
            hint="client and server must agree on the protocol's .proto files; strings must be UTF-8",
        ) from None
