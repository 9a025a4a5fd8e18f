"""config.pbtxt and model.toml: the same configuration, strict about mistakes, unharmed by garbage."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config.model import ModelConfig, config_json, parse_model_config
from farthing.repository.config_files import (
    CONFIG_FILE_BYTES_MAX,
    TOML_LINE_CHARACTERS_MAX,
    parse_pbtxt,
    parse_toml,
    read_config,
)
from farthing.types.errors import FarthingError, LoadFailed

PBTXT = """
# everything an operator is likely to write
name: "resnet50"
platform: "onnxruntime_onnx"
max_batch_size: 128
version_policy: { specific { versions: [1, 3] } }
input [
  {
    name: "images"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
  },
  { name: "size" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] } optional: true }
]
output [ { name: "scores", data_type: TYPE_FP32, dims: [ 1000 ], label_filename: "labels.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU rate_limiter { resources [ { name: "R1" global: true count: 4 } ] } } ]
dynamic_batching {
  preferred_batch_size: [ 16, 32 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 allow_timeout_override: true }
  priority_queue_policy { key: 2 value { max_queue_size: 10 } }
}
optimization {
  execution_accelerators { cpu_execution_accelerator : [ { name : "openvino" parameters { key: "p" value: "v" } } ] }
  input_pinned_memory { enable: false }
}
parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
parameters: { key: 'two' value { string_value: 'parts ' "of \\"it\\"" } }
metric_tags { key: "team" value: "vision" }
model_warmup [ { name: "w" batch_size: 1 inputs { key: "images" value { data_type: TYPE_FP32 dims: 3 zero_data: true } } } ]
model_transaction_policy { decoupled: False }
response_cache { enable: true }
default_model_filename: "net.onnx"
"""

TOML = r"""
# everything an operator is likely to write
name = "resnet50"
platform = "onnxruntime_onnx"
max_batch_size = 128
version_policy = [1, 3]
default_model_filename = "net.onnx"
response_cache = { enable = true }

[[input]]
name = "images"
data_type = "FP32"
format = "NCHW"
dims = [3, 224, 224]

[[input]]
name = "size"
data_type = "INT64"
dims = [1]
reshape = { shape = [] }
optional = true

[[output]]
name = "scores"
data_type = "FP32"
dims = [1000]
label_filename = "labels.txt"

[[instance_group]]
count = 2
kind = "CPU"
rate_limiter.resources = [{ name = "R1", global = true, count = 4 }]

[dynamic_batching]
preferred_batch_size = [16, 32]
max_queue_delay_microseconds = 100
priority_levels = 2
default_priority_level = 1
default_queue_policy = { timeout_action = "DELAY", default_timeout_microseconds = 5000, allow_timeout_override = true }
priority_queue_policy.2 = { max_queue_size = 10 }

[optimization]
execution_accelerators.cpu_execution_accelerator = [{ name = "openvino", parameters = { p = "v" } }]
input_pinned_memory.enable = false

[parameters]
intra_op_thread_count = 2
two = 'parts of "it"'

[metric_tags]
team = "vision"

[[model_warmup]]
name = "w"
batch_size = 1
inputs.images = { data_type = "FP32", dims = [3], zero_data = true }
"""

PIECES = [
    *("input", "output", "[", "]", "{", "}", ":", ",", "name", '"a"', "'b'", "dims", "1", "-1", "TYPE_FP32", "\n"),
    *("max_batch_size", "dynamic_batching", "parameters", "key", "value", "string_value", "data_type", "#", "<", ">"),
    *("[a.b/c]", "1e999", "nan", "0x7f", "18446744073709551616", "\\", '"\\377"', "=", ".", "[[", "]]", "true", '"""'),
    *("priority_queue_policy", "minimum_slot_utilization", "direct", "sequence_batching", "1979-05-27", "\ufeff"),
]
GARBAGE = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
ALMOST = st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: " ".join(pieces).encode())


def test_both_formats_say_the_same() -> None:
    config = parse_pbtxt(PBTXT.encode())
    assert config == parse_toml(TOML.encode())
    assert config.max_batch_size == 128
    assert config.parameters["two"].string_value == 'parts of "it"'
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.priority_queue_policy[2].max_queue_size == 10
    assert config.instance_group[0].rate_limiter is not None
    assert config.instance_group[0].rate_limiter.resources[0].is_global


