"""What made-up inputs tell of a model: whether its rows are independent, and how long they take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.fakes import FakeExecutable
from tests.models import (
    fails_when_run,
    identity,
    model,
    optional_scale,
    save,
    small_convnet,
    sum_of_rows,
    tensor_info,
    tiny_mlp,
    two_inputs_add_sub,
)

from farthing.batching.row_times import RowTimes
from farthing.engines.contract import Answer, Batch
from farthing.engines.onnxruntime import OnnxRuntime
from farthing.runtime.probe import ROWS_MEASURED_MAX, has_independent_rows, measure
from farthing.types.tensors import Tensor, TensorSpec


def one_node(op: str, *, inputs: tuple[str, ...] = ("x",), columns: int = 4, **attributes: Any) -> bytes:
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    return model([node], [tensor_info("x", "FP32", ["batch", columns])], [tensor_info("y", "FP32", ["batch", columns])])


def softmax_over_rows() -> bytes:
    return one_node("Softmax", axis=0)


def running_sum() -> bytes:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    shape: list[int | str | None] = ["batch", 4]
    weights = {"axis": np.array(0, np.int64)}
    return model([node], [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)


def centred_over_rows() -> bytes:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return model(nodes, [tensor_info("x", "FP32", ["batch", 4])], [tensor_info("y", "FP32", ["batch", 4])])


def rows_reversed() -> bytes:
    weights = {"starts": np.array([-1]), "ends": np.array([-(2**31)]), "axes": np.array([0]), "steps": np.array([-1])}
    node = helper.make_node("Slice", ["x", *weights], ["y"])
    return model([node], [tensor_info("x", "FP32", ["batch", 4])], [tensor_info("y", "FP32", ["batch", 4])], weights)


def lstm(layout: int = 0) -> bytes:
    """Time first: [time, 1, 3] -> [time, 1, 5]; every step depends on those before it."""
    random = np.random.default_rng(1)
    weights = {
        "w": random.standard_normal((1, 20, 3)).astype(np.float32),
        "r": random.standard_normal((1, 20, 5)).astype(np.float32),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=5),
        helper.make_node("Squeeze", ["h", "axes"], ["y"]),
    ]
    inputs, outputs = [tensor_info("x", "FP32", ["n", 1, 3])], [tensor_info("y", "FP32", ["n", 1, 5])]
    return model(nodes, inputs, outputs, weights)


def knows_how_many() -> bytes:
    """Each row divided by the number of rows."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Cast", ["n"], ["count"], to=1),
        helper.make_node("Div", ["x", "count"], ["y"]),
    ]
    return model(nodes, [tensor_info("x", "FP32", ["batch", 4])], [tensor_info("y", "FP32", ["batch", 4])])


def independent(folder: Path, data: bytes) -> bool | None:
    return has_independent_rows(OnnxRuntime().load(save(folder, data)))


@pytest.mark.parametrize(
    "make", [sum_of_rows, softmax_over_rows, running_sum, centred_over_rows, rows_reversed, lstm, knows_how_many]
)
def test_a_model_that_mixes_rows_is_found_out(tmp_path: Path, make: Callable[[], bytes]) -> None:
    assert independent(tmp_path, make()) is False


@pytest.mark.parametrize(
    "make",
    [
        tiny_mlp,
        small_convnet,
        identity,
        two_inputs_add_sub,
        lambda: small_convnet("size"),
        lambda: identity("BYTES"),
        lambda: identity("BOOL"),
        lambda: identity("BF16"),
        lambda: identity("FP16", ["n", 3, None]),
        lambda: one_node("Softmax", axis=1),
    ],
)
def test_a_model_with_independent_rows_is_recognised(tmp_path: Path, make: Callable[[], bytes]) -> None:
    assert independent(tmp_path, make()) is True


def test_a_model_that_no_made_up_input_pleases_is_not_judged(tmp_path: Path) -> None:
    assert independent(tmp_path, fails_when_run()) is None


def test_an_input_with_a_default_does_not_disturb(tmp_path: Path) -> None:
    assert independent(tmp_path, optional_scale()) in (True, None)


def raises(batch: Batch) -> Answer:
    raise RuntimeError("not like this")


def lies(batch: Batch) -> Answer:
    return {"y": np.zeros((7, 1), np.float32)}


def scalar(batch: Batch) -> Answer:
    return {"y": np.array(1, np.float32)}


def nothing(batch: Batch) -> Answer:
    return []


@pytest.mark.parametrize("answer", [raises, lies, scalar, nothing])
def test_a_badly_behaved_model_is_not_batched_and_does_not_stop_the_probe(answer: Callable[[Batch], Answer]) -> None:
    fake = FakeExecutable(answer=answer)
    assert not has_independent_rows(fake)
    measure(fake, 64, RowTimes())


def test_answers_that_differ_by_rounding_only_are_the_same() -> None:
    chance = np.random.default_rng(5)

    def rounded(batch: Batch) -> Answer:
        y: Tensor = batch.inputs["x"] * 2
        return {"y": y * (1 + 1e-8 * chance.standard_normal(y.shape))}

    assert has_independent_rows(FakeExecutable(answer=rounded)) is True


def test_not_a_number_equals_itself_here() -> None:
    assert has_independent_rows(FakeExecutable(answer=lambda batch: {"y": batch.inputs["x"] * np.nan})) is True


def test_row_times_are_measured_at_load(tmp_path: Path) -> None:
    times = RowTimes()
    measure(OnnxRuntime().load(save(tmp_path, tiny_mlp())), 1024, times)
    assert {1, 2} <= times.table().keys()
    assert max(times.table()) <= ROWS_MEASURED_MAX
    assert 500 < times.estimate_ns(1) < 50_000_000


def test_a_model_without_batches_is_measured_at_one() -> None:
    fake = FakeExecutable()
    fake.inputs = (TensorSpec(name="x", datatype="FP32", shape=(3, 1)),)
    times = RowTimes()
    measure(fake, 0, times)
    assert list(times.table()) == [1]


@pytest.mark.parametrize(("shape", "rows_max"), [((-1, -1), 8), ((-1, 2), 0)])
def test_lengths_nobody_knows_are_not_measured(shape: tuple[int, ...], rows_max: int) -> None:
    fake = FakeExecutable()
    fake.inputs = (TensorSpec(name="x", datatype="FP32", shape=shape),)
    times = RowTimes()
    measure(fake, rows_max, times)
    assert not times
