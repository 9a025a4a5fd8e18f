"""How sure is a drop? Held against textbook values and against chance itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.agreement import (
    area_under_curve,
    binomial_upper,
    bounded,
    chosen_metric,
    drop,
    is_same,
    output_errors,
    samples_needed,
)
from farthing.types.errors import InvalidInput


def test_no_failure_in_n_rules_out_three_in_n() -> None:
    assert binomial_upper(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)
    assert binomial_upper(0, 300) == pytest.approx(3 / 300, rel=0.01)


def test_the_binomial_bound_is_clopper_and_pearson_s() -> None:
    # Quantiles of the beta distribution: scipy.stats.beta.ppf(0.95, k + 1, n - k).
    assert binomial_upper(5, 100) == pytest.approx(0.1022532, abs=1e-6)
    assert binomial_upper(1, 10) == pytest.approx(0.3941633, abs=1e-6)
    assert binomial_upper(10, 10) == 1


@given(st.integers(1, 400), st.data())
def test_the_bound_is_above_what_was_seen_and_falls_with_samples(count: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(0, count - 1))
    upper = binomial_upper(failures, count)
    assert failures / count < upper <= 1
    assert binomial_upper(2 * failures, 2 * count) <= upper + 1e-12


@given(st.floats(0.0005, 0.5))
def test_so_many_samples_without_a_failure_are_enough_and_one_fewer_are_not(drop_max: float) -> None:
    needed = samples_needed(drop_max)
    assert binomial_upper(0, needed) <= drop_max * (1 + 1e-9)
    assert needed == 1 or binomial_upper(0, needed - 1) > drop_max


def test_the_interval_holds_nineteen_times_in_twenty() -> None:
    chance = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        lost = chance.beta(0.5, 20, 200)  # most rows lose next to nothing, some a lot
        held += bounded("cosine", lost).upper >= 0.5 / 20.5
    assert held >= 380


def test_answers_that_moved_by_rounding_are_the_same() -> None:
    was = {"y": np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)}
    assert is_same(output_errors(was, {"y": was["y"] + np.float32(1e-5)}))
    assert not is_same(output_errors(was, {"y": was["y"] + np.float32(1e-2)}))


def test_values_that_are_no_numbers_any_more_are_counted() -> None:
    was, now = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    now[1, 0], now[2, 1] = np.nan, np.inf
    [error] = output_errors({"y": was}, {"y": now})
    assert error.bad_values == 2
    assert not is_same((error,))


def test_top1_counts_classes_that_changed() -> None:
    was = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    now = np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    assert drop("top1", {"p": was}, {"p": now}, None).mean == 0.25


def test_accuracy_may_rise() -> None:
    labels = np.array([0, 1, 1, 0])
    was = np.eye(2)[[0, 0, 1, 0]]
    now = np.eye(2)[[0, 1, 1, 0]]
    assert drop("accuracy", {"p": was}, {"p": now}, labels).mean == -0.25


def test_cosine_knows_directions_and_not_lengths() -> None:
    was = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert drop("cosine", {"v": was}, {"v": 3 * was}, None).mean == pytest.approx(0)
    turned = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    assert drop("cosine", {"v": was}, {"v": turned}, None).mean == pytest.approx(1 / 3)


def test_cosines_with_labels_count_how_far_answers_come_away_from_them() -> None:
    labels = np.array([[1.0, 0.0], [0.0, 1.0]])
    was, now = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [1.0, 1.0]])
    lost = drop("cosine", {"v": was}, {"v": now}, labels)
    assert lost.mean == pytest.approx((2**-0.5 - 1 + 1 - 2**-0.5) / 2)  # one is nearer now, one further
    assert drop("cosine", {"v": was}, {"v": was}, labels).mean == 0


def test_neighbours_that_moved_are_counted() -> None:
    was = np.array([[1, 0], [0.99, 0.1], [0, 1], [0.1, 0.99]])
    assert drop("neighbour", {"v": was}, {"v": was * 5}, None).mean == 0
    assert drop("neighbour", {"v": was}, {"v": was[[0, 2, 1, 3]]}, None).mean == 1


def test_area_under_curve_is_mann_and_whitney_s_count() -> None:
    chance = np.random.default_rng(1)
    scores, positive = chance.integers(0, 9, 80) / 9, chance.random(80) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert area_under_curve(scores, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_metrics_choose_themselves_by_what_outputs_look_like() -> None:
    probabilities = {"p": np.full((3, 4), 0.25)}
    vectors = {"v": np.ones((3, 4))}
    assert chosen_metric("auto", probabilities, None) == "top1"
    assert chosen_metric("auto", vectors, None) == "cosine"
    assert chosen_metric("auto", vectors, np.array([0, 1, 2])) == "accuracy"
    assert chosen_metric("neighbour", vectors, None) == "neighbour"


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_metrics_that_need_labels_say_so(metric: str) -> None:
    with pytest.raises(InvalidInput, match="needs labels"):
        chosen_metric(metric, {"p": np.ones((3, 2))}, None)


def test_labels_that_are_all_alike_are_no_ground_for_auc() -> None:
    scores = {"p": np.random.default_rng(0).random((9, 1))}
    with pytest.raises(InvalidInput, match="alike"):
        drop("auc", scores, scores, np.ones(9))


def test_an_unknown_metric_lists_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="metrics: auto, top1"):
        chosen_metric("bleu", {"p": np.ones((3, 2))}, None)


def test_auc_lost_is_bounded_by_bootstrap() -> None:
    chance = np.random.default_rng(2)
    labels = chance.random(400) < 0.5
    good = labels + chance.normal(0, 0.5, 400)
    worse = labels + chance.normal(0, 1.5, 400)
    same = drop("auc", {"p": good[:, None]}, {"p": good[:, None]}, labels)
    lost = drop("auc", {"p": good[:, None]}, {"p": worse[:, None]}, labels)
    assert same.mean == same.upper == 0
    assert 0.05 < lost.mean < lost.upper < 0.5
    assert not math.isnan(lost.upper)


def test_ranking_loses_nothing_where_the_order_of_likenesses_stays() -> None:
    vectors = np.random.default_rng(3).normal(size=(40, 16))
    longer = {"v": vectors * np.linspace(1, 3, 40)[:, None]}
    turned = {"v": vectors + np.random.default_rng(4).normal(0, 0.3, vectors.shape)}
    assert drop("ranking", {"v": vectors}, longer, None).mean == 0
    assert 0.01 < drop("ranking", {"v": vectors}, turned, None).mean < 0.2


def test_ranking_is_spearmans() -> None:
    from scipy.stats import spearmanr

    chance = np.random.default_rng(5)
    before, after = chance.normal(size=(12, 8)), chance.normal(size=(12, 8))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (before, after)]
    expected = [
        1 - spearmanr(*(np.delete(rows @ rows[at], at) for rows in unit)).statistic for at in range(len(before))
    ]
    assert drop("ranking", {"v": before}, {"v": after}, None).mean == pytest.approx(np.mean(expected))


def test_a_text_is_lost_with_one_of_its_letters() -> None:
    letters = np.eye(5, dtype=np.float32)[[[0, 1, 2], [3, 4, 0]]]
    other = letters.copy()
    other[1, 2] = np.eye(5)[1]
    assert drop("top1", {"text": letters}, {"text": other}, None).mean == 0.5
