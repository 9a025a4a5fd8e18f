"""Loading a model of sequences: what it is told, what its clients see, what is refused."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import running_sum, save

from farthing.batching.sequence_tensors import Signal
from farthing.config.model import check_model_config, config_json, parse_model_config
from farthing.repository import Repository
from farthing.runtime.load import LoadedVersion, load_version
from farthing.types.errors import LoadFailed

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "sequences.md"

X = {"name": "x", "data_type": "FP32", "dims": [1]}
Y = {"name": "y", "data_type": "FP32", "dims": [1]}
START = {"name": "start", "control": [{"kind": "START", "fp32_false_true": [0, 1]}]}
ID = {"name": "id", "control": [{"kind": "CORRID", "data_type": "INT64"}]}
SUM = {"input_name": "before", "output_name": "after", "data_type": "FP32", "dims": [1]}


def load(
    tmp_path: Path,
    data: bytes | None = None,
    *,
    max_batch_size: int = 4,
    input: list[Any] | None = None,
    output: list[Any] | None = None,
    **block: Any,
) -> LoadedVersion:
    save(tmp_path / "net", data or running_sum())
    values: dict[str, Any] = {
        "max_batch_size": max_batch_size,
        "sequence_batching": {"control_input": [START, ID], "state": [SUM], **block},
    }
    if input is not None:
        values["input"] = input
    if output is not None:
        values["output"] = output
    config = parse_model_config(values)
    check_model_config(config, "net")
    found = Repository([tmp_path]).find("net", config=config)
    return load_version(found, found.versions[0])


def test_clients_see_neither_controls_nor_states(tmp_path: Path) -> None:
    spec = load(tmp_path).spec
    assert [tensor.name for tensor in spec.inputs] == ["x"]
    assert [tensor.name for tensor in spec.outputs] == ["y"]


def test_nor_where_the_configuration_lists_the_tensors(tmp_path: Path) -> None:
    spec = load(tmp_path, input=[X], output=[Y]).spec
    assert [tensor.name for tensor in (*spec.inputs, *spec.outputs)] == ["x", "y"]


def test_a_state_that_is_listed_as_an_output_is_one(tmp_path: Path) -> None:
    spec = load(tmp_path, input=[X], output=[Y, {**Y, "name": "after"}]).spec
    assert [tensor.name for tensor in spec.outputs] == ["y", "after"]


def test_without_a_strategy_it_is_direct_and_idle_for_a_second_and_config_says_so(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.sequences is not None
    rules = loaded.sequences.rules
    assert (rules.is_direct, rules.slots, rules.idle_ns, rules.fill_min) == (True, 4, 1_000_000_000, 0.0)
    shown = config_json(loaded.config)["sequence_batching"]
    assert shown["direct"] == {"max_queue_delay_microseconds": 0, "minimum_slot_utilization": 0.0}
    assert shown["max_sequence_idle_microseconds"] == 1_000_000
    assert "dynamic_batching" not in config_json(loaded.config)


def test_oldest_takes_its_candidates_sizes_and_delay(tmp_path: Path) -> None:
    oldest = {"max_candidate_sequences": 9, "preferred_batch_size": [4, 2], "max_queue_delay_microseconds": 50}
    loaded = load(tmp_path, oldest=oldest, max_sequence_idle_microseconds=7)
    assert loaded.sequences is not None
    rules = loaded.sequences.rules
    assert (rules.is_direct, rules.slots, rules.idle_ns) == (False, 9, 7000)
    assert (rules.limits.rows_max, rules.limits.preferred_rows, rules.limits.delay_ns_max) == (4, (2, 4), 50_000)


def test_oldest_with_nothing_said_is_measured(tmp_path: Path) -> None:
    loaded = load(tmp_path, oldest={})
    assert loaded.sequences is not None
    assert loaded.sequences.rules.limits.delay_ns_max is None
    assert config_json(loaded.config)["sequence_batching"]["oldest"]["max_candidate_sequences"] == 1024


def test_direct_takes_its_utilization_and_delay(tmp_path: Path) -> None:
    loaded = load(tmp_path, direct={"minimum_slot_utilization": 0.5, "max_queue_delay_microseconds": 3})
    assert loaded.sequences is not None
    assert (loaded.sequences.rules.fill_min, loaded.sequences.rules.fill_delay_ns) == (0.5, 3000)


def test_controls_take_their_values_and_the_files_dimensions(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.sequences is not None
    start, identity = loaded.sequences.tensors.controls
    assert (start.signal, start.datatype, start.shape, start.false, start.true) == (Signal.START, "FP32", (1, 1), 0, 1)
    assert (identity.signal, identity.datatype) == (Signal.ID, "INT64")


def test_an_initial_state_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "net" / "initial_state").mkdir(parents=True)
    (tmp_path / "net" / "initial_state" / "begin").write_bytes(np.array([2.5], "<f4").tobytes())
    told = {"name": "begin", "data_type": "FP32", "dims": [1], "data_file": "begin"}
    loaded = load(tmp_path, state=[{**SUM, "initial_state": [told], "use_same_buffer_for_input_output": True}])
    assert loaded.sequences is not None
    [state] = loaded.sequences.tensors.states
    assert state.initial.tolist() == [[2.5]]


@pytest.mark.parametrize(
    "told", [{}, {"initial_state": [{"name": "z", "data_type": "FP32", "dims": [1], "zero_data": True}]}]
)
def test_an_initial_state_is_zeros_told_or_not(tmp_path: Path, told: dict[str, Any]) -> None:
    loaded = load(tmp_path, state=[{**SUM, **told}])
    assert loaded.sequences is not None
    assert loaded.sequences.tensors.states[0].initial.tolist() == [[0]]


def test_the_reference_s_example_makes_sense() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    config = parse_model_config(tomllib.loads(example))
    check_model_config(config, "vad")
    assert config.sequence_batching is not None
    assert config.sequence_batching.oldest is not None


def test_warm_up_may_bring_controls_and_need_not(tmp_path: Path) -> None:
    save(tmp_path / "net", running_sum())
    config = tmp_path / "net" / "config.pbtxt"
    config.write_text("""
        max_batch_size: 4
        sequence_batching {
          control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                          { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
          state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
        }
        model_warmup [ { name: "two" batch_size: 2
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } }
          inputs { key: "start" value { data_type: TYPE_FP32 dims: [ 1 ] random_data: true } } } ]
    """)
    found = Repository([tmp_path]).find("net")
    assert load_version(found, found.versions[0]).spec.batch_rows_max == 4


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"control_input": [START]}, "leaves out input id"),
        ({"control_input": [START, {**ID, "name": "nobody"}]}, "the model file has no input `nobody`"),
        (
            {"control_input": [ID, {"name": "start", "control": [{"kind": "START", "int32_false_true": [0, 1]}]}]},
            r"configured as INT32 with one value a row, the model file says FP32 \[-1, 1\]",
        ),
        ({"state": [{**SUM, "dims": [2]}]}, r"state input `before` is configured as FP32 \[2\] behind the batch"),
        ({"state": [{**SUM, "data_type": "INT32"}]}, "is configured as INT32"),
        ({"state": [{**SUM, "output_name": "nobody"}]}, "the model file has no output `nobody`"),
        (
            {"state": [{**SUM, "initial_state": [{"data_type": "FP32", "dims": [1], "data_file": "../x"}]}]},
            "leads out of",
        ),
        (
            {"state": [{**SUM, "initial_state": [{"data_type": "FP32", "dims": [1], "data_file": "none"}]}]},
            "No such file",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, block: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        load(tmp_path, input=[X], output=[Y], **block)


def test_an_initial_state_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net" / "initial_state").mkdir(parents=True)
    (tmp_path / "net" / "initial_state" / "long").write_bytes(bytes(8))
    told = {"data_type": "FP32", "dims": [1], "data_file": "long"}
    with pytest.raises(LoadFailed, match=r"holds 2 elements; a state of .* has 1"):
        load(tmp_path, state=[{**SUM, "initial_state": [told]}])


def test_a_file_without_a_free_first_dimension_shares_no_runs(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="the model file says FP32"):
        load(tmp_path, running_sum(1))


def test_a_python_model_that_gives_no_state_is_told_so_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "py" / "1").mkdir(parents=True)
    (tmp_path / "py" / "1" / "model.py").write_text("""
from farthing import Tensor

class Sum:
    inputs = [Tensor("x", "FP32", [1])]
    outputs = [Tensor("y", "FP32", [1])]

    def infer(self, inputs):
        return inputs
""")
    (tmp_path / "py" / "config.pbtxt").write_text("""
        backend: "python"
        sequence_batching { state [ { input_name: "a" output_name: "b" data_type: TYPE_FP32 dims: [ 1 ] } ] }
    """)
    found = Repository([tmp_path]).find("py")
    with pytest.raises(LoadFailed, match="the model file has no output `b`"):
        load_version(found, found.versions[0])
