"""Whole searches on small real models: what is kept is right, what is wrong is thrown out, and bad input is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.models import fails_when_run, fixed_batch, model, save, small_convnet, sum_of_rows, tensor_info, tiny_mlp

from farthing.optimizer import Plan, Target, optimize
from farthing.optimizer.plan import folder_of, read_plan
from farthing.optimizer.watch import Event
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed


def put(folder: Path, data: bytes) -> Path:
    return save(folder / "model", data).path


def mlp_rows(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).uniform(-1, 1, (count, 32)).astype(np.float32)}


def search(path: Path, data: Any, *, budget_s: float = 3, **target: Any) -> Plan:
    return optimize(path, Target(**target), data, budget_s=budget_s)


def inputs_of(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).get_inputs()


def test_a_small_model_gets_a_plan_that_is_right_and_not_slower(tmp_path: Path) -> None:
    path = put(tmp_path, tiny_mlp())
    name = inputs_of(path)[0].name
    shape = [d if isinstance(d, int) else 200 for d in inputs_of(path)[0].shape]
    data = {name: np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    plan = search(path, data, budget_s=2, drop_max=0.001)
    assert plan == read_plan(path)
    assert plan.times_cheaper >= 1
    assert plan.drop is None or plan.drop.upper <= 0.001
    assert any(tried.out == "" and tried.turns for tried in plan.tried)
    assert all(tried.out for tried in plan.tried if not tried.turns)


def test_lossy_recipes_need_more_samples_than_a_handful(tmp_path: Path) -> None:
    path = put(tmp_path, small_convnet())
    [arg] = inputs_of(path)
    shape = [d if isinstance(d, int) else 12 for d in arg.shape]
    data = {arg.name: np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    plan = search(path, data, budget_s=4, drop_max=0.005, metric="top1")
    assert plan.precision == "f32"
    refused = [tried.out for tried in plan.tried if "int8" in tried.name]
    assert refused
    reasons = ("samples cannot show less", "loses", "no time", "large enough to be packed")
    assert all(any(reason in out for reason in reasons) for out in refused)


def test_a_model_whose_rows_depend_on_each_other_is_never_batched(tmp_path: Path) -> None:
    path = put(tmp_path, sum_of_rows())
    [arg] = inputs_of(path)
    data = {arg.name: np.random.default_rng(0).uniform(-1, 1, (20, 3, *arg.shape[1:])).astype(np.float32)}
    assert search(path, data, budget_s=1).rows == 1  # its output has no rows, so a sample is all that it takes


def test_a_model_for_a_fixed_batch_runs_at_it(tmp_path: Path) -> None:
    path = put(tmp_path, fixed_batch(2))
    [arg] = inputs_of(path)
    data = {arg.name: np.random.default_rng(0).uniform(-1, 1, (10, *arg.shape)).astype(np.float32)}
    assert search(path, data, budget_s=1).rows == 1  # a sample is what the model takes: two rows


def test_a_watcher_sees_what_is_done_and_can_stop_it(tmp_path: Path) -> None:
    path = put(tmp_path, tiny_mlp())
    [arg] = inputs_of(path)
    data = {arg.name: np.random.default_rng(0).uniform(-1, 1, (50, *arg.shape[1:])).astype(np.float32)}
    seen: list[Event] = []
    plan = optimize(
        path,
        Target(),
        data,
        budget_s=60,
        on_event=seen.append,
        is_stopped=lambda: any(event.doing.startswith("timing") for event in seen),
        is_written=False,
    )
    assert plan.times_cheaper >= 1
    assert [event.doing for event in seen[:2]] == ["loading model.onnx", "running the model as it is"]
    assert seen[-1].spent_s < 60
    assert not folder_of(path).exists()


def test_a_target_that_nothing_meets_says_what_was_the_nearest_and_keeps_the_old_plan(tmp_path: Path) -> None:
    path = put(tmp_path, tiny_mlp())
    [arg] = inputs_of(path)
    data = {arg.name: np.random.default_rng(0).uniform(-1, 1, (50, *arg.shape[1:])).astype(np.float32)}
    before = search(path, data, budget_s=1)
    with pytest.raises(InvalidInput, match="nothing answers within 1e-06 ms on"):
        search(path, data, budget_s=1, answer_ms_max=1e-6)
    assert read_plan(path) == before


def nan_maker() -> bytes:
    """`y` = log(x)."""
    return model(
        [helper.make_node("Log", ["x"], ["y"])],
        [tensor_info("x", "FP32", ["batch", 2])],
        [tensor_info("y", "FP32", ["batch", 2])],
        {},
    )


@pytest.mark.parametrize(
    ("made", "array", "told"),
    [
        (nan_maker(), np.full((4, 2), -1, np.float32), "NaN or infinite values on these data"),
        (fails_when_run(), np.ones((4, 2), np.float32), "."),
    ],
)
def test_a_model_that_fails_on_the_data_is_told(tmp_path: Path, made: bytes, array: np.ndarray, told: str) -> None:
    path = put(tmp_path, made)
    with pytest.raises(FarthingError, match=told):
        search(path, {arg.name: array for arg in inputs_of(path)})
    assert not folder_of(path).exists()


def test_what_no_engine_reads_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(LoadFailed):
        search(tmp_path / "model.onnx", mlp_rows(4))


def test_a_python_model_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class Model: ...")
    with pytest.raises((InvalidInput, LoadFailed)):
        search(tmp_path / "model.py", mlp_rows(4))
