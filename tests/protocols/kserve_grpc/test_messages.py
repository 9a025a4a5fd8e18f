"""The messages: Triton's numbers and types, beside Triton's own classes, from a compiled form that is fresh."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from farthing.protocols.kserve_grpc import health_message_class, message_class, parse_message
from farthing.protocols.kserve_grpc.messages import pool
from farthing.types.errors import InvalidInput

OURS_ONLY = {
    "inference.ModelMetadataResponse.properties",
    "inference.ModelStatistics.namespace",
    "inference.RepositoryIndexResponse.ModelIndex.namespace",
}
"""Of the Open Inference Protocol, or of ours alone, and not of Triton."""


@pytest.mark.parametrize("name", ["grpc_service", "health", "reflection", "reflection_v1alpha"])
def test_the_compiled_form_is_that_of_the_proto_file(tmp_path: Path, name: str) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    source = Path(str(resources.files("farthing.protocols.kserve_grpc"))) / f"{name}.proto"
    configuration = Path(str(resources.files("farthing.repository")))
    out = tmp_path / "out.binpb"
    assert (
        protoc.main(["", f"-I{source.parent}", f"-I{configuration}", f"--descriptor_set_out={out}", source.name]) == 0
    )
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    assert fresh == descriptor_pb2.FileDescriptorSet.FromString(source.with_suffix(".binpb").read_bytes())


def facts(message: Any) -> dict[str, Any]:
    """Full name -> number, type, whether repeated, message type and oneof of each field, nested ones too."""
    found: dict[str, Any] = {}
    for field in message.fields:
        kind = field.message_type.full_name if field.message_type else ""
        oneof = field.containing_oneof.name if field.containing_oneof else ""
        found[field.full_name] = (field.number, field.type, field.is_repeated, kind, oneof)
    for inner in message.nested_types:
        found |= facts(inner)
    return found


def test_every_field_has_triton_s_number_and_type() -> None:
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR.message_types_by_name
    ours = pool().FindMessageTypeByName("inference.ModelInferRequest").file.message_types_by_name
    assert ours.keys() <= theirs.keys()
    for name, message in ours.items():
        found = {field: what for field, what in facts(message).items() if not field.startswith(tuple(OURS_ONLY))}
        found = {field: what for field, what in found.items() if "PropertiesEntry" not in field}
        assert found == facts(theirs[name])


def test_triton_s_and_kserve_s_names_are_left_free_in_the_default_pool() -> None:
    message_class("ModelInferRequest")
    health_message_class("HealthCheckRequest")
    assert message_class("ModelInferRequest").DESCRIPTOR.file.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("grpc.health.v1.HealthCheckRequest")


def test_bytes_that_are_no_message_are_the_client_s_mistake() -> None:
    kind = message_class("ModelInferRequest")
    for data in (b"\xff" * 9, b"\x0a\x05abc", b"\x0a\x02\xff\xfe"):
        with pytest.raises(InvalidInput, match="are no ModelInferRequest message"):
            parse_message(kind, data)


def test_unknown_fields_are_passed_over() -> None:
    data = message_class("ModelReadyRequest")(name="m").SerializeToString() + b"\xfa\x3f\x03new"
    assert parse_message(message_class("ModelReadyRequest"), data).name == "m"
