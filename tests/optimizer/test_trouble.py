"""Where numbers go wrong is found on real graphs, by name."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.models import model, save, tensor_info

from farthing.optimizer import Target, optimize
from farthing.optimizer.graphs import prepare
from farthing.optimizer.quantise import quantise
from farthing.optimizer.samples import Samples
from farthing.optimizer.trouble import first_bad, masking, saturated
from farthing.types.errors import InvalidInput

ROW = {"x": np.array([[1.0, 2.0]], np.float32)}


def put(folder: Path, nodes: list, weights: dict | None = None, columns: int = 2, out: int = 2) -> Path:
    made = model(
        nodes,
        [tensor_info("x", "FP32", ["batch", columns])],
        [tensor_info("y", "FP32", ["batch", out])],
        weights,
    )
    return save(folder, made).path


def node(operator: str, inputs: list[str], output: str, name: str) -> object:
    return helper.make_node(operator, inputs, [output], name=name)


def test_the_first_layer_that_makes_a_nan_is_named(tmp_path: Path) -> None:
    weights = {"two": np.array([2], np.float32)}
    nodes = [
        node("Sub", ["x", "two"], "less", "shift"),
        node("Log", ["less"], "logs", "take_logs"),
        node("Add", ["logs", "two"], "y", "last"),
    ]
    assert (
        first_bad(put(tmp_path / "a", nodes, weights), "onnxruntime", ROW) == "layer `take_logs` (Log) gives NaN values"
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_overflow_is_named_rather_than_the_nan_it_ends_in(tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    good = [node("Exp", ["x"], "grown", "grow"), node("Sub", ["grown", "grown"], "y", "level")]
    big = {"big": np.array([1000], np.float32)}
    bad = [
        node("Mul", ["x", "big"], "scaled", "scale"),
        node("Exp", ["scaled"], "grown", "grow"),
        node("Sub", ["grown", "grown"], "y", "level"),
    ]
    original, other = put(tmp_path / "a", good), put(tmp_path / "b", bad, big)
    told = first_bad(other, engine, ROW, original)
    assert "layer `grow` (Exp) gives infinite values" in told


def test_infinities_that_the_original_has_too_are_no_trouble(tmp_path: Path) -> None:
    masks = {"mask": np.array([-np.inf, 0], np.float32)}
    masked = [node("Add", ["x", "mask"], "masked", "put_mask"), node("Softmax", ["masked"], "y", "softmax")]
    original = put(tmp_path / "a", masked, masks)
    bad = [*masked[:1], node("Sub", ["masked", "masked"], "y", "level")]
    assert "level" in first_bad(put(tmp_path / "b", bad, masks), "onnxruntime", ROW, original)


def test_nodes_around_a_mask_are_found(tmp_path: Path) -> None:
    masks = {"mask": np.array([-3e38, 0], np.float32)}
    nodes = [
        node("Relu", ["x"], "active", "before"),
        node("Add", ["active", "mask"], "masked", "put_mask"),
        node("Softmax", ["masked"], "soft", "softmax"),
        node("Neg", ["soft"], "y", "after"),
    ]
    path = put(tmp_path / "a", nodes, masks)
    assert masking(path, [ROW]) == ["put_mask", "softmax"]
    assert masking(path, []) == ["put_mask", "softmax"]


def test_what_cannot_be_taken_apart_is_answered_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    assert first_bad(tmp_path / "model.onnx", "onnxruntime", ROW) == ""


def test_a_layer_that_int8_cuts_off_is_named(tmp_path: Path) -> None:
    weights = {"w": np.eye(32, 8, dtype=np.float32), "c": np.eye(8, dtype=np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], "h", "first"),
        node("Relu", ["h"], "r", "relu"),
        node("MatMul", ["r", "c"], "y", "second"),
    ]
    path = put(tmp_path, nodes, weights, columns=32, out=8)
    prepare(path, tmp_path / "clean.onnx")
    random = np.random.default_rng(0)
    small = Samples(inputs={"x": random.uniform(0, 0.1, (16, 32)).astype(np.float32)})
    quantise(tmp_path / "clean.onnx", "int8_minmax", small, tmp_path / "int8.onnx", has_batch_axis=True)
    alike = [{"x": random.uniform(0, 0.1, (1, 32)).astype(np.float32)}]
    larger = [{"x": random.uniform(0, 1, (1, 32)).astype(np.float32)}]
    assert saturated(tmp_path / "int8.onnx", tmp_path / "clean.onnx", alike) == ""
    told = saturated(tmp_path / "int8.onnx", tmp_path / "clean.onnx", larger)
    assert "saturates" in told
    assert "far beyond 0 to 0.09" in told


def test_a_model_that_makes_nans_is_refused_with_its_layer(tmp_path: Path) -> None:
    path = put(tmp_path / "a", [node("Log", ["x"], "y", "take_logs")])
    with pytest.raises(InvalidInput, match=r"sample 0 .*: layer `take_logs` \(Log\) gives NaN values"):
        optimize(path, Target(), {"x": np.full((8, 2), -1, np.float32)}, budget_s=2)


def test_a_candidate_that_overflows_is_out_with_its_layer(tmp_path: Path) -> None:
    """Ranges found at run time: from -2e38 to 2e38 is further than float32 reaches."""
    random = np.random.default_rng(0)
    path = put(
        tmp_path / "a",
        [node("MatMul", ["x", "w"], "y", "product")],
        {"w": random.standard_normal((32, 8)).astype(np.float32) * np.float32(1e-38)},
        columns=32,
        out=8,
    )
    data = {"x": (random.choice([-1, 1], (40, 32)) * 2e38).astype(np.float32)}
    plan = optimize(path, Target(drop_max=0.5), data, budget_s=6, is_written=False)
    [tried] = [one for one in plan.tried if one.name == "onnxruntime int8 (dynamic)"]
    assert "NaN or infinite values: layer `" in tried.out
    assert "gives infinite values" in tried.out
