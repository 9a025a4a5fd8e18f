"""What the server says about itself and its models."""

import json

from farthing.protocols.kserve import (
    encode_json,
    index_json,
    live_json,
    model_metadata,
    model_ready_json,
    ready_json,
    server_metadata,
    statistics_json,
)
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.models import ModelSpec, ModelStatus
from farthing.types.tensors import TensorSpec


def test_server_metadata_has_extensions_as_a_list() -> None:
    assert server_metadata("farthing", "0.1", ("statistics",)) == {
        "name": "farthing",
        "version": "0.1",
        "extensions": ["statistics"],
    }


def test_model_metadata_has_versions_as_strings_and_minus_one_for_any_size() -> None:
    spec = ModelSpec(
        name="m",
        version=3,
        platform="onnxruntime_onnx",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="BYTES", shape=(-1,), labels=("a",)),),
        batch_rows_max=8,
    )
    assert json.loads(encode_json(model_metadata(spec, [1, 3]))) == {
        "name": "m",
        "versions": ["1", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1]}],
    }


def test_health_bodies_only_ever_say_true() -> None:
    assert encode_json(live_json()) == b'{"live":true}'
    assert encode_json(ready_json()) == b'{"ready":true}'
    assert encode_json(model_ready_json("m")) == b'{"name":"m","ready":true}'


def test_an_index_entry_says_only_what_is_known() -> None:
    models = [
        ModelStatus(name="a", version="1", state="READY"),
        ModelStatus(name="b"),
        ModelStatus(name="c", version="2", state="UNAVAILABLE", reason="no file"),
    ]
    assert index_json(models) == [
        {"name": "a", "version": "1", "state": "READY"},
        {"name": "b"},
        {"name": "c", "version": "2", "state": "UNAVAILABLE", "reason": "no file"},
    ]


def test_statistics_have_every_duration_as_numbers_zeros_too() -> None:
    statistics = ModelStatistics()
    statistics.batch_done(requests=2, rows=5, queue_ns=1 << 60, input_ns=1, compute_ns=2, output_ns=3, now_ms=4)
    (entry,) = json.loads(encode_json(statistics_json([statistics.snapshot("m", "1")])))["model_stats"]
    assert set(entry) == {
        "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "response_stats", "batch_stats", "memory_usage",
    }  # fmt: skip
    names = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert set(entry["inference_stats"]) == names
    for duration in entry["inference_stats"].values():
        assert set(duration) == {"count", "ns"}
        assert all(type(number) is int for number in duration.values())
    assert entry["inference_stats"]["queue"] == {"count": 2, "ns": 1 << 60}
    assert entry["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert entry["batch_stats"] == [
        {
            "batch_size": 5,
            "compute_input": {"count": 1, "ns": 1},
            "compute_infer": {"count": 1, "ns": 2},
            "compute_output": {"count": 1, "ns": 3},
        }
    ]
