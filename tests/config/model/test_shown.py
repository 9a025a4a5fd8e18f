"""What `/config` answers, and filling the gaps from a loaded model."""

import json
from typing import Any

import pytest

from farthing.config.model import ModelConfig, complete_config, config_json, parse_model_config, tensor_specs
from farthing.types.errors import LoadFailed
from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec

SPEC = ModelSpec(
    name="mlp",
    version=1,
    platform="onnxruntime_onnx",
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=(-1, 32)),
        TensorSpec(name="text", datatype="BYTES", shape=(-1,), is_optional=True),
    ),
    outputs=(TensorSpec(name="y", datatype="INT64", shape=(-1, 8)),),
    batch_rows_max=16,
)

FULL: dict[str, Any] = {
    "name": "full",
    "backend": "onnxruntime",
    "version_policy": {"specific": {"versions": [1, 3]}},
    "max_batch_size": 8,
    "input": [
        {"name": "a", "data_type": "TYPE_STRING", "dims": [-1, 2], "optional": True, "reshape": {"shape": [2, -1]}}
    ],
    "output": [{"name": "b", "data_type": "TYPE_BF16", "dims": [1], "label_filename": "labels.txt"}],
    "dynamic_batching": {
        "preferred_batch_size": [2, 8],
        "priority_levels": 2,
        "default_priority_level": 1,
        "priority_queue_policy": {"1": {"timeout_action": "DELAY", "max_queue_size": 9}},
    },
    "instance_group": [{"count": 2, "rate_limiter": {"resources": [{"name": "R", "global": True, "count": 1}]}}],
    "parameters": {"k": {"string_value": "v"}},
    "response_cache": {"enable": True},
    "metric_tags": {"team": "a"},
}


def holds(shown: Any, given: Any) -> bool:
    """Whether all that was given is shown, beside what was filled in."""
    if isinstance(given, dict):
        return all(key in shown and holds(shown[key], item) for key, item in given.items())
    if isinstance(given, list):
        return len(shown) == len(given) and all(map(holds, shown, given))
    return bool(shown == given)


def test_what_was_written_is_shown_in_the_same_words() -> None:
    config = parse_model_config(FULL)
    shown = config_json(config)
    assert holds(shown, FULL)
    assert parse_model_config(json.loads(json.dumps(shown))) == config


def test_perf_analyzer_finds_its_fields_in_an_empty_configuration() -> None:
    shown = config_json(ModelConfig(name="m"))
    assert shown["max_batch_size"] == 0
    assert shown["platform"] == ""
    assert shown["model_transaction_policy"] == {"decoupled": False}
    assert shown["response_cache"] == {"enable": False}
    assert shown["version_policy"] == {"latest": {"num_versions": 1}}
    assert not {"dynamic_batching", "sequence_batching", "ensemble_scheduling"} & shown.keys()


def test_the_loaded_model_fills_the_gaps() -> None:
    config = complete_config(ModelConfig(), SPEC, backend="onnxruntime", default_model_filename="model.onnx")
    shown = config_json(config)
    assert shown["max_batch_size"] == 16
    assert shown["dynamic_batching"]["preferred_batch_size"] == []
    assert [(t["name"], t["data_type"], t["dims"]) for t in shown["input"]] == [
        ("x", "TYPE_FP32", [32]),
        ("text", "TYPE_STRING", []),
    ]
    assert shown["input"][1]["optional"] is True
    assert shown["input"][1]["reshape"] == {"shape": []}
    assert shown["instance_group"][0] | {"name": "mlp_0", "count": 1, "kind": "KIND_CPU"} == shown["instance_group"][0]
    assert shown["default_model_filename"] == "model.onnx"


def test_what_the_operator_said_stands() -> None:
    said = parse_model_config(FULL | {"name": "mlp"})
    config = complete_config(said, SPEC, backend="openvino")
    assert config.max_batch_size == 8
    assert config.input == said.input
    assert config.backend == "onnxruntime"
    assert config.instance_group[0].count == 2


def test_a_model_that_never_batches_gets_no_batcher() -> None:
    spec = ModelSpec(name="m", version=1, platform="p", inputs=SPEC.inputs, outputs=(), batch_rows_max=0)
    config = complete_config(ModelConfig(), spec, backend="b")
    assert config.max_batch_size == 0
    assert config.dynamic_batching is None
    assert config.input[0].dims == (-1, 32)


def test_configured_tensors_get_their_batch_dimension_back() -> None:
    config = parse_model_config(FULL)
    inputs, outputs = tensor_specs(config, has_batch_dimension=True, labels={"b": ("cat", "dog")})
    assert inputs == (TensorSpec(name="a", datatype="BYTES", shape=(-1, -1, 2), is_optional=True),)
    assert outputs == (TensorSpec(name="b", datatype="BF16", shape=(-1, 1), labels=("cat", "dog")),)
    assert tensor_specs(config, has_batch_dimension=False)[0][0].shape == (-1, 2)


def test_a_tensor_without_a_type_is_refused() -> None:
    config = parse_model_config({"name": "m", "input": [{"name": "a", "dims": [1]}]})
    with pytest.raises(LoadFailed, match="`a` has no data type"):
        tensor_specs(config, has_batch_dimension=True)
