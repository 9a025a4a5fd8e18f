"""How far have a model's answers moved, and how sure is that?

A sample's *score* is 1 where the cheaper model did as well as can be asked, less where it did not. The *drop* is the
mean score lost against the original, and what is compared with the user's bound is the upper end of its confidence
interval: with few samples a small drop cannot be told from none, and then the answer is no.

Intervals are one-sided, 95 %. Scores that are 0 or 1 get the exact binomial bound (Clopper and Pearson, "The use of
confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934); others the larger of a
Student bound and an empirical Bernstein bound's leading term, since scores crowd at 1.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from farthing.optimizer.custom_metric import CustomMetric
from farthing.types.errors import InvalidInput
from farthing.types.tensors import Tensor

CONFIDENCE: Final = 0.95

SAME_RELATIVE: Final = 1e-3
"""Answers this near, relative to an output's own spread, are the same answer in another order of summing: over 48
samples of MiniLM and of EfficientNet-Lite0 two engines in float32 differ by 0.00001 at most, bf16 by 0.025 and 0.75."""

METRICS: Final = ("auto", "top1", "cosine", "neighbour", "ranking", "auc", "accuracy")

DRAWS: Final = 400
"""Of a bootstrap (Efron, 1979): its 95th percentile is known to a fifth of its spread."""
DRAWS_MIN: Final = 40
BOOTSTRAP_SECONDS: Final = 3.0
"""What drawing may take for a metric of the user's own, beyond the fewest draws."""

NEIGHBOUR_ROWS_MAX: Final = 4096
"""Rows among which nearest neighbours are looked for; their number enters as the square."""

Outputs = Mapping[str, Tensor]
"""Output name -> [samples, ...]."""
Metric = Callable[[Outputs, Outputs, Tensor | None], Tensor]
"""(original's outputs, candidate's outputs, labels) -> the score lost by each sample, [samples]."""


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """What was lost, in parts of 1."""

    metric: str
    mean: float
    upper: float
    """With 95 % confidence it is no more."""
    samples: int


class OutputError(msgspec.Struct, frozen=True, kw_only=True):
    """How far one output moved."""

    output: str
    largest_abs: float
    mean_abs: float
    relative: float
    """Largest difference in parts of the output's standard deviation."""
    bad_values: int
    """NaN or infinite where the original was finite."""


def output_errors(original: Outputs, other: Outputs) -> tuple[OutputError, ...]:
    """The error table: a line an output."""
    return tuple(_output_error(name, original[name], other[name]) for name in original)


def is_same(errors: tuple[OutputError, ...]) -> bool:
    """Whether all that moved is the order of sums."""
    return all(error.bad_values == 0 and error.relative <= SAME_RELATIVE for error in errors)


def drop(metric: str | CustomMetric, original: Outputs, other: Outputs, labels: Tensor | None) -> Drop:
    """What `other` loses against `original`. Raises `InvalidInput` for a metric that these data cannot feed."""
    if isinstance(metric, CustomMetric):
        return _custom_drop(metric, original, other, labels)
    name = chosen_metric(metric, original, labels)
    assert isinstance(name, str)
    if name == "auc":
        return _auc_drop(original, other, labels)
    lost = _SCORES[name](original, other, labels)
    return bounded(name, lost)


def bounded(name: str, lost: Tensor) -> Drop:
    """Mean and upper bound of the scores lost, [samples], each from -1 to 1."""
    lost = np.asarray(lost, np.float64)
    count = len(lost)
    mean = float(lost.mean())
    if np.isin(lost, (0.0, 1.0)).all():
        return Drop(metric=name, mean=mean, upper=binomial_upper(int(lost.sum()), count), samples=count)
    spread = float(lost.std(ddof=1)) if count > 1 else math.inf
    span = float(lost.max() - min(0.0, lost.min()))
    log_term = math.log(1 / (1 - CONFIDENCE))
    # 1.645: Student's quantile is larger below some thirty samples, where the second term outweighs it.
    upper = mean + 1.645 * spread / math.sqrt(count) + span * log_term / (3 * count)
    return Drop(metric=name, mean=mean, upper=min(1.0, upper), samples=count)


