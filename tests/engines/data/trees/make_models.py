"""Trains the small models in this folder and writes what their own libraries predict beside them.

    python tests/engines/data/trees/make_models.py

Needs lightgbm and xgboost; the tests that read the results need neither. Each model comes with rows that hold
missing values, zeros, tiny and infinite values and unknown categories, and with raw sums and predictions for them.
"""

import json
from pathlib import Path

import lightgbm
import numpy as np
import xgboost

HERE = Path(__file__).parent
FEATURES = 5
rng = np.random.default_rng(20)


def table(rows: int) -> np.ndarray:
    x = rng.normal(size=(rows, FEATURES)).round(3)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.2] = 0
    x[:, 0] = rng.integers(0, 40, rows)
    return x


def signal(x: np.ndarray) -> np.ndarray:
    x = np.nan_to_num(x)
    return x[:, 1] + (x[:, 0] % 3) + x[:, 2] * x[:, 3] + 0.2 * rng.normal(size=len(x))


def classes(y: np.ndarray, count: int) -> np.ndarray:
    return np.digitize(y, np.quantile(y, np.arange(1, count) / count))


def write(name: str, rows: np.ndarray, raw: np.ndarray, prediction: np.ndarray) -> None:
    columns = {"rows": rows, "raw": raw, "prediction": prediction}
    text = {key: [list(map(repr, row)) for row in np.atleast_2d(a.T).T.tolist()] for key, a in columns.items()}
    (HERE / f"{name}.expected.json").write_text(json.dumps(text) + "\n")


def odd_rows() -> np.ndarray:
    x = table(24)
    x[0], x[1], x[2], x[3] = np.nan, 0, 1e-36, -1e-35
    x[4, 1:], x[5, 1:] = 1e30, -1e30
    x[6:14, 0] = [-1, -0.5, 2.7, 39.9, 40, 64, 1e6, np.nan]
    return x.astype(np.float32)


def with_lightgbm(name: str, target: np.ndarray, x: np.ndarray, **parameters: object) -> None:
    settings = {
        "verbose": -1,
        "num_threads": 1,
        "num_leaves": 6,
        "min_data_in_leaf": 8,
        "min_data_per_group": 4,
        "cat_smooth": 1,
        **parameters,
    }
    data = lightgbm.Dataset(x, target, categorical_feature=[0], params=settings)
    booster = lightgbm.train(settings, data, 4)
    booster.save_model(HERE / f"{name}.txt")
    rows = odd_rows()
    rows[14], rows[15] = np.inf, -np.inf
    if name.endswith("_dump"):
        (HERE / f"{name}.txt").unlink()
        (HERE / f"{name}.json").write_text(json.dumps(booster.dump_model()) + "\n")
    write(name, rows, booster.predict(rows, raw_score=True), booster.predict(rows))


def with_xgboost(name: str, target: np.ndarray, x: np.ndarray, **parameters: object) -> None:
    types = ["c"] + ["q"] * (FEATURES - 1)
    settings = {"nthread": 1, "max_depth": 3, **parameters}
    data = xgboost.DMatrix(x, target, feature_types=types, enable_categorical=True)
    booster = xgboost.train(settings, data, 4)
    rows = odd_rows()
    seen = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True)
    raw, prediction = booster.predict(seen, output_margin=True), booster.predict(seen)
    for suffix in ("json", "ubj"):
        booster.save_model(HERE / f"{name}.{suffix}")
    write(name, rows, raw, prediction)


def main() -> None:
    x = table(300)
    y = signal(x)
    with_lightgbm("lightgbm_binary", classes(y, 2), x, objective="binary", sigmoid=1.5)
    with_lightgbm("lightgbm_binary_dump", classes(y, 2), x, objective="binary", sigmoid=1.5)
    with_lightgbm("lightgbm_zero_as_missing", y, x, objective="regression", zero_as_missing=True)
    with_lightgbm("lightgbm_multiclass", classes(y, 3), x, objective="multiclass", num_class=3)
    with_lightgbm("lightgbm_poisson", np.abs(y), x, objective="poisson", boosting="dart")
    with_lightgbm(
        "lightgbm_forest", classes(y, 2), x, objective="binary", boosting="rf", bagging_freq=1, bagging_fraction=0.7
    )
    with_xgboost("xgboost_binary", classes(y, 2), x, objective="binary:logistic")
    with_xgboost("xgboost_multiclass", classes(y, 3), x, objective="multi:softprob", num_class=3)
    with_xgboost("xgboost_dart", np.abs(y) + 0.1, x, objective="reg:gamma", booster="dart", rate_drop=0.5)


if __name__ == "__main__":
    main()
