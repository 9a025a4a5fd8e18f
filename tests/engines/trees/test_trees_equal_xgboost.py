"""Random models trained by XGBoost give the same here: sums to the bit, predictions to two ulps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engines.trees.forests import load, predict, ulps

from farthing.types.errors import LoadFailed

xgboost = pytest.importorskip("xgboost", reason="compares with XGBoost: pip install --no-deps xgboost")

FEATURES = 5
OBJECTIVES = (
    "reg:squarederror",
    "reg:absoluteerror",
    "reg:logistic",
    "binary:logistic",
    "binary:logitraw",
    "binary:hinge",
    "count:poisson",
    "reg:gamma",
    "reg:tweedie",
    "multi:softprob",
    "multi:softmax",
    "rank:ndcg",
)
KINDS = (
    {},
    {"booster": "dart", "rate_drop": 0.4},
    {"num_parallel_tree": 3, "subsample": 0.6},
    {"base_score": 0.3},
    {"tree_method": "exact", "gamma": 0.5},  # leaves pruned nodes behind
)


def table(rng: np.random.Generator, rows: int, missing: float, categories: int) -> np.ndarray:
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    x[rng.random(x.shape) < 0.1] = 0
    if categories:
        x[:, 0] = rng.integers(0, categories, rows)
    return x


def target(rng: np.random.Generator, x: np.ndarray, objective: str) -> np.ndarray:
    y = np.nan_to_num(x[:, 1]) + np.nan_to_num(x[:, 0]) % 3 + np.isnan(x[:, 2]) + rng.normal(size=len(x)) * 0.3
    if objective.startswith(("binary", "reg:logistic")):
        return (y > np.median(y)).astype(np.float32)
    if objective.startswith(("multi", "rank")):
        return np.digitize(y, np.quantile(y, [0.3, 0.6])).astype(np.float32)
    return np.abs(y) + 0.1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    objective=st.sampled_from(OBJECTIVES),
    kind=st.sampled_from(KINDS),
    missing=st.sampled_from([0.0, 0.2]),
    categories=st.sampled_from([0, 0, 4, 90]),
    seed=st.integers(0, 10_000),
)
def test_predictions_are_xgboosts_own(tmp_path: Path, objective, kind, missing, categories, seed) -> None:
    if kind.get("tree_method") == "exact":
        categories = 0  # which XGBoost does not offer together
    rng = np.random.default_rng(seed)
    types = ["c" if categories else "q"] + ["q"] * (FEATURES - 1)
    parameters = {"objective": objective, "nthread": 1, "max_depth": 4, "max_cat_to_onehot": 5, **kind}
    if objective.startswith("multi"):
        parameters["num_class"] = 3
    x = table(rng, 300, missing, categories)
    group = {"qid": np.repeat(np.arange(6), 50)} if objective.startswith("rank") else {}
    data = xgboost.DMatrix(x, target(rng, x, objective), feature_types=types, enable_categorical=True, **group)
    booster = xgboost.train(parameters, data, 6)
    rows = table(rng, 60, 0.2, categories)
    if categories:
        rows[:12, 0] = [-1, -0.5, 0.5, 1.99, 63, 64, 65, 1e6, 1e10, 1e30, -1e30, np.nan]
    seen = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True)
    for suffix in ("json", "ubj"):
        path = tmp_path / f"model.{suffix}"
        booster.save_model(path)
        loaded = xgboost.Booster({"nthread": 1}, model_file=path)  # saving may round the base score
        raw = loaded.predict(seen, output_margin=True).reshape(len(rows), -1)
        prediction = loaded.predict(seen).reshape(len(rows), -1)
        assert np.array_equal(predict(load(path, output="raw"), rows), raw)
        assert ulps(predict(load(path), rows), prediction) <= 2


def test_several_targets_are_columns_of_the_answer(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = table(rng, 200, 0.1, 0)
    y = np.nan_to_num(np.stack([x[:, 0], -x[:, 1], x[:, 2] ** 2], axis=1))
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(x, y), 4)
    booster.save_model(tmp_path / "model.json")
    assert np.array_equal(predict(load(tmp_path / "model.json"), x), booster.predict(xgboost.DMatrix(x)))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"multi_strategy": "multi_output_tree", "tree_method": "hist"}, "leaves hold vectors"),
        ({"booster": "gblinear"}, "gblinear"),
    ],
)
def test_what_is_no_forest_of_single_values_is_refused_by_name(tmp_path: Path, parameters, reason) -> None:
    x = np.random.default_rng(1).normal(size=(100, 3))
    booster = xgboost.train({"nthread": 1, **parameters}, xgboost.DMatrix(x, x[:, :2]), 2)
    for suffix in ("json", "ubj"):
        booster.save_model(tmp_path / f"model.{suffix}")
        with pytest.raises(LoadFailed, match=reason):
            load(tmp_path / f"model.{suffix}")
