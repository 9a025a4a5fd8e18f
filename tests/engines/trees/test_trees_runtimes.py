"""Whoever sums a forest, the answers are the same: machine code and the training libraries against ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.trees import Trees
from farthing.types.errors import InvalidInput, LoadFailed

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((700, 6)).astype(np.float32)
X[RANDOM.random(X.shape) < 0.1] = np.nan


def answers(path: Path, runtime: str, rows: np.ndarray, threads: int = 1) -> np.ndarray:
    source = ModelSource(
        name="m", version=1, path=path, folder=path.parent, threads=threads, parameters={"runtime": runtime}
    )
    loaded = Trees().load(source)
    try:
        given = rows.astype(loaded.inputs[0].dtype)
        batch = Batch({loaded.inputs[0].name: given}, (loaded.outputs[0].name,), (Member(1),) * len(rows))
        return loaded.execute(batch, 0)[loaded.outputs[0].name]
    finally:
        loaded.close()


@pytest.fixture(scope="module")
def xgboost_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    xgboost = pytest.importorskip("xgboost")
    y = (np.nan_to_num(X[:, 0] * X[:, 1]) + np.nan_to_num(X[:, 2]) > 0).astype(int)
    path = tmp_path_factory.mktemp("xgb") / "xgboost.json"
    settings = {"objective": "multi:softprob", "num_class": 3, "max_depth": 4, "nthread": 1}
    xgboost.train(settings, xgboost.DMatrix(X, y + (X[:, 3] > 1)), 8).save_model(path)
    return path


@pytest.fixture(scope="module")
def lightgbm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lightgbm = pytest.importorskip("lightgbm")
    y = (np.nan_to_num(X[:, 0] * X[:, 1]) > 0).astype(int)
    path = tmp_path_factory.mktemp("lgb") / "model.txt"
    settings = {"objective": "binary", "verbosity": -1, "num_threads": 1, "deterministic": True}
    lightgbm.train(settings, lightgbm.Dataset(X, y), 9).save_model(path)
    return path


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 700])
def test_machine_code_sums_as_onnx_runtime_does_to_the_bit(xgboost_file: Path, lightgbm_file: Path, rows: int) -> None:
    pytest.importorskip("llvmlite")
    for path in (xgboost_file, lightgbm_file):
        usual = answers(path, "onnxruntime", X[:rows])
        assert np.array_equal(answers(path, "compiled", X[:rows]), usual)


def test_xgboost_sums_as_onnx_runtime_does(xgboost_file: Path) -> None:
    for rows in (1, 700):
        usual = answers(xgboost_file, "onnxruntime", X[:rows])
        np.testing.assert_allclose(answers(xgboost_file, "xgboost", X[:rows], threads=2), usual, rtol=1e-6, atol=1e-7)


def test_what_cannot_sum_it_says_so(xgboost_file: Path, lightgbm_file: Path) -> None:
    for path, runtime, told in (
        (lightgbm_file, "xgboost", "runs XGBoost's own models"),
        (xgboost_file, "abacus", "parameter `runtime` is `abacus`; allowed: onnxruntime, compiled"),
    ):
        with pytest.raises(LoadFailed, match=told):
            answers(path, runtime, X[:1])


def test_rows_of_another_width_are_refused_by_all(xgboost_file: Path) -> None:
    pytest.importorskip("llvmlite")
    for runtime in ("compiled", "xgboost"):
        with pytest.raises(InvalidInput, match="is expected"):
            answers(xgboost_file, runtime, X[:2, :5])


def test_decisions_on_categories_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    pytest.importorskip("llvmlite")
    x = RANDOM.integers(0, 12, (400, 1)).astype(float)
    y = np.isin(x[:, 0], (1, 4, 7, 10)).astype(float)
    settings = {"objective": "regression", "verbosity": -1, "min_data_per_group": 1, "cat_smooth": 1, "num_threads": 1}
    lightgbm.train(settings, lightgbm.Dataset(x, y, categorical_feature=[0]), 3).save_model(tmp_path / "model.txt")
    with pytest.raises(LoadFailed, match="sets of categories are not compiled"):
        answers(tmp_path / "model.txt", "compiled", x[:2])
