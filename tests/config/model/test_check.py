"""What is refused before a model file is opened."""

from typing import Any

import pytest

from farthing.config.model import check_model_config, parse_model_config
from farthing.types.errors import LoadFailed

X = {"name": "x", "data_type": "FP32", "dims": [4]}
Y = {"name": "y", "data_type": "FP32", "dims": [4]}

CONTROL = {"control": [{"kind": "START", "fp32_false_true": [0, 1]}]}
ZEROS = {"name": "z", "data_type": "FP32", "dims": [4], "zero_data": True}


def control(kind: str, **values: Any) -> dict[str, Any]:
    return {"sequence_batching": {"control_input": [{"name": "c", "control": [{"kind": kind, **values}]}]}}


def state(**changes: Any) -> dict[str, Any]:
    whole = {"input_name": "a", "output_name": "b", "data_type": "FP32", "dims": [4]}
    return {"sequence_batching": {"state": [whole | changes]}}


def step(model: str, reads: str, makes: str) -> dict[str, Any]:
    return {"model_name": model, "input_map": {"i": reads}, "output_map": {"o": makes}}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "net", "max_batch_size": 8, "dynamic_batching": {"preferred_batch_size": [4, 8]}},
        {"input": [X | {"dims": [-1, 6], "reshape": {"shape": [-1, 2, 3]}}], "output": [Y]},
        {"input": [X | {"dims": [1], "reshape": {"shape": []}}]},
        {"input": [X | {"dims": [], "reshape": {"shape": []}}]},
        {"max_batch_size": 2, "dynamic_batching": {"priority_levels": 2, "default_priority_level": 2}},
        {"input": [X], "output": [Y], "ensemble_scheduling": {"step": [step("b", "t", "y"), step("a", "x", "t")]}},
        {"max_batch_size": 1, "sequence_batching": {"oldest": {"max_candidate_sequences": 4}}},
        {"model_warmup": [{"name": "w", "inputs": {"x": {"zero_data": True}}}]},
    ],
)
def test_what_makes_sense_passes(values: dict[str, Any]) -> None:
    check_model_config(parse_model_config(values), "net")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "other"}, "calls it `other`"),
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [8]}}, "has 8, more than max_batch_size 4"),
        ({"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [0]}}, "has 0; allowed: 1 or more"),
        ({"max_batch_size": 0, "dynamic_batching": {}}, "needs a max_batch_size of at least 1"),
        ({"dynamic_batching": {}, "sequence_batching": {}}, "dynamic_batching and sequence_batching"),
        ({"input": [X, X]}, "input `x` is listed twice"),
        ({"output": [Y, Y]}, "output `y` is listed twice"),
        ({"input": [X | {"name": ""}]}, "an input has no name"),
        ({"input": [{"name": "x", "dims": [1]}]}, "no data_type"),
        ({"input": [X | {"dims": []}]}, "dims is empty"),
        ({"input": [X | {"dims": [0]}]}, "dims has 0"),
        ({"input": [X | {"dims": [4], "reshape": {"shape": [3]}}]}, "cannot be reshaped"),
        ({"input": [X | {"dims": [2, -1, 3], "reshape": {"shape": [3, -1, 2]}}]}, "cannot be reshaped"),
        ({"input": [X | {"reshape": {"shape": [0]}}]}, "reshape has 0"),
        ({"input": [X | {"allow_ragged_batch": True}]}, "allow_ragged_batch needs"),
        ({"output": [Y | {"label_filename": "../labels.txt"}]}, "not a plain file name"),
        ({"version_policy": {"latest": {}, "all": {}}}, "latest and all"),
        ({"version_policy": []}, "names no versions"),
        ({"version_policy": [0]}, "versions start at 1"),
        ({"dynamic_batching": {"priority_levels": 2}}, "default_priority_level is 0; allowed: 1 to 2"),
        ({"dynamic_batching": {"default_priority_level": 2}}, "without priority_levels"),
        (
            {"dynamic_batching": {"preserve_ordering": True, "priority_levels": 2, "default_priority_level": 1}},
            "preserve_ordering goes with one priority level",
        ),
        (
            {"dynamic_batching": {"preserve_ordering": True, "default_queue_policy": {"timeout_action": "DELAY"}}},
            "does not go with timeout_action DELAY",
        ),
        ({"instance_group": [{"rate_limiter": {"resources": [{"count": 1}]}}]}, "resource has no name"),
        ({"dynamic_batching": {"priority_levels": 10**9, "default_priority_level": 1}}, "allowed: up to"),
        ({"dynamic_batching": {"priority_queue_policy": {"3": {}}}}, "has level 3"),
        ({"instance_group": [{"count": -1}]}, "instance_group[0].count is -1"),
        ({"instance_group": [{"kind": "CPU", "gpus": [0]}]}, "lists gpus"),
        ({"instance_group": [{"kind": "GPU", "gpus": [-1]}]}, "start at 0"),
        ({"instance_group": [{"name": "g"}, {"name": "g"}]}, "`g` is listed twice"),
        ({"instance_group": [{"rate_limiter": {"resources": [{"name": "R"}]}}]}, "`R` has count 0"),
        ({"model_warmup": [{"name": "w", "inputs": {"x": {}}}]}, "needs one of zero_data"),
        ({"platform": "ensemble"}, "there is no ensemble_scheduling"),
        ({"ensemble_scheduling": {}}, "has no step"),
        ({"ensemble_scheduling": {"step": [step("a", "?", "y")]}}, "reads `?`, which is no input"),
        ({"input": [X], "ensemble_scheduling": {"step": [step("a", "x", "x")]}}, "makes `x`, which exists already"),
        ({"input": [X], "output": [Y], "ensemble_scheduling": {"step": [step("a", "x", "t")]}}, "made by no step"),
        ({"ensemble_scheduling": {"step": [step("a", "u", "v"), step("b", "v", "u")]}}, "wait for each other"),
        ({"sequence_batching": {"direct": {}, "oldest": {}}}, "direct and oldest"),
        ({"sequence_batching": {"direct": {"minimum_slot_utilization": 2}}}, "allowed: 0 to 1"),
        ({"input": [X], "sequence_batching": {"state": [{"input_name": "x"}]}}, "`x` is an input more than once"),
        ({"sequence_batching": {"oldest": {"max_candidate_sequences": -1}}}, "max_candidate_sequences is -1"),
        (control("START"), "must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true'"),
        (control("END", int32_false_true=[0, 1], fp32_false_true=[0, 1]), "found 2 of them"),
        (control("READY", bool_false_true=[True]), "has 1 values; allowed: two"),
        (control("CORRID", data_type="FP32"), "has data_type TYPE_FP32; allowed: TYPE_UINT64"),
        (control("CORRID", data_type="INT32", int32_false_true=[0, 1]), "it is the sequence's id"),
        ({"sequence_batching": {"control_input": [{"name": "c"}]}}, "`c` has 0 controls; allowed: one"),
        ({"sequence_batching": {"control_input": [CONTROL]}}, "a control_input has no name"),
        (state(output_name=""), "input_name and output_name are both needed"),
        (state(data_type="INVALID"), "no data_type"),
        (state(dims=[]), "dims is empty"),
        (state(dims=[0]), "dims has 0"),
        (state(initial_state=[ZEROS, ZEROS]), "initial_state has 2 entries; allowed: one"),
        (state(initial_state=[{**ZEROS, "data_file": "f"}]), "needs one of zero_data and data_file"),
        (state(initial_state=[{**ZEROS, "data_type": "INT8"}]), "that of the state TYPE_FP32"),
        (state(initial_state=[{**ZEROS, "dims": [-1]}]), "all must be 1 or more and fit"),
        (state(dims=[-1], initial_state=[{**ZEROS, "dims": [2, 2]}]), "all must be 1 or more and fit"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(values: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        check_model_config(parse_model_config(values), "net")
    assert str(caught.value).startswith("model `net`: ")
    assert told in str(caught.value)
