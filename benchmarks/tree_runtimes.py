"""Which runtime answers for a forest soonest, and do they agree? In process, one thread, no server.

    python benchmarks/tree_runtimes.py

Two models: LightGBM on the Wisconsin breast cancer data (200 trees of 15 leaves, 30 features) and XGBoost on made-up
data (200 trees of depth 6, 32 features). Each call gets rows it has not seen shortly before: with the same rows again
and again the branch predictor learns the trees by heart, and every runtime looks two to three times faster than it
is. Rounds of all runtimes are interleaved and the best of each is shown. Needs lightgbm, xgboost, treelite and
scikit-learn; docs/decisions/0003 has a table made by this.
"""

import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import treelite
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.trees import Trees
from farthing.types.tensors import Tensor

ROWS = 8192
BATCHES = (1, 8, 32, 1024)
ROUNDS = 7
SECONDS = 0.05
"""How long one runtime is measured at one batch size in one round."""

Predict = Callable[[Tensor], Tensor]


def farthing(path: Path) -> Predict:
    """The trees engine, raw sums."""
    model = Trees().load(ModelSource(name="m", version=1, path=path, folder=path.parent, parameters={"output": "raw"}))
    return lambda rows: model.execute(Batch({"input__0": rows}, ("output__0",), (Member(len(rows)),)), 0)["output__0"]


class LevelByLevel:
    """All trees at once in numpy, a level a step: what vectorising without a runtime would give."""

    def __init__(self, path: Path) -> None:
        from farthing.engines.trees import engine

        raw = path.read_bytes()
        forest = engine._parse(raw, engine._format_of(raw[: engine.HEAD_BYTES]))
        nodes = len(forest.yes)
        self.is_strict, self.roots = forest.is_strict, forest.roots
        leaves = np.arange(len(forest.leaf_value)) + nodes
        self.column = np.concatenate((forest.column, np.zeros_like(leaves)))
        self.threshold = np.concatenate((forest.threshold, np.zeros(len(leaves), forest.dtype)))
        children = [np.where(c >= 0, c, nodes + ~c) for c in (forest.no, forest.yes)]
        self.child = np.stack([np.concatenate((c, leaves)) for c in children], axis=1).ravel()
        self.value = np.concatenate((np.zeros(nodes, forest.dtype), forest.leaf_value))

    def __call__(self, rows: Tensor) -> Tensor:
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        numbers = np.arange(len(rows))[:, None]
        while True:
            values = rows[numbers, self.column[at]]
            goes = values < self.threshold[at] if self.is_strict else values <= self.threshold[at]
            below = self.child[at * 2 + goes]
            if np.array_equal(below, at):
                return self.value[at].sum(axis=1)
            at = below


def models(folder: Path) -> dict[str, tuple[Tensor, dict[str, Predict]]]:
    """Per model: rows, and each runtime's way to raw sums."""
    rng = np.random.default_rng(0)
    x, _, y, _ = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.25, random_state=0)
    cancer = lightgbm.LGBMClassifier(
        n_estimators=200, num_leaves=15, learning_rate=0.05, n_jobs=1, random_state=0, verbose=-1
    ).fit(x, y)
    cancer.booster_.save_model(folder / "cancer.txt")
    cells = (x[rng.integers(0, len(x), ROWS)] * rng.normal(1, 0.1, (ROWS, x.shape[1]))).astype(np.float32)
    made_up = rng.normal(size=(20_000, 32)).astype(np.float32)
    answer = made_up[:, 0] * made_up[:, 1] + np.sin(2 * made_up[:, 2]) + made_up[:, 3] ** 2
    boosted = xgboost.train({"max_depth": 6, "eta": 0.1, "nthread": 1}, xgboost.DMatrix(made_up, answer), 200)
    boosted.save_model(folder / "made_up.json")
    cancer_gtil = treelite.frontend.load_lightgbm_model(str(folder / "cancer.txt"))
    boosted_gtil = treelite.frontend.load_xgboost_model(str(folder / "made_up.json"))
    return {
        "LightGBM 200 x 15 leaves": (
            cells,
            {
                "training library": lambda r: cancer.booster_.predict(r, raw_score=True, num_threads=1),
                "trees engine": farthing(folder / "cancer.txt"),
                "treelite GTIL": lambda r: treelite.gtil.predict(cancer_gtil, r, nthread=1, pred_margin=True),
                "numpy": LevelByLevel(folder / "cancer.txt"),
            },
        ),
        "XGBoost 200 x depth 6": (
            made_up[:ROWS],
            {
                "training library": boosted.inplace_predict,
                "trees engine": farthing(folder / "made_up.json"),
                "treelite GTIL": lambda r: treelite.gtil.predict(boosted_gtil, r, nthread=1, pred_margin=True),
                "numpy": LevelByLevel(folder / "made_up.json"),
            },
        ),
    }


def seconds_a_call(predict: Predict, rows: Tensor, batch: int, start: int) -> float:
    """Over as many fresh batches as `SECONDS` has room for."""
    calls, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + SECONDS:
        first = (start + calls * batch) % (len(rows) - batch + 1)
        predict(rows[first : first + batch])
        calls += 1
    return (now - began) / calls


def main() -> None:
    """Prints a table a model."""
    versions: dict[str, Any] = {
        name: importlib.metadata.version(name) for name in ("onnxruntime", "lightgbm", "xgboost", "treelite", "numpy")
    }
    print(platform.machine(), platform.python_version(), *(f"{k} {v}" for k, v in versions.items()))
    with tempfile.TemporaryDirectory() as folder:
        for title, (rows, runtimes) in models(Path(folder)).items():
            best = {(name, batch): np.inf for name in runtimes for batch in BATCHES}
            for round_ in range(ROUNDS):
                for batch in BATCHES:
                    for name, predict in runtimes.items():
                        took = seconds_a_call(predict, rows, batch, round_ * 991)
                        best[name, batch] = min(best[name, batch], took)
            theirs = np.ravel(runtimes["training library"](rows))
            print(f"\n| {title} | " + " | ".join(f"{b} rows, us" for b in BATCHES) + " | largest difference |")
            print("|---" * (len(BATCHES) + 2) + "|")
            for name, predict in runtimes.items():
                ours = np.ravel(predict(rows))
                difference = np.abs(ours - theirs.astype(ours.dtype)).max()
                print(
                    f"| {name} | " + " | ".join(f"{best[name, b] * 1e6:,.1f}" for b in BATCHES), f"| {difference:.1g} |"
                )


if __name__ == "__main__":
    main()
