"""Small models made by the libraries themselves, with what those predicted (data/trees/make_models.py)."""

import numpy as np
import pytest
from tests.engines.trees.forests import DATA, expected, load, predict, ulps

LIGHTGBM = sorted(p for p in DATA.glob("lightgbm*") if "expected" not in p.name)
XGBOOST = sorted(p for p in DATA.glob("xgboost*") if "expected" not in p.name)


@pytest.mark.parametrize("path", LIGHTGBM, ids=lambda p: p.name)
def test_lightgbm_sums_are_equal_to_the_bit_and_predictions_to_two_ulps(path) -> None:
    theirs = expected(path.stem)
    raw = predict(load(path, datatype="FP64", output="raw"), theirs["rows"])
    assert np.array_equal(raw, theirs["raw"])
    assert ulps(predict(load(path, datatype="FP64"), theirs["rows"]), theirs["prediction"]) <= 2


@pytest.mark.parametrize("path", LIGHTGBM, ids=lambda p: p.name)
def test_lightgbm_answers_in_fp32_are_its_predictions_rounded_once(path) -> None:
    theirs = expected(path.stem)
    assert ulps(predict(load(path), theirs["rows"]), theirs["prediction"].astype(np.float32)) <= 1


@pytest.mark.parametrize("path", XGBOOST, ids=lambda p: p.name)
def test_xgboost_sums_are_equal_to_the_bit_and_predictions_to_two_ulps(path) -> None:
    theirs = expected(path.stem)
    raw = predict(load(path, output="raw"), theirs["rows"])
    assert np.array_equal(raw, theirs["raw"].astype(np.float32))
    assert ulps(predict(load(path), theirs["rows"]), theirs["prediction"].astype(np.float32)) <= 2


@pytest.mark.parametrize("path", LIGHTGBM + XGBOOST, ids=lambda p: p.name)
def test_a_row_is_answered_alike_alone_and_in_any_batch(path) -> None:
    model, rows = load(path), np.tile(expected(path.stem)["rows"], (60, 1))
    together = predict(model, rows)
    for size in (1, 2, 3, 31, 127):
        pieces = [predict(model, rows[start : start + size]) for start in range(0, len(rows), size)]
        assert np.array_equal(np.concatenate(pieces), together)


def test_an_answer_is_not_overwritten_by_the_next_row() -> None:
    model, rows = load(DATA / "xgboost_dart.json", output="raw"), expected("xgboost_dart")["rows"]
    first = predict(model, rows[:1])
    before = first.copy()
    predict(model, rows[5:6])
    assert np.array_equal(first, before)


def test_no_rows_give_no_rows() -> None:
    for path in (DATA / "lightgbm_multiclass.txt", DATA / "xgboost_binary.ubj"):
        assert len(predict(load(path), np.zeros((0, 5)))) == 0
