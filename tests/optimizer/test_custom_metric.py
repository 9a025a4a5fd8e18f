"""A metric of the user's own judges like any other, and what it does wrong is told in its own words."""

from pathlib import Path

import numpy as np
import pytest

from farthing.optimizer.agreement import drop
from farthing.optimizer.custom_metric import custom_metric, metric_of
from farthing.types.errors import InvalidInput

OUTPUTS = {"y": np.arange(40, dtype=np.float32).reshape(20, 2)}
WORSE = {"y": OUTPUTS["y"] * np.where(np.arange(20) < 3, -1, 1)[:, None].astype(np.float32)}


def put(folder: Path, text: str) -> str:
    (folder / "metric.py").write_text(text)
    return f"{folder}/metric.py:score"


def test_scores_of_samples_are_compared_sample_by_sample(tmp_path: Path) -> None:
    metric = custom_metric(put(tmp_path, "def score(outputs, labels):\n    return (outputs['y'][:, 1] > 0) * 1.0\n"))
    lost = drop(metric, OUTPUTS, WORSE, None)
    assert lost.metric == "metric.py:score"
    assert lost.mean == pytest.approx(3 / 20)
    assert lost.mean < lost.upper < 0.4


def test_one_score_for_all_is_bounded_by_bootstrap(tmp_path: Path) -> None:
    metric = custom_metric(put(tmp_path, "def score(outputs, labels):\n    return float((outputs['y'] >= 0).mean())\n"))
    lost = drop(metric, OUTPUTS, WORSE, None)
    assert 0 < lost.mean < lost.upper < 0.5
    assert drop(metric, OUTPUTS, OUTPUTS, None).upper == 0


def test_without_labels_the_original_s_outputs_are_the_truth_and_with_them_they_are() -> None:
    seen = []

    def score(outputs: dict, labels: object) -> float:
        seen.append(labels)
        return 1.0

    drop(metric_of(score), OUTPUTS, OUTPUTS, None)
    assert np.array_equal(seen[0]["y"], OUTPUTS["y"])
    seen.clear()
    drop(metric_of(score), OUTPUTS, OUTPUTS, np.arange(20))
    assert np.array_equal(seen[0], np.arange(20))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def score(outputs, labels):\n    return outputs['z']\n", "threw KeyError: 'z' .line 2: return outputs"),
        ("def score(outputs):\n    return 1\n", "threw TypeError"),
        ("def score(outputs, labels):\n    return [1, 0]\n", "answered with shape .2. for 20 samples"),
        ("def score(outputs, labels):\n    return 40.0\n", "answered with scores from 40 to 40"),
        ("def score(outputs, labels):\n    return float('nan')\n", "answered with scores from nan"),
        ("def score(outputs, labels):\n    outputs['y'][0] = 1\n    return 1\n", "threw ValueError: .*read-only"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, text: str, told: str) -> None:
    metric = custom_metric(put(tmp_path, text))
    with pytest.raises(InvalidInput, match=told) as caught:
        drop(metric, OUTPUTS, WORSE, None)
    assert "function(outputs, labels)" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("bleu", "is unknown"),
        ("{}/none.py:score", "cannot be read"),
        ("{}/metric.py:other", "has no function `other`; functions: score"),
        ("{}/broken.py:score", "threw ZeroDivisionError: .* .line 1: 1 / 0"),
    ],
)
def test_one_that_is_not_there_is_said_to_be_missing(tmp_path: Path, said: str, told: str) -> None:
    put(tmp_path, "def score(outputs, labels):\n    return 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InvalidInput, match=told):
        custom_metric(said.format(tmp_path))


def test_another_text_is_another_metric(tmp_path: Path) -> None:
    first = custom_metric(put(tmp_path, "def score(outputs, labels):\n    return 1\n")).digest
    assert custom_metric(put(tmp_path, "def score(outputs, labels):\n    return 0\n")).digest != first
