"""Which plots a report's page has, and what is drawn in each; how a plot is drawn is told by `plot`."""

from collections.abc import Sequence
from typing import Final

from farthing.bench.comparison import Verdict
from farthing.bench.figures import Histogram, Spread
from farthing.bench.measure import Measured
from farthing.bench.percentiles import Percentile
from farthing.bench.plot import HEIGHT, Axis, Bar, Interval, Line, Mark, chart, intervals
from farthing.bench.report import Report

COLOURS: Final = 6
"""As many as page.css has; more loads than that are left to the table."""
WIDE: Final = 1180
SMALL_WIDTH: Final = 400
SMALL_HEIGHT: Final = 230


def curves(told: Report) -> str:
    """Latency over throughput; of streams, their tokens over the load."""
    runs = [run for run in told.runs if run.figures.latency]
    rates = [run.figures.rate.value for run in runs]
    lines = []
    for colour, percent in enumerate((50.0, 90.0, 99.0), 1):
        found: list[Percentile | None] = [run.figures.latency.at(percent) for run in runs if run.figures.latency]
        label = [f"{run.load:g}" for run in runs] if percent == 50 else []
        lines.append(_points(f"p{percent:g}", rates, found, colour, label))
    is_stream = any(run.figures.ttft for run in runs)
    marks = []
    if told.knee is not None:
        at = told.runs[told.knee]
        marks.append(Mark(x=at.figures.rate.value, name=f"knee: {at.label}"))
    plots = [
        chart(
            Axis(title="answers a second", unit="/s"),
            Axis(title="latency, ms", is_log=True, unit=" ms"),
            lines=lines,
            marks=marks,
            width=SMALL_WIDTH if is_stream else WIDE,
            height=SMALL_HEIGHT if is_stream else HEIGHT,
        )
    ]
    if is_stream:
        streams = []
        for colour, (name, of) in enumerate((("time to first token", "ttft"), ("time per output token", "tpot")), 1):
            spreads: list[Spread | None] = [getattr(run.figures, of) for run in runs]
            found = [spread.at(50.0) if spread else None for spread in spreads]
            streams.append(_points(f"{name}, p50", [run.load for run in runs], found, colour, []))
        tokens = [run.figures.tokens_s.value if run.figures.tokens_s else None for run in runs]
        plots.append(
            chart(
                Axis(title="load"),
                Axis(title="ms", is_log=True, unit=" ms"),
                lines=streams,
                width=SMALL_WIDTH,
                height=SMALL_HEIGHT,
            )
        )
        total = Line(name="tokens a second, all users", x=[run.load for run in runs], y=tokens, colour=4)
        plots.append(
            chart(
                Axis(title="load"),
                Axis(title="tokens/s", unit="/s"),
                lines=[total],
                width=SMALL_WIDTH,
                height=SMALL_HEIGHT,
            )
        )
    panes = "".join(f'<div class="pane">{plot}</div>' for plot in plots)
    return f'<div class="{"three" if len(plots) > 1 else ""}">{panes}</div>'


def _points(
    name: str, x: Sequence[float], found: Sequence[Percentile | None], colour: int, labels: Sequence[str]
) -> Line:
    y = [one.value * 1e3 if one and one.value is not None else None for one in found]
    band = [
        (one.low * 1e3, one.high * 1e3) if one and one.low is not None and one.high is not None else None
        for one in found
    ]
    return Line(name=name, x=x, y=y, colour=colour, band=band, labels=labels)


def distributions(told: Report) -> str:
    """Every load's latency at each percentile, so far into the tail as its sample supports."""
    runs = [run for run in told.runs if run.figures.histogram]
    if told.compared:
        runs = [run for pair in zip(runs, told.compared.b_runs, strict=False) for run in pair if run.figures.histogram]
    if len(runs) > COLOURS:
        runs = [runs[round(at * (len(runs) - 1) / (COLOURS - 1))] for at in range(COLOURS)]
    lines = [_distribution(run, colour) for colour, run in enumerate(runs, 1)]
    plot = chart(
        Axis(title="share of requests that are faster", is_nines=True),
        Axis(title="latency, ms", is_log=True, unit=" ms"),
        lines=lines,
        width=WIDE,
    )
    return f'<div class="pane">{plot}</div>'


