"""A cleaned graph gives what the model gave, with less in it; what can only have one size is fixed to it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from tests.models import fails_when_run, model, save, tensor_info, two_inputs_add_sub

from farthing.optimizer import Target, graphs, optimize
from farthing.optimizer.plan import folder_of
from farthing.types.errors import InvalidInput, LoadFailed


def put(folder: Path, data: bytes) -> Path:
    return save(folder / "model", data).path


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)


def foldable() -> bytes:
    """`y` = `x` + (2 * 3), and a branch that nobody asks for."""
    nodes = [
        helper.make_node("Mul", ["two", "three"], ["six"]),
        helper.make_node("Add", ["x", "six"], ["y"]),
        helper.make_node("Exp", ["x"], ["nobody"]),
    ]
    shape = ["batch", 2]
    weights = {"two": np.full(2, 2, np.float32), "three": np.full(2, 3, np.float32)}
    return model(nodes, [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)


def test_constants_are_folded_and_dead_ends_cut(tmp_path: Path) -> None:
    path, out = put(tmp_path, foldable()), tmp_path / "clean.onnx"
    done = graphs.clean(path, out, sizes={}, outputs=(), has_batch_axis=True)
    assert done == ("2 of 3 nodes folded or cut",)
    x = np.array([[1, 2]], np.float32)
    assert np.array_equal(run(out, x=x)[0], run(path, x=x)[0])
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Add"]


def test_outputs_that_nobody_needs_take_their_nodes_with_them(tmp_path: Path) -> None:
    path, out = put(tmp_path, two_inputs_add_sub("FP32")), tmp_path / "clean.onnx"
    assert "outputs cut: OUTPUT1" in graphs.clean(path, out, sizes={}, outputs=("OUTPUT0",), has_batch_axis=True)
    assert graphs.graph_of(out).operators == {"Add"}
    with pytest.raises(InvalidInput, match="has no output `OUTPUT9`; outputs: OUTPUT0, OUTPUT1"):
        graphs.clean(path, out, sizes={}, outputs=("OUTPUT9",), has_batch_axis=True)


def test_a_graph_that_is_clean_already_says_nothing(tmp_path: Path) -> None:
    path = put(tmp_path, two_inputs_add_sub("FP32"))
    assert graphs.clean(path, tmp_path / "clean.onnx", sizes={}, outputs=(), has_batch_axis=True) == ()


def test_a_dimension_that_takes_one_size_only_is_found_and_no_other(tmp_path: Path) -> None:
    free = graphs.graph_of(put(tmp_path, fails_when_run())).free
    assert free == (("x.1",),)
    row = {"x": np.ones((1, 3), np.float32)}
    assert graphs.only_sizes(free, row, lambda changed: changed["x"].shape[1] == 3) == ["x.1"]
    assert graphs.only_sizes(free, row, lambda changed: True) == []


def test_nodes_without_a_name_get_one_each(tmp_path: Path) -> None:
    out = tmp_path / "clean.onnx"
    graphs.clean(put(tmp_path, two_inputs_add_sub("FP32")), out, sizes={}, outputs=(), has_batch_axis=True)
    names = [node.name for node in onnx.load(out).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_graph_that_a_rewrite_stumbles_over_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(proto: Any) -> tuple[str, ...]:
        del proto.graph.node[:]
        raise IndexError

    monkeypatch.setattr("farthing.optimizer.graphs.rewrite", stumble)
    out = tmp_path / "clean.onnx"
    assert graphs.clean(put(tmp_path, foldable()), out, sizes={}, outputs=(), has_batch_axis=True) == (
        "2 of 3 nodes folded or cut",
    )
    x = np.array([[1, 2]], np.float32)
    assert np.array_equal(run(out, x=x)[0], x + 6)


def test_what_is_no_onnx_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(LoadFailed, match="cannot be taken apart"):
        graphs.graph_of(tmp_path / "model.onnx")


def test_a_search_cuts_the_outputs_that_are_not_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, two_inputs_add_sub("FP32"))
    random = np.random.default_rng(0)
    data = {name: random.random((60, 16), np.float32) for name in ("INPUT0", "INPUT1")}
    found: list[str] = []
    plan = optimize(
        path,
        Target(outputs=("OUTPUT1",)),
        data,
        budget_s=60,
        on_event=lambda event: found.append(event.found),
        is_stopped=lambda: any("(clean) is right" in text for text in found),
    )
    assert "onnxruntime f32 (clean) is right: the same answers" in found
    assert "outputs cut: OUTPUT0" in plan.notes
    assert [error.output for error in plan.errors] == ["OUTPUT1"]
    if plan.artefact:
        assert graphs.graph_of(folder_of(path) / plan.artefact).outputs == ("OUTPUT1",)


def test_a_search_fixes_what_the_model_cannot_have_otherwise(tmp_path: Path) -> None:
    path = put(tmp_path, fails_when_run())
    plan = optimize(path, Target(), {"x": np.random.default_rng(0).random((40, 3), np.float32)}, budget_s=2)
    assert "`x` fixed to 3 in dimension 1" in plan.notes


def test_a_file_of_an_old_opset_without_names_is_made_fit_for_int8_by_channel(tmp_path: Path) -> None:
    from farthing.optimizer.quantise import quantise
    from farthing.optimizer.samples import Samples

    chance = np.random.default_rng(0)
    weights = {"w": chance.normal(size=(8, 4)).astype(np.float32), "bias": np.ones((1, 4), np.float32)}
    proto = onnx.load_from_string(
        model(
            [helper.make_node("Gemm", ["x", "w", "bias"], ["y"])],
            [tensor_info("x", "FP32", ["batch", 8])],
            [tensor_info("y", "FP32", ["batch", 4])],
            weights,
        )
    )
    proto.opset_import[0].version = 12
    path = put(tmp_path, bytes(proto.SerializeToString()))
    graphs.prepare(path, tmp_path / "prepared.onnx")

    prepared = onnx.load(tmp_path / "prepared.onnx")
    assert prepared.opset_import[0].version >= 13
    assert all(node.name for node in prepared.graph.node)

    x = chance.normal(size=(16, 8)).astype(np.float32)
    samples = Samples(inputs={"x": x})
    quantise(tmp_path / "prepared.onnx", "int8_smooth", samples, tmp_path / "int8.onnx", has_batch_axis=True)
    [given], [true] = run(tmp_path / "int8.onnx", x=x), run(path, x=x)
    assert 0 < np.abs(given - true).max() < 0.1