def binomial_upper(failures: int, count: int) -> float:
    """The largest failure rate that would show so few failures one time in twenty (Clopper and Pearson)."""
    if failures >= count:
        return 1.0
    low, high = failures / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _binomial_at_most(failures, count, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def samples_needed(drop_max: float) -> int:
    """Samples without a single failure that rule out a larger drop than this; the fewest that can prove anything."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-min(max(drop_max, 1e-9), 1 - 1e-9)))


def chosen_metric(metric: str | CustomMetric, original: Outputs, labels: Tensor | None) -> str | CustomMetric:
    """`auto` made definite: what the outputs look like, and whether there are labels. Raises `InvalidInput`."""
    if isinstance(metric, CustomMetric):
        return metric
    if metric not in METRICS:
        raise InvalidInput(
            f"metric `{metric}` is unknown; metrics: {', '.join(METRICS)}", hint="or FILE.py:FUNCTION for your own"
        )
    if metric != "auto":
        if metric in ("auc", "accuracy"):
            if labels is None:
                raise InvalidInput(f"metric `{metric}` needs labels", hint="add an array `labels` to the data file")
            _check_labels(metric, original, labels)
        return metric
    scores = _first(original)
    has_classes = scores.ndim == 2 and scores.shape[1] > 1 and np.issubdtype(scores.dtype, np.number)
    if labels is not None and labels.ndim == 1 and has_classes and np.issubdtype(labels.dtype, np.integer):
        _check_labels("accuracy", original, labels)
        return "accuracy"
    if has_classes and _are_probabilities(scores):
        return "top1"
    return "cosine"


def _check_labels(metric: str, original: Outputs, labels: Tensor) -> None:
    """Raises `InvalidInput` for labels that tell a right answer from none."""
    if len(np.unique(labels)) < 2:
        raise InvalidInput(
            f"all {len(labels)} labels to judge by are alike ({labels.flat[0]}): a model that always says so would be "
            "perfect",
            hint="give samples of at least two classes, or leave the labels out: the model as it is is the truth then",
        )
    scores = _first(original)
    classes = int(scores.size / len(scores))
    if metric == "accuracy" and (
        labels.ndim != 1
        or not np.issubdtype(labels.dtype, np.integer)
        or not 0 <= int(labels.min()) <= int(labels.max()) < classes
    ):
        raise InvalidInput(
            f"labels for `accuracy` are numbers of classes, 0 to {classes - 1}, one a sample; found: {labels.dtype} "
            f"{list(labels.shape)} from {labels.min()} to {labels.max()}",
            hint="give classes by number, or leave the labels out: the model as it is is the truth then",
        )


def _custom_drop(metric: CustomMetric, original: Outputs, other: Outputs, labels: Tensor | None) -> Drop:
    """By the spread of the scores of samples, or, where the metric gives one for all, by paired bootstrap."""
    count = len(_first(original))

    def score(outputs: Outputs, rows: Tensor | slice) -> Tensor | float:
        truth = labels[rows] if labels is not None else {name: array[rows] for name, array in original.items()}
        some = {name: array[rows] for name, array in outputs.items()}
        return metric.scores(some, truth, len(_first(some)))

    before, after = score(original, slice(None)), score(other, slice(None))
    if not isinstance(before, float) or not isinstance(after, float):
        return bounded(metric.name, np.asarray(before) - np.asarray(after))
    mean = before - after
    chance, deadline = np.random.default_rng(0), time.monotonic() + BOOTSTRAP_SECONDS
    lost: list[float] = []
    while len(lost) < DRAWS and (len(lost) < DRAWS_MIN or time.monotonic() < deadline):
        rows = chance.integers(0, count, count)
        lost.append(float(score(original, rows)) - float(score(other, rows)))
    return Drop(metric=metric.name, mean=mean, upper=max(mean, float(np.quantile(lost, CONFIDENCE))), samples=count)


def _top1(original: Outputs, other: Outputs, labels: Tensor | None) -> Tensor:
    was, now = _first(original), _first(other)
    moved = was.argmax(-1) != now.argmax(-1)  # of a text, [samples, steps, classes], any step
    lost: Tensor = moved.reshape(len(was), -1).any(1).astype(np.float64)
    return lost


def _accuracy(original: Outputs, other: Outputs, labels: Tensor | None) -> Tensor:
    assert labels is not None
    was, now = _first(original), _first(other)
    right_before = was.reshape(len(was), -1).argmax(1) == labels
    right_now = now.reshape(len(now), -1).argmax(1) == labels
    lost: Tensor = right_before.astype(np.float64) - right_now.astype(np.float64)
    return lost


def _cosine(original: Outputs, other: Outputs, labels: Tensor | None) -> Tensor:
    first = _first(original)
    if labels is not None and labels.shape == first.shape and np.issubdtype(labels.dtype, np.floating):
        nearer: Tensor = _cosines(first, labels) - _cosines(_first(other), labels)
        return nearer
    worst = np.zeros(len(_first(original)))
    for name, was in original.items():
        if not np.issubdtype(was.dtype, np.floating):
            moved = (was != other[name]).reshape(len(was), -1).any(1)
            worst = np.maximum(worst, moved)
            continue
        worst = np.maximum(worst, 1 - _cosines(was, other[name]))
    return worst


def _cosines(some: Tensor, others: Tensor) -> Tensor:
    """Of each row with its counterpart; 1 where they are equal, 0 where one of them has no direction."""
    before = some.reshape(len(some), -1).astype(np.float64)
    after = others.reshape(len(some), -1).astype(np.float64)
    length = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    same = (before == after).all(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(same, 1.0, (before * after).sum(1) / length)
    found: Tensor = np.nan_to_num(cosine, nan=0.0)
    return found


def _neighbour(original: Outputs, other: Outputs, labels: Tensor | None) -> Tensor:
    """Whether each row's nearest other row, by cosine, is still the same one."""
    was, now = (_unit(_first(outputs)[:NEIGHBOUR_ROWS_MAX]) for outputs in (original, other))
    if len(was) < 3:
        raise InvalidInput("metric `neighbour` needs at least 3 samples to judge by", hint="give more samples")
    lost: Tensor = (_nearest(was) != _nearest(now)).astype(np.float64)
    return lost


def _ranking(original: Outputs, other: Outputs, labels: Tensor | None) -> Tensor:
    """1 minus Spearman's correlation between each row's likenesses to all others, by cosine, before and now."""
    was, now = (_unit(_first(outputs)[:NEIGHBOUR_ROWS_MAX]) for outputs in (original, other))
    if len(was) < 3:
        raise InvalidInput("metric `ranking` needs at least 3 samples to judge by", hint="give more samples")
    others = ~np.eye(len(was), dtype=bool)
    before, after = ((unit @ unit.T)[others].reshape(len(was), -1).argsort(1).argsort(1) for unit in (was, now))
    count = before.shape[1]
    lost: Tensor = 6 * ((before - after) ** 2).sum(1) / (count * (count**2 - 1.0))
    return lost


_SCORES: Final[dict[str, Metric]] = {
    "top1": _top1,
    "accuracy": _accuracy,
    "cosine": _cosine,
    "neighbour": _neighbour,
    "ranking": _ranking,
}


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Chance that a positive sample scores over a negative one, ties counting half (Mann and Whitney)."""
    order = np.argsort(scores, kind="stable")
    _, inverse, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = np.empty(len(scores))
    ranks[order] = (ends - (counts - 1) / 2)[inverse]
    ones = int(positive.sum())
    zeros = len(positive) - ones
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _auc_drop(original: Outputs, other: Outputs, labels: Tensor | None) -> Drop:
    """By paired bootstrap: draws of the judged samples, both models on the same ones."""
    assert labels is not None
    positive = labels.reshape(len(labels), -1)[:, 0] == 1
    if positive.all() or not positive.any():
        raise InvalidInput("metric `auc` needs samples of both classes", hint="labels are 0 and 1")
    was, now = _positive_scores(_first(original)), _positive_scores(_first(other))
    chance = np.random.default_rng(0)
    lost = []
    for _ in range(DRAWS):
        rows = chance.integers(0, len(labels), len(labels))
        if 0 < positive[rows].sum() < len(rows):
            lost.append(area_under_curve(was[rows], positive[rows]) - area_under_curve(now[rows], positive[rows]))
    mean = area_under_curve(was, positive) - area_under_curve(now, positive)
    upper = max(mean, float(np.quantile(lost, CONFIDENCE))) if lost else 1.0
    return Drop(metric="auc", mean=mean, upper=upper, samples=len(labels))


def _positive_scores(scores: Tensor) -> Tensor:
    flat: Tensor = scores.reshape(len(scores), -1)[:, -1].astype(np.float64)
    return flat


def _output_error(name: str, was: Tensor, now: Tensor) -> OutputError:
    if was.dtype.hasobject:  # text: it is the same or it is not
        moved = (was != now).mean()
        return OutputError(output=name, largest_abs=0.0, mean_abs=0.0, relative=float(moved > 0), bad_values=0)
    before, after = was.astype(np.float64), now.astype(np.float64)
    bad = int((np.isfinite(before) & ~np.isfinite(after)).sum())
    known = np.isfinite(before) & np.isfinite(after)
    apart = np.abs(before - after)[known]
    spread = float(before[known].std()) if known.any() else 0.0
    largest = float(apart.max()) if apart.size else 0.0
    return OutputError(
        output=name,
        largest_abs=largest,
        mean_abs=float(apart.mean()) if apart.size else 0.0,
        relative=largest / spread if spread else (0.0 if largest == 0 else math.inf),
        bad_values=bad,
    )


def _first(outputs: Outputs) -> Tensor:
    return next(iter(outputs.values()))


def _are_probabilities(scores: Tensor) -> bool:
    return bool(
        np.issubdtype(scores.dtype, np.floating)
        and (scores >= 0).all()
        and np.allclose(scores.sum(1, dtype=np.float64), 1, atol=1e-3)
    )


def _unit(rows: Tensor) -> Tensor:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: Tensor = flat / np.where(lengths == 0, 1, lengths)
    return unit


def _nearest(unit: Tensor) -> Tensor:
    near: Tensor = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    nearest: Tensor = near.argmax(1)
    return nearest


def _binomial_at_most(failures: int, count: int, rate: float) -> float:
    """P(X <= failures) for X of Binomial(count, rate), summed in logarithms."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return 1.0 if failures >= count else 0.0
    at = np.arange(failures + 1)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in at])
    logs = logs + at * math.log(rate) + (count - at) * math.log1p(-rate)
    top = float(logs.max())
    return min(1.0, math.exp(top) * float(np.exp(logs - top).sum()))