def _distribution(run: Measured, colour: int) -> Line:
    """From the histogram: a line through the end of each bar, as far as two requests lie beyond."""
    bars, total = run.figures.histogram, sum(count for _, _, count in run.figures.histogram)
    shares, latencies, below = [0.0], [bars[0][0] * 1e3], 0
    for _, to, count in bars:
        below += count
        if count and total - below >= 2:
            shares.append(below / total)
            latencies.append(to * 1e3)
    return Line(name=run.label, x=shares, y=latencies, colour=colour, has_dots=False)


def ratio_plots(told: Report) -> str:
    """Each ratio with its interval, and the rounds that it comes from."""
    assert told.compared is not None
    ratios = [
        Interval(
            name=name,
            value=one.value,
            low=one.low,
            high=one.high,
            is_clear=one.verdict in {Verdict.HIGHER, Verdict.LOWER},
        )
        for name, one in told.compared.ratios.items()
    ]
    sides = (("A", told.runs, 1), ("B", told.compared.b_runs, 2))
    lines = [
        Line(name=name, x=list(range(1, len(runs) + 1)), y=[run.figures.rate.value for run in runs], colour=colour)
        for name, runs, colour in sides
    ]
    rounds = chart(Axis(title="round", from_zero=False), Axis(title="answers a second", unit="/s"), lines=lines)
    return f'<div class="two"><div class="pane">{intervals(ratios)}</div><div class="pane">{rounds}</div></div>'


def details_plots(run: Measured) -> list[str]:
    """Of one load: its latency and rate over time, and how latencies are distributed."""
    found = run.figures
    at = [part.at_s for part in found.timeline]

    def line(name: str, colour: int, values: Sequence[float | None]) -> Line:
        return Line(name=name, x=at, y=values, colour=colour, has_dots=False)

    p50 = line("p50", 1, [None if part.p50_s is None else part.p50_s * 1e3 for part in found.timeline])
    p99 = line("p99", 3, [None if part.p99_s is None else part.p99_s * 1e3 for part in found.timeline])
    rates = [line("answers a second", 4, [part.rate for part in found.timeline])]
    if any(part.errors for part in found.timeline):
        width = at[1] - at[0] if len(at) > 1 else 1.0
        rates.append(line("errors a second", 3, [part.errors / width for part in found.timeline]))
    seconds, warm = Axis(title="seconds", unit=" s"), (0.0, found.warm_up_s)
    milliseconds = Axis(title="latency, ms", is_log=True, unit=" ms")
    plots = [
        chart(seconds, milliseconds, lines=[p50, p99], shaded=warm, width=SMALL_WIDTH, height=SMALL_HEIGHT),
        chart(
            seconds, Axis(title="a second", unit="/s"), lines=rates, shaded=warm, width=SMALL_WIDTH, height=SMALL_HEIGHT
        ),
    ]
    if any(part.tokens_s for part in found.timeline):
        tokens = line("tokens a second", 2, [part.tokens_s for part in found.timeline])
        plots.append(
            chart(
                seconds,
                Axis(title="tokens/s", unit="/s"),
                lines=[tokens],
                shaded=warm,
                width=SMALL_WIDTH,
                height=SMALL_HEIGHT,
            )
        )
    plots += [
        _bars(title, histogram, spread)
        for title, histogram, spread in (
            ("latency, ms", found.histogram, found.latency),
            ("time to first token, ms", found.ttft_histogram, found.ttft),
            ("between tokens, ms", found.itl_histogram, found.itl),
        )
        if histogram and spread
    ]
    return plots


def _bars(title: str, histogram: Histogram, spread: Spread) -> str:
    bars = [Bar(left=low * 1e3, right=high * 1e3, height=count) for low, high, count in histogram]
    shown = [spread.at(percent) for percent in (50.0, 99.0)]
    marks = [Mark(x=one.value * 1e3, name=f"p{one.percent:g}") for one in shown if one.value is not None]
    x = Axis(title=title, is_log=True, unit=" ms")
    return chart(x, Axis(title="how many"), bars=bars, marks=marks, width=SMALL_WIDTH, height=SMALL_HEIGHT)
