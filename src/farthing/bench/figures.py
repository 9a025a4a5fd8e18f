"""What a load's records say: rates, percentiles, errors, and whether any of it may be believed.

A request belongs to the window in which it was meant to be sent, however late its answer came; a rate counts answers
that came within the window. Warm-up is found (`steady`) or given. The generator judges itself last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.bench.frames import FrameFigures, FramePlan, frame_figures
from farthing.bench.means import Estimate, rate
from farthing.bench.percentiles import Percentile, percentiles
from farthing.bench.records import ABANDONED, Records, kind_of
from farthing.bench.steady import steadiness
from farthing.bench.targets import Metric, Target, good

PERCENTS: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
BUSY_MAX: Final = 0.90
"""Share of its core above which the generator's own speed, not the server's, may be what was measured."""
STARVED_MAX: Final = 0.05
"""Share of the time for which other programs may keep the generator from its core."""
LAG_S: Final = 0.001
LAG_SHARE: Final = 0.10
"""Requests may leave late (p99) by a millisecond, or by a tenth of the median latency, or of frames' deadline, where
that is more."""
BARS: Final = 60
SLICES: Final = 60
SLICE_REQUESTS: Final = 20
"""Of a timeline: no more slices than these, and in the mean no fewer requests than those in one."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A quantity over requests: seconds, or tokens a second."""

    mean: float
    least: float
    most: float
    percentiles: tuple[Percentile, ...]

    def at(self, percent: float) -> Percentile:
        """One of `PERCENTS`."""
        return next(one for one in self.percentiles if one.percent == percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """How the load generator itself did."""

    cpu_share: float
    starved_share: float
    lag_p99_s: float
    held_p50_s: float
    waited_for_connection: int
    problems: tuple[str, ...]
    """Any of these makes the run invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of the run, for the timeline; latencies None where nothing began."""

    at_s: float
    rate: float
    p50_s: float | None
    p99_s: float | None
    errors: int
    tokens_s: float | None


Histogram = tuple[tuple[float, float, int], ...]
"""From, to (seconds, equal ratios), how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one load."""

    requests: int
    """That began in the window."""
    answered: int
    errors: Mapping[str, int]
    abandoned: int
    warm_up_s: float
    window_s: float
    rest_problem: str
    rate: Estimate
    goodput: Estimate | None
    latency: Spread | None
    service: Spread | None
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    user_tokens_s: Spread | None
    tokens_s: Estimate | None
    prompt_tokens_s: Estimate | None
    prompt_tokens_mean: float | None
    cached_share: float | None
    """Of prompt tokens that the server counted, those it found in its cache."""
    frames: FrameFigures | None
    generator: Generator
    timeline: tuple[Slice, ...]
    histogram: Histogram
    """Of latencies."""
    ttft_histogram: Histogram
    itl_histogram: Histogram
    samples: Mapping[str, str]
    """Kind of error -> what the server said first."""

    @property
    def is_valid(self) -> bool:
        return not self.generator.problems and self.answered > 0


def figures(
    records: Records,
    *,
    duration_s: float,
    warm_up_s: float | None,
    targets: tuple[Target, ...] = (),
    is_stream: bool = False,
    frames: FramePlan | None = None,
) -> Figures:
    """`warm_up_s` None: found, but of frames, all of which count. `duration_s` is how long the load was to send."""
    answered = records.is_answered
    intended = (records.intended_ns - records.started_ns) / 1e9
    ended = (records.end_ns - records.started_ns) / 1e9
    stop = min(duration_s, records.wall_s)
    problem = ""
    begin = min(warm_up_s or 0.0, stop / 2)
    if warm_up_s is None and frames is None and answered.any():
        rest = steadiness(records.latency_s[answered])
        problem = rest.problem
        begin = float(intended[answered][rest.warm_up])
    inside = (intended >= begin) & (intended < max(stop, begin + 1e-9)) & (records.status != ABANDONED)
    kept = inside & answered
    at = ended[answered]
    per_request = _per_request(records, kept) if is_stream else {}
    latency, service = records.latency_s[kept], records.service_s[kept]
    tokens = _token_counts(records)
    goodput = None
    if targets:
        all_good = good(targets, {Metric.LATENCY: latency, **per_request})
        goodput = rate(ended[kept][all_good], begin, stop)
    errors, samples = _errors(records, inside & ~answered & ~records.is_dropped)
    weights = (tokens / np.maximum(records.tokens, 1))[records.event_record] if is_stream else None
    event_s = (records.event_ns - records.started_ns) / 1e9
    gaps = _gaps(records, kept) if is_stream else np.zeros(0)
    prompts = records.prompt_tokens[kept]
    known = prompts >= 0
    cached = records.cached_tokens[kept]
    return Figures(
        requests=int(inside.sum()),
        answered=int(kept.sum()),
        errors=errors,
        abandoned=int((records.status == ABANDONED).sum()),
        warm_up_s=begin,
        window_s=stop - begin,
        rest_problem=problem,
        rate=rate(at, begin, stop),
        goodput=goodput,
        latency=spread(latency),
        service=spread(service),
        ttft=spread(per_request[Metric.TTFT]) if is_stream else None,
        itl=spread(gaps) if is_stream else None,
        tpot=spread(per_request[Metric.TPOT]) if is_stream else None,
        user_tokens_s=spread(1 / per_request[Metric.TPOT]) if is_stream else None,
        tokens_s=rate(event_s, begin, stop, weights) if is_stream else None,
        prompt_tokens_s=rate(ended[kept][known], begin, stop, prompts[known].astype(np.float64))
        if known.any()
        else None,
        prompt_tokens_mean=float(prompts[known].mean()) if known.any() else None,
        cached_share=float(cached[cached >= 0].sum() / max(int(prompts[cached >= 0].sum()), 1))
        if (cached >= 0).any()
        else None,
        frames=frame_figures(records, frames) if frames else None,
        generator=_generator(records, latency, frames),
        timeline=_timeline(records, intended, ended, event_s, weights),
        histogram=_histogram(latency),
        ttft_histogram=_histogram(per_request[Metric.TTFT]) if is_stream else (),
        itl_histogram=_histogram(gaps),
        samples=samples,
    )


def spread(values: Values) -> Spread | None:
    """Of what is a number among `values` [n]; None if nothing is."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return Spread(
        mean=float(values.mean()),
        least=float(values.min()),
        most=float(values.max()),
        percentiles=tuple(percentiles(values, PERCENTS)),
    )


def _token_counts(records: Records) -> NDArray[np.float64]:
    """Tokens of each answer: as the server counted them, or else events."""
    return np.where(records.completion_tokens >= 0, records.completion_tokens, records.tokens).astype(np.float64)


def _per_request(records: Records, kept: NDArray[np.bool_]) -> dict[Metric, Values]:
    last = np.zeros(len(records), np.int64)
    np.maximum.at(last, records.event_record, records.event_ns)
    counts = _token_counts(records)
    has_text = records.tokens > 0
    ttft = np.where(has_text, (records.first_ns - records.intended_ns) / 1e9, np.nan)
    more = has_text & (counts > 1) & (last > records.first_ns)
    tpot = np.where(more, (last - records.first_ns) / 1e9 / np.maximum(counts - 1, 1), np.nan)
    gaps = np.full(len(records), np.nan)  # the longest gap of a request: a target on ITL is about that one
    order, spans = _ordered_gaps(records)
    np.fmax.at(gaps, order, spans)
    return {Metric.TTFT: ttft[kept], Metric.TPOT: tpot[kept], Metric.ITL: gaps[kept]}


def _ordered_gaps(records: Records) -> tuple[NDArray[np.uint32], Values]:
    order = np.argsort(records.event_record, kind="stable")
    rows, times = records.event_record[order], records.event_ns[order]
    same = rows[1:] == rows[:-1]
    return rows[1:][same], np.asarray(np.diff(times)[same] / 1e9, np.float64)


def _gaps(records: Records, kept: NDArray[np.bool_]) -> Values:
    rows, gaps = _ordered_gaps(records)
    return gaps[kept[rows]]


def _errors(records: Records, failed: NDArray[np.bool_]) -> tuple[dict[str, int], dict[str, str]]:
    statuses, counts = np.unique(records.status[failed], return_counts=True)
    errors = {kind_of(int(status)): int(count) for status, count in zip(statuses, counts, strict=True)}
    said = {kind_of(status): body.decode("utf-8", "replace") for status, body in records.samples.items() if body}
    return errors, said


def _generator(records: Records, latency: Values, frames: FramePlan | None) -> Generator:
    wall_s = max(records.wall_s, 1e-9)
    cpu, starved = records.cpu_s / wall_s, records.starved_s / wall_s
    lag = float(np.percentile(records.lag_s, 99)) if len(records) else 0.0
    lag_max = max(LAG_S, LAG_SHARE * float(np.median(latency))) if len(latency) else LAG_S
    if frames:
        lag_max = max(lag_max, LAG_SHARE * frames.deadline_s)
    problems = []
    if cpu > BUSY_MAX:
        problems.append(f"the generator used {cpu:.0%} of its core: it was the bottleneck, not the server")
    if starved > STARVED_MAX:
        problems.append(f"other programs kept the generator from its core for {starved:.0%} of the time")
    if lag > lag_max:
        problems.append(
            f"requests left {lag * 1e3:.2f} ms late (p99; at most {lag_max * 1e3:.2f} ms): the load was not as asked"
        )
    if records.events_lost:
        problems.append(f"{records.events_lost:,} tokens were more than can be timed: shorten the run")
    return Generator(
        cpu_share=cpu,
        starved_share=starved,
        lag_p99_s=lag,
        held_p50_s=float(np.median(records.held_s)) if len(records) else 0.0,
        waited_for_connection=records.waited_for_connection,
        problems=tuple(problems),
    )


def _timeline(
    records: Records, intended: Values, ended: Values, event_s: Values, weights: Values | None
) -> tuple[Slice, ...]:
    if not len(records):
        return ()
    slices_max = min(SLICES, max(len(records) // SLICE_REQUESTS, 8))
    width = max(float(ended.max()), 1e-9) / slices_max
    answered, latency = records.is_answered, records.latency_s
    done = np.bincount(np.minimum((ended[answered] / width).astype(int), slices_max - 1), minlength=slices_max)
    tokens = None
    if weights is not None:
        at = np.clip((event_s / width).astype(int), 0, slices_max - 1)
        tokens = np.bincount(at, weights=weights, minlength=slices_max) / width
    began = np.clip((intended / width).astype(int), 0, slices_max - 1)
    slices = []
    for part in range(slices_max):
        here = began == part
        values = latency[here & answered]
        p50, p99 = np.percentile(values, (50, 99)).tolist() if len(values) else (None, None)
        slices.append(
            Slice(
                at_s=part * width,
                rate=float(done[part] / width),
                p50_s=p50,
                p99_s=p99,
                errors=int((here & ~answered & ~records.is_dropped & (records.status != ABANDONED)).sum()),
                tokens_s=None if tokens is None else float(tokens[part]),
            )
        )
    return tuple(slices)


def _histogram(latency: Values) -> Histogram:
    positive = latency[np.isfinite(latency) & (latency > 0)]
    if not len(positive):
        return ()
    low, high = float(positive.min()), float(positive.max())
    edges = np.geomspace(low, max(high, low * 1.01) * 1.000001, BARS + 1)
    counts, _ = np.histogram(positive, edges)
    return tuple((float(edges[i]), float(edges[i + 1]), int(counts[i])) for i in range(BARS))
