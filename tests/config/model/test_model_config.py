"""Reading a configuration from plain values: every spelling, every mistake with its path."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config.model import (
    CONFIG_TYPES,
    WIRE_DATATYPES,
    DataType,
    DynamicBatching,
    InstanceKind,
    ModelConfig,
    config_json,
    parse_model_config,
)
from farthing.types.errors import FarthingError, LoadFailed
from farthing.types.tensors import NUMPY_DTYPES


def test_nothing_has_to_be_said() -> None:
    config = parse_model_config({})
    assert config == ModelConfig()
    assert config.max_batch_size is None
    assert parse_model_config({"max_batch_size": 0}).max_batch_size == 0


def test_proto_json_is_read_as_triton_reads_it() -> None:
    written = parse_model_config(
        {
            "maxBatchSize": "8",
            "dynamicBatching": {"maxQueueDelayMicroseconds": "100", "preferredBatchSize": ["4", 8]},
            "instanceGroup": [{"kind": "KIND_CPU", "count": 2}],
            "ensembleScheduling": None,
        }
    )
    assert written.max_batch_size == 8
    assert written.dynamic_batching == DynamicBatching(preferred_batch_size=(4, 8), max_queue_delay_microseconds=100)
    assert written.instance_group[0].count == 2
    assert written.ensemble_scheduling is None


def test_short_spellings_mean_the_long_ones() -> None:
    short = {
        "version_policy": [1, 3],
        "input": [{"name": "t", "data_type": "bytes", "dims": [1], "format": "NCHW"}],
        "instance_group": [{"kind": "cpu"}],
        "parameters": {"threads": 2, "fast": True, "mode": {"string_value": "x"}},
    }
    long = {
        "version_policy": {"specific": {"versions": [1, 3]}},
        "input": [{"name": "t", "data_type": "TYPE_STRING", "dims": [1], "format": "FORMAT_NCHW"}],
        "instance_group": [{"kind": "KIND_CPU"}],
        "parameters": {
            "threads": {"string_value": "2"},
            "fast": {"string_value": "true"},
            "mode": {"string_value": "x"},
        },
    }
    assert parse_model_config(short) == parse_model_config(long)
    assert parse_model_config({"version_policy": "all"}).version_policy.all is not None
    assert parse_model_config({"version_policy": 2}).version_policy.latest.num_versions == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"max_batchsize": 1}, "unknown field `max_batchsize`; did you mean `max_batch_size`? - at `$`"),
        ({"dynamic_batching": {"delay": 1}}, "at `$.dynamic_batching`"),
        ({"dynamic_batching": {"max_queue_delay_microseconds": "soon"}}, "$.dynamic_batching.max_queue_delay_micro"),
        ({"input": [{"name": "a"}, {"nme": "b"}]}, "did you mean `name`? - at `$.input[1]`"),
        ({"input": {"name": "a"}}, "Expected `array`, got `object` - at `$.input`"),
        ({"max_batch_size": 2**31}, "$.max_batch_size"),
        ({"max_batch_size": 1, "maxBatchSize": 2}, "field `maxBatchSize` is given twice"),
        ({"input": [{"data_type": "FLOAT"}]}, "`FLOAT` is none of BOOL, UINT8"),
        ({"parameters": {"a": {"int_value": 1}}}, "at `$.parameters.a`"),
        ({"dynamic_batching": {"priority_queue_policy": {"high": {}}}}, "$.dynamic_batching.priority_queue_policy"),
        ({"sequence_batching": {"direct": {"minimum_slot_utilization": float("nan")}}}, "not a finite number"),
        ({"model_metrics": {"metric_control": [{"histogram_options": {"buckets": ["inf"]}}]}}, "buckets[0]"),
    ],
)
def test_a_mistake_is_told_with_its_path(values: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        parse_model_config(values, source="net/config.pbtxt")
    assert str(caught.value).startswith("net/config.pbtxt: ")
    assert told in str(caught.value)


@pytest.mark.parametrize("values", [[], None, 3, "x"])
def test_a_configuration_is_a_mapping(values: Any) -> None:
    with pytest.raises(LoadFailed, match="Expected `object`"):
        parse_model_config(values)


def test_every_wire_datatype_has_one_configuration_type() -> None:
    assert set(WIRE_DATATYPES.values()) == set(NUMPY_DTYPES)
    assert all(CONFIG_TYPES[wire] is kind for kind, wire in WIRE_DATATYPES.items())
    assert WIRE_DATATYPES[DataType.STRING] == "BYTES"


def test_what_was_given_is_not_changed() -> None:
    given_values = {"version_policy": "all", "parameters": {"a": 1}, "input": [{"name": "x", "reshape": None}]}
    copy = {"version_policy": "all", "parameters": {"a": 1}, "input": [{"name": "x", "reshape": None}]}
    parse_model_config(given_values)
    assert given_values == copy


FIELD_NAMES = [*ModelConfig.__struct_fields__, "maxBatchSize", "kind", "direct", "string_value", "latest", "dims"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["CPU", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), JSON, max_size=4))
def test_any_json_is_a_configuration_or_a_told_mistake(values: dict[str, Any]) -> None:
    try:
        config = parse_model_config(values)
    except FarthingError:
        return
    shown = config_json(config)
    assert config_json(parse_model_config(shown)) == shown


def test_the_kind_may_be_any_case() -> None:
    assert parse_model_config({"instance_group": [{"kind": "gpu"}]}).instance_group[0].kind is InstanceKind.GPU
