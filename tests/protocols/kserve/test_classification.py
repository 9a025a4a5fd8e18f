"""The classification extension."""

import ml_dtypes
import numpy as np
import pytest

from farthing.types.errors import InvalidInput
from farthing.types.requests import RequestedOutput

SCORES = np.array([[0.1, 0.7, 0.2], [3, -1, 3]], np.float32)


def classes(wire, scores, k, *, batch_rows_max=8, labels=()):
    outputs = {"y": scores}
    spec = wire.spec_of(outputs, batch_rows_max, labels)
    output = wire.encode(outputs, RequestedOutput("y", k), spec=spec)[0]["outputs"][0]
    assert output["datatype"] == "BYTES"
    return output["shape"], output["data"]


def test_the_best_come_first_with_six_decimals_and_equals_in_order(wire) -> None:
    assert classes(wire, SCORES, 2) == ([2, 2], ["0.700000:1", "0.200000:2", "3.000000:0", "3.000000:2"])


def test_labels_follow_where_there_are_any(wire) -> None:
    assert classes(wire, SCORES[:1], 3, labels=("cat", "dog"))[1] == ["0.700000:1:dog", "0.200000:2", "0.100000:0:cat"]
    assert classes(wire, SCORES[:1], 1, labels=("", ""))[1] == ["0.700000:1"]


def test_more_classes_than_there_are_gives_all(wire) -> None:
    assert classes(wire, SCORES, 999)[0] == [2, 3]


def test_without_a_batch_the_whole_tensor_is_one_row(wire) -> None:
    assert classes(wire, SCORES, 2, batch_rows_max=0) == ([2], ["3.000000:3", "3.000000:5"])


def test_more_dimensions_count_through(wire) -> None:
    assert classes(wire, SCORES.reshape(1, 2, 3), 1) == ([1, 1], ["3.000000:3"])


def test_nan_is_never_best(wire) -> None:
    assert classes(wire, np.array([[np.nan, -np.inf, 1]], np.float32), 2)[1][0] == "1.000000:2"


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int64])
def test_integers_stay_integers(wire, dtype) -> None:
    high = int(np.iinfo(dtype).max)
    assert classes(wire, np.array([[1, high, 0]], dtype), 2)[1] == [f"{high}:1", "1:0"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_scores_of_any_precision_are_sorted(wire, dtype) -> None:
    assert classes(wire, np.array([[0.5, 2]], dtype), 1)[1] == ["2.000000:1"]


def test_booleans_are_zero_and_one(wire) -> None:
    assert classes(wire, np.array([[False, True]]), 2)[1] == ["1:1", "0:0"]


def test_no_rows_give_no_classes(wire) -> None:
    assert classes(wire, np.empty((0, 3), np.float32), 2) == ([0, 2], [])
    assert classes(wire, np.empty((2, 0), np.float32), 2) == ([2, 0], [])


def test_strings_have_no_order(wire) -> None:
    with pytest.raises(InvalidInput, match="BYTES"):
        wire.encode({"y": np.array([b"a"], object)}, RequestedOutput("y", 1))


def test_a_giant_answer_is_refused(wire) -> None:
    with pytest.raises(InvalidInput, match="classification output tensor too large"):
        classes(wire, np.zeros((1000, 1000), np.float32), 1000)


def test_classes_can_be_binary(wire) -> None:
    outputs = {"y": SCORES[:1]}
    _, rest, _ = wire.encode(outputs, RequestedOutput("y", 1, True))
    assert rest == b"\x0a\0\0\x000.700000:1"
