"""The protobuf message: the same bytes as Triton's own, beside Triton's own."""

from importlib import resources
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from farthing.config.model import config_json, parse_model_config
from farthing.repository.config_files import parse_pbtxt
from farthing.repository.wire import from_message, message_class, pool, to_message

PBTXT = b"""
name: "m" max_batch_size: 4 version_policy { all {} }
input { name: "a" data_type: TYPE_BF16 dims: [-1, 3] reshape { shape: 3 } }
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] } }
  state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: 2 initial_state { zero_data: true dims: 2 } }
}
parameters { key: "k" value { string_value: "v" } }
model_metrics { metric_control { metric_identifier { family: "f" } histogram_options { buckets: [0.1, 1] } } }
"""


def test_a_message_holds_the_whole_configuration() -> None:
    config = parse_pbtxt(PBTXT)
    message = to_message(config)
    again = message_class().FromString(message.SerializeToString())
    assert from_message(again) == config


def test_the_compiled_form_is_that_of_the_proto_file(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    folder = resources.files("farthing.repository")
    with resources.as_file(folder.joinpath("model_config.proto")) as source:
        out = tmp_path / "out.binpb"
        assert protoc.main(["", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]) == 0
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    assert fresh == descriptor_pb2.FileDescriptorSet.FromString(folder.joinpath("model_config.binpb").read_bytes())


def test_triton_s_own_messages_live_beside_ours_and_read_our_bytes() -> None:
    theirs = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = parse_pbtxt(PBTXT)
    message = theirs.ModelConfig.FromString(to_message(config).SerializeToString())
    assert message.name == "m"
    assert message.sequence_batching.oldest.max_candidate_sequences == 4
    assert message.model_metrics.metric_control[0].histogram_options.buckets[0] == 0.1
    back = message_class().FromString(message.SerializeToString())
    assert from_message(back) == config


def test_every_field_has_triton_s_number_and_type() -> None:
    theirs = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    ours = pool().FindMessageTypeByName("inference.ModelConfig").file

    def facts(message: object) -> dict[str, object]:
        found: dict[str, object] = {}
        for field in message.fields:  # type: ignore[attr-defined]
            kind = field.message_type.full_name if field.message_type else ""
            found[f"{message.full_name}.{field.name}"] = (field.number, field.type, kind)  # type: ignore[attr-defined]
        for kind in message.enum_types:  # type: ignore[attr-defined]
            found[kind.full_name] = {value.name: value.number for value in kind.values}
        for inner in message.nested_types:  # type: ignore[attr-defined]
            found |= facts(inner)
        return found

    assert ours.message_types_by_name.keys() == theirs.DESCRIPTOR.message_types_by_name.keys()
    for name, message in ours.message_types_by_name.items():
        assert facts(message) == facts(theirs.DESCRIPTOR.message_types_by_name[name])


def test_every_field_of_the_message_is_one_of_the_struct_and_the_other_way_round() -> None:
    import msgspec

    from farthing.config.model import ModelConfig

    fields = {field.encode_name for field in msgspec.structs.fields(ModelConfig)}
    assert fields == {field.name for field in message_class().DESCRIPTOR.fields}
    assert config_json(parse_model_config({})).keys() <= fields
