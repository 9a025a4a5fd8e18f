"""Breast cancer diagnosis: gradient-boosted trees, trained here in a second and the same on every run.

One thread and LightGBM's deterministic mode, so that histograms are summed in one order and the file that comes out
does not depend on the machine's cores.
"""

from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

HELD_OUT_SHARE: Final = 0.25
SEED: Final = 0
TREES: Final = 200
SETTINGS: Final[dict[str, Any]] = {
    "objective": "binary",
    "num_leaves": 15,
    "learning_rate": 0.05,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": SEED,
    "verbose": -1,
}


def split() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Measurements to train on and to test on, then their diagnoses (1: benign), as many of each in both."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    measurements, diagnoses = load_breast_cancer(return_X_y=True)
    train, test, train_truth, test_truth = train_test_split(
        measurements, diagnoses, test_size=HELD_OUT_SHARE, random_state=SEED, stratify=diagnoses
    )
    return train, test, train_truth, test_truth


def build(raw: Path, out: Path) -> None:
    """Trains and writes `wdbc-gbdt`."""
    import lightgbm

    del raw  # the data set comes with scikit-learn
    train, _, truth, _ = split()
    booster = lightgbm.train(SETTINGS, lightgbm.Dataset(train, truth), num_boost_round=TREES)
    path = out / "wdbc-gbdt" / "1" / "model.txt"
    path.parent.mkdir(parents=True)
    # Not `save_model`: on a full disk LightGBM ends the process, in its own words.
    path.write_text(booster.model_to_string(), encoding="utf-8")
