"""What goes wrong ends with a message that says what to do, and the plan that was there stays."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.models import model, save, tensor_info, tiny_mlp
from tests.optimizer.test_plan import plan_for

from farthing.optimizer import Plan, Target, optimize
from farthing.optimizer.plan import folder_of, read_plan, write_plan
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed

ROWS = np.random.default_rng(0).uniform(-1, 1, (40, 32)).astype(np.float32)


def put(folder: Path, data: bytes = b"") -> Path:
    """The model, with a plan already."""
    path = save(folder / "model", data or tiny_mlp()).path
    write_plan(path, plan_for(path), None)
    return path


def refused(
    path: Path, data: Mapping[str, Any], kind: type[FarthingError] = InvalidInput, **target: Any
) -> FarthingError:
    """The error of a search, after which the plan is the one that was there."""
    before, files = read_plan(path), sorted(path.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        optimize(path, Target(**target), data, budget_s=2)
    assert read_plan(path) == before
    assert sorted(path.parent.rglob("*")) == files
    assert caught.value.hint
    return caught.value


def test_wrong_shapes_are_told_with_the_right_ones(tmp_path: Path) -> None:
    error = refused(put(tmp_path), {"x": ROWS[:, :31]})
    assert "`x` has shape [40, 31]; the model wants [samples, 32]" in error.message
    assert "numpy.savez" in error.hint


def test_one_sample_is_too_few(tmp_path: Path) -> None:
    error = refused(put(tmp_path), {"x": ROWS[:1]})
    assert "1 sample; at least 2" in error.message
    assert "a few hundred" in error.hint


@pytest.mark.parametrize("metric", ["accuracy", "auc", "auto"])
def test_constant_labels_cannot_judge(tmp_path: Path, metric: str) -> None:
    error = refused(put(tmp_path), {"x": ROWS, "labels": np.full(40, 3)}, metric=metric)
    assert "labels to judge by are alike (3)" in error.message
    assert "at least two classes" in error.hint


def test_labels_that_are_no_classes_are_told_which_there_are(tmp_path: Path) -> None:
    error = refused(put(tmp_path), {"x": ROWS, "labels": np.arange(40)}, metric="accuracy")
    assert "0 to 7, one a sample; found: int64 [30] from " in str(error)


def test_a_metric_that_throws_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(outputs, labels):\n    raise RuntimeError('no luck')\n")
    error = refused(put(tmp_path), {"x": ROWS}, metric=f"{tmp_path}/mine.py:score")
    assert "metric mine.py:score threw RuntimeError: no luck (line 2: raise RuntimeError" in error.message
    assert "from 0 to 1" in error.hint


def only_one_row() -> bytes:
    """Its batch dimension is free by its file, and its own Reshape says otherwise."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Add", ["x", "flat"], ["y"]),
    ]
    return model(
        nodes,
        [tensor_info("x", "FP32", ["batch", 32])],
        [tensor_info("y", "FP32", ["batch", 32])],
        {"shape": np.array([1, 32], np.int64)},
    )


def test_a_model_that_runs_one_row_at_a_time_is_planned_so_and_told(tmp_path: Path) -> None:
    path = put(tmp_path, only_one_row())
    plan = optimize(path, Target(), {"x": ROWS}, budget_s=2)
    assert plan.rows == 1
    [note] = [note for note in plan.notes if note.startswith("runs one row at a time only: ")]
    assert "exported with a free batch dimension throughout it could be batched" in note


def found_ones() -> bytes:
    """As many places as there are ones: [2, any]."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    return model([node], [tensor_info("x", "FP32", ["batch", 32])], [tensor_info("y", "INT64", [2, "found"])])


def test_a_model_whose_outputs_change_their_shape_is_told(tmp_path: Path) -> None:
    data = {"x": (np.random.default_rng(0).random((12, 1, 32)) > 0.5).astype(np.float32)}
    error = refused(put(tmp_path, found_ones()), data, FarthingError)
    assert "outputs differ in shape from sample to sample" in error.message
    assert "pad the inputs" in error.hint


def test_an_operator_that_no_engine_knows_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="")
    made = model([node], [tensor_info("x", "FP32", ["batch", 32])], [tensor_info("y", "FP32", ["batch", 32])])
    error = refused(put(tmp_path, made), {"x": ROWS}, LoadFailed)
    assert "Frobnicate" in error.message
    assert "standard opset" in error.hint


BOUND_BYTES = 3000
"""Of any file: the model is larger, the plan too, so nothing of them can be written."""


def full_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BOUND_BYTES, BOUND_BYTES))


def test_a_full_disk_leaves_the_plan_that_was_there(tmp_path: Path) -> None:
    path = put(tmp_path)
    np.savez(tmp_path / "data.npz", x=ROWS)
    before, files = read_plan(path), sorted(path.parent.rglob("*"))
    done = _farthing(tmp_path, "optimize", path, "--data", tmp_path / "data.npz", "--time", 2, before=full_disk)
    assert done.returncode == 1
    assert "the plan cannot be written" in done.stderr
    assert "hint: make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_plan(path) == before
    assert sorted(path.parent.rglob("*")) == files


def test_a_full_disk_is_said_of_the_files_too_that_could_not_be_made(tmp_path: Path) -> None:
    path = put(tmp_path)
    np.savez(tmp_path / "data.npz", x=ROWS)
    done = _farthing(
        tmp_path, "optimize", path, "--data", tmp_path / "data.npz", "--time", 2, "--dry-run", before=full_disk
    )
    assert done.returncode == 0, done.stderr
    assert "note: no other file could be made of it: " in done.stdout


def _farthing(home: Path, *arguments: object, before: Callable[[], None] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-c", "from farthing.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        preexec_fn=before,
        # No bytecode: Python would leave half a file beside every module that it reads where files are bounded.
        env={**os.environ, "FARTHING_CACHE": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_a_plan_of_a_search_that_was_refused_is_not_there(tmp_path: Path) -> None:
    path = save(tmp_path / "model", tiny_mlp()).path
    with pytest.raises(InvalidInput):
        optimize(path, Target(), {"x": ROWS[:1]}, budget_s=2)
    assert not folder_of(path).exists()
    assert isinstance(optimize(path, Target(), {"x": ROWS}, budget_s=1), Plan)
