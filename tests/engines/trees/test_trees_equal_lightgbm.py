"""Random models trained by LightGBM give the same here: sums to the bit, FP32 predictions to one ulp."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engines.trees.forests import load, predict, ulps

from farthing.types.errors import LoadFailed

lightgbm = pytest.importorskip("lightgbm", reason="compares with LightGBM: pip install lightgbm")

FEATURES = 5
OBJECTIVES = {
    "regression": {},
    "regression_l1": {},
    "poisson": {},
    "tweedie": {},
    "gamma": {},
    "quantile": {"alpha": 0.3},
    "regression_sqrt": {"objective": "regression", "reg_sqrt": True},
    "binary": {"sigmoid": 1.7},
    "cross_entropy": {},
    "cross_entropy_lambda": {},
    "multiclass": {"num_class": 3},
    "multiclassova": {"num_class": 3, "sigmoid": 0.6},
    "lambdarank": {},
}
BOOSTINGS = {"gbdt": {}, "dart": {}, "rf": {"bagging_freq": 1, "bagging_fraction": 0.6}}
CLASSES = {"multiclass": 3, "multiclassova": 3, "lambdarank": 3, "binary": 2}


def table(rng: np.random.Generator, rows: int, missing: float, zeros: float, categories: int) -> np.ndarray:
    x = rng.normal(size=(rows, FEATURES))
    x[rng.random(x.shape) < missing] = np.nan
    x[rng.random(x.shape) < zeros] = 0
    if categories:
        x[:, 0] = rng.integers(0, categories, rows)
    return x


def target(rng: np.random.Generator, x: np.ndarray, objective: str) -> np.ndarray:
    y = np.nan_to_num(x[:, 1]) + np.nan_to_num(x[:, 0]) % 3 + np.isnan(x[:, 2]) + rng.normal(size=len(x)) * 0.3
    if objective in CLASSES:
        count = CLASSES[objective]
        return np.digitize(y, np.quantile(y, np.arange(1, count) / count))
    if objective.startswith("cross_entropy"):
        return 1 / (1 + np.exp(-y))
    return np.abs(y) + 0.1 if objective in ("poisson", "tweedie", "gamma") else y


def odd_rows(rng: np.random.Generator, categories: int) -> np.ndarray:
    """Also what training never saw: infinities, tiny values, categories unknown, negative and between two."""
    x = table(rng, 60, 0.2, 0.2, categories)
    x[:8] = [[v] * FEATURES for v in (np.nan, 0.0, -0.0, 1e-35, -1e-35, 1e-36, np.inf, -np.inf)]
    x[8:20, 0] = [-1, -0.5, 0.5, 1.99, 63, 64, 65, 1e6, 1e10, 1e30, -1e30, 31.5]
    return x.astype(np.float32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    objective=st.sampled_from(sorted(OBJECTIVES)),
    boosting=st.sampled_from(sorted(BOOSTINGS)),
    zero_as_missing=st.booleans(),
    missing=st.sampled_from([0.0, 0.2]),
    zeros=st.sampled_from([0.0, 0.3]),
    categories=st.sampled_from([0, 0, 4, 90]),
    seed=st.integers(0, 10_000),
)
def test_predictions_are_lightgbms_own(
    tmp_path: Path, objective, boosting, zero_as_missing, missing, zeros, categories, seed
) -> None:
    rng = np.random.default_rng(seed)
    x = table(rng, 300, missing, zeros, categories)
    parameters = {
        "objective": objective,
        "verbose": -1,
        "num_threads": 1,
        "num_leaves": 8,
        "min_data_in_leaf": 5,
        "min_data_per_group": 5,
        "max_cat_to_onehot": 1,
        "cat_smooth": 1,
        "zero_as_missing": zero_as_missing,
        "boosting": boosting,
        **BOOSTINGS[boosting],
        **OBJECTIVES[objective],
    }
    data = lightgbm.Dataset(
        x,
        target(rng, x, objective),
        categorical_feature=[0] if categories else "auto",
        params=parameters,
        group=[50] * 6 if objective == "lambdarank" else None,
    )
    booster = lightgbm.train(parameters, data, 6)
    text, dump = tmp_path / "model.txt", tmp_path / "model.json"
    booster.save_model(text)
    dump.write_text(json.dumps(booster.dump_model()))
    rows = odd_rows(rng, categories)
    raw = booster.predict(rows, raw_score=True).reshape(len(rows), -1)
    prediction = booster.predict(rows).reshape(len(rows), -1)
    for path in (text, dump):
        assert np.array_equal(predict(load(path, datatype="FP64", output="raw"), rows), raw)
        assert ulps(predict(load(path, datatype="FP64"), rows), prediction) <= 4
        assert ulps(predict(load(path), rows), prediction.astype(np.float32)) <= 1


def test_fp64_tells_apart_what_fp32_rounds_together(tmp_path: Path) -> None:
    x = np.repeat([[1.0], [1.0 + 1e-12]], 50, axis=0)
    settings = {"objective": "regression", "verbose": -1, "min_data_in_leaf": 1, "num_leaves": 2}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, np.repeat([0.0, 1.0], 50), params=settings), 3)
    booster.save_model(tmp_path / "model.txt")
    exact, rounded = load(tmp_path / "model.txt", datatype="FP64"), load(tmp_path / "model.txt")
    assert np.array_equal(predict(exact, x)[:, 0], booster.predict(x))
    assert np.array_equal(predict(rounded, x)[:, 0], booster.predict(x.astype(np.float32)).astype(np.float32))
    assert len(np.unique(predict(exact, x))) == 2
    assert len(np.unique(predict(rounded, x))) == 1


def test_linear_trees_are_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    settings = {"objective": "regression", "verbose": -1, "linear_tree": True, "num_leaves": 4}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, x[:, 0], params=settings), 2)
    booster.save_model(tmp_path / "model.txt")
    with pytest.raises(LoadFailed, match="linear trees"):
        load(tmp_path / "model.txt")