def test_never_batch_differs_from_not_said() -> None:
    assert parse_pbtxt(b"max_batch_size: 0").max_batch_size == 0
    assert parse_pbtxt(b'name: "a"').max_batch_size is None
    assert parse_pbtxt(b"dynamic_batching { }").dynamic_batching is not None
    assert parse_pbtxt(b"") == ModelConfig() == parse_toml(b"")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name: "a"\nmax_batchsize: 3', "c.pbtxt:2:1: unknown field `max_batchsize`; did you mean `max_batch_size`?"),
        ("dynamic_batching {\n  delay: 3 }", "c.pbtxt:2:3: unknown field `delay`; known: preferred_batch_size, max_qu"),
        ('max_batch_size: "many"', "Couldn't parse integer"),
        (
            "max_batch_size: 1\nmax_batch_size: 2",
            'c.pbtxt:2:17: Message type "inference.ModelConfig" should not have mul',
        ),
        ("input { data_type: TYPE_FLOAT }", 'Enum type "inference.DataType" has no value named TYPE_FLOAT'),
        ("dynamic_batching {} sequence_batching {}", "another member of oneof"),
        ("input {", "c.pbtxt:1:"),
        ("sequence_batching { direct { minimum_slot_utilization: nan } }", "$.sequence_batching.direct.minimum_slot_u"),
        ("[type.googleapis.com/inference.ModelConfig] { }", "c.pbtxt:1:"),
    ],
)
def test_a_mistake_in_pbtxt_names_line_and_field(text: str, told: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        parse_pbtxt(text.encode(), source="c.pbtxt")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_batchsize = 3", "did you mean `max_batch_size`? - at `$`"),
        ("name =", "(at end of document)"),
        ('a = "b\n', "line 1"),
        ("name = 1979-05-27", "Expected `str`, got `date` - at `$.name`"),
        ('[input]\nname = "x"', "Expected `array`, got `object` - at `$.input`"),
        ("x = " + "[" * 3000, "nested too deeply"),
        ("x = 1" + "0" * 4080, ""),
        ("a." * TOML_LINE_CHARACTERS_MAX + "b = 1", "m.toml:1: a line of over 4096 characters"),
    ],
)
def test_a_mistake_in_toml_names_line_or_path(text: str, told: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        parse_toml(text.encode(), source="m.toml")
    assert str(caught.value).startswith("m.toml:")
    assert told in str(caught.value)


@pytest.mark.parametrize("parse", [parse_pbtxt, parse_toml])
def test_size_and_encoding_have_limits(parse: Callable[[bytes], ModelConfig]) -> None:
    with pytest.raises(LoadFailed, match="over 65536 bytes"):
        parse(b"#" * (CONFIG_FILE_BYTES_MAX + 1))
    with pytest.raises(LoadFailed, match="not UTF-8 at byte 2"):
        parse(b"# \xff")


def read_or_told(parse: Callable[[bytes], ModelConfig], data: bytes) -> None:
    try:
        shown = config_json(parse(data))
    except FarthingError as error:
        told = str(error)
    else:
        assert config_json(parse_model_config(shown)) == shown
        return
    assert len(told.encode()) < 2000


@given(GARBAGE | ALMOST)
def test_no_bytes_break_the_pbtxt_reader(data: bytes) -> None:
    read_or_told(parse_pbtxt, data)


@given(GARBAGE | ALMOST)
def test_no_bytes_break_the_toml_reader(data: bytes) -> None:
    read_or_told(parse_toml, data)


def test_a_folder_has_one_configuration_or_none(tmp_path: Path) -> None:
    assert read_config(tmp_path) is None
    (tmp_path / "model.toml").write_text("max_batch_size = 3")
    assert read_config(tmp_path) == ModelConfig(max_batch_size=3)
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 4")
    with pytest.raises(LoadFailed, match=r"both config\.pbtxt and model\.toml"):
        read_config(tmp_path)
    (tmp_path / "model.toml").unlink()
    assert read_config(tmp_path) == ModelConfig(max_batch_size=4)
