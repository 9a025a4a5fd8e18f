"""A report as one HTML page that needs nothing else: what was found, plots, every figure, how it was made."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Final

from farthing.bench.figures import Figures, Spread
from farthing.bench.measure import Measured
from farthing.bench.percentiles import Percentile
from farthing.bench.plot import Axis, Bar, Line, Mark, chart
from farthing.bench.report import Report

DETAILS_MAX: Final = 12
"""Loads shown with a timeline and a histogram; a search makes more than anyone reads."""
_LEGEND: Final = '<p class="sub">Bars around points are 95 % intervals; numbers at points are loads.</p>'


def to_html(told: Report) -> str:
    """The page."""
    when = f"{told.made_at.replace('T', ' ').replace('Z', ' UTC')}"
    where = f"{told.machine.get('cpu', '')}, cores: {told.machine.get('cores', '?')}"
    models = ", ".join(told.settings.get("models", ()))
    body = [
        f"<h1>{escape(models or told.target)}</h1>",
        f'<p class="sub">{escape(f"{told.target}, {when}, {where}, farthing {told.farthing}")}</p>',
        *_conclusions(told),
    ]
    if len(told.runs) > 1 and not told.compared:
        body += ["<h2>Latency against load</h2>", _curve(told)]
    if told.compared:
        body += ["<h2>A against B, round by round</h2>", _rounds(told)]
    body += ["<h2>Figures</h2>", _table(told.runs, told.knee)]
    if told.compared:
        body += [f"<h3>B: {escape(told.compared.b)}</h3>", _table(told.compared.b_runs, None)]
    body.append("<h2>Load by load</h2>")
    body += [_details(run) for run in told.runs[:DETAILS_MAX]]
    if len(told.runs) > DETAILS_MAX:
        body.append(f"<p>{len(told.runs) - DETAILS_MAX} more are in the JSON report.</p>")
    body += ["<h2>How it was made</h2>", _settings(told)]
    style = resources.files("farthing.bench").joinpath("page.css").read_text(encoding="utf-8")
    title = f"{escape(models)} on {escape(told.target)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _conclusions(told: Report) -> list[str]:
    said = []
    if told.found:
        best = "No load tried" if told.found.load is None else f"{told.found.load:g} is the highest load that"
        meets = f"{best} meets {told.settings.get('find', 'the target')}: {told.found.reason}."
        said.append(f'<p class="big">{escape(meets)}</p>')
    if told.knee is not None:
        said.append(
            f'<p class="big">The knee is at {escape(told.runs[told.knee].label)}: beyond it, requests mostly wait.</p>'
        )
    if told.compared:
        for name, ratio in told.compared.ratios.items():
            interval = "" if ratio.low is None else f" ({ratio.low:.3f} to {ratio.high:.3f})"
            said.append(
                f'<p class="big">{escape(name)}, A / B: {ratio.value:.3f}{interval}, {escape(ratio.verdict.value)}.</p>'
            )
    if told.mlperf and told.mlperf.result:
        bad = "" if told.mlperf.is_valid else " bad"
        judged = f"MLPerf {told.mlperf.scenario}: {told.mlperf.result}, by {told.mlperf.by}"
        said.append(f'<p class="big{bad}">{escape("; ".join([judged, *told.mlperf.unmet, *told.mlperf.problems]))}</p>')
    for run in told.runs:
        problems = list(run.figures.generator.problems)
        if not run.figures.answered:
            problems.append("no request was answered")
        said += [f'<p class="big bad">{escape(run.label)} is invalid: {escape(problem)}</p>' for problem in problems]
    return said


def _curve(told: Report) -> str:
    runs = [run for run in told.runs if run.figures.latency]
    rates = [run.figures.rate.value for run in runs]
    lines = []
    for colour, percent in enumerate((50.0, 90.0, 99.0), 1):
        found: list[Percentile | None] = [run.figures.latency.at(percent) for run in runs if run.figures.latency]
        label = [f"{run.load:g}" for run in runs] if percent == 50 else []
        lines.append(_points(f"p{percent:g}", rates, found, colour, label))
    marks = []
    if told.knee is not None:
        at = told.runs[told.knee]
        marks.append(Mark(x=at.figures.rate.value, name=f"knee: {at.label}"))
    plots = [chart(Axis(title="answers a second"), Axis(title="latency, ms", is_log=True), lines=lines, marks=marks)]
    if any(run.figures.ttft for run in runs):
        streams = []
        for colour, (name, of) in enumerate((("time to first token", "ttft"), ("time per output token", "tpot")), 1):
            spreads: list[Spread | None] = [getattr(run.figures, of) for run in runs]
            found = [spread.at(50.0) if spread else None for spread in spreads]
            streams.append(_points(f"{name}, p50", [run.load for run in runs], found, colour, []))
        tokens = [run.figures.tokens_s.value if run.figures.tokens_s else None for run in runs]
        plots.append(chart(Axis(title="load"), Axis(title="ms", is_log=True), lines=streams))
        total = Line(name="tokens a second, all users", x=[run.load for run in runs], y=tokens, colour=4)
        plots.append(chart(Axis(title="load"), Axis(title="tokens/s"), lines=[total]))
    panes = "".join(f'<div class="pane">{plot}</div>' for plot in plots)
    return f'<div class="{"two" if len(plots) > 1 else ""}">{panes}</div>{_LEGEND}'


def _points(
    name: str, x: Sequence[float], found: Sequence[Percentile | None], colour: int, labels: Sequence[str]
) -> Line:
    y = [one.value * 1e3 if one and one.value is not None else None for one in found]
    band = [
        (one.low * 1e3, one.high * 1e3) if one and one.low is not None and one.high is not None else None
        for one in found
    ]
    return Line(name=name, x=x, y=y, colour=colour, band=band, labels=labels)


def _rounds(told: Report) -> str:
    assert told.compared is not None
    sides = (("A", told.runs, 1), ("B", told.compared.b_runs, 2))
    lines = [
        Line(name=name, x=list(range(1, len(runs) + 1)), y=[run.figures.rate.value for run in runs], colour=colour)
        for name, runs, colour in sides
    ]
    plot = chart(Axis(title="round", from_zero=False), Axis(title="answers a second"), lines=lines)
    return f'<div class="pane">{plot}</div>'


def _table(runs: Sequence[Measured], knee: int | None) -> str:
    is_stream = any(run.figures.ttft for run in runs)
    has_goodput = any(run.figures.goodput for run in runs)
    head = [
        "load",
        "requests",
        "errors",
        "req/s",
        *(["good/s"] if has_goodput else []),
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
    ]
    head += ["tokens/s", "TTFT p95 ms", "TPOT p95 ms", "ITL p99 ms", "tok/s a user"] if is_stream else []
    head += ["CPU us/req", "server MB", "generator"]
    rows = []
    for index, run in enumerate(runs):
        found = run.figures
        cells = [
            escape(run.label),
            f"{found.requests:,}",
            f"{sum(found.errors.values()):,}",
            _estimate(found, "rate"),
            *([_estimate(found, "goodput")] if has_goodput else []),
            *(_ms(found.latency, percent) for percent in (50.0, 90.0, 99.0, 99.9)),
        ]
        if is_stream:
            cells += [_estimate(found, "tokens_s"), _ms(found.ttft, 95.0), _ms(found.tpot, 95.0), _ms(found.itl, 99.0)]
            cells.append(f"{found.user_tokens_s.mean:,.1f}" if found.user_tokens_s else "-")
        cells.append(f"{run.server.cpu_us_per_request:,.1f}" if run.server else "-")
        cells.append(f"{run.server.memory_bytes / 1e6:,.0f}" if run.server else "-")
        cells.append(f"{found.generator.cpu_share:.0%} busy{'' if found.is_valid else '<small>INVALID</small>'}")
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr class="{"knee" if index == knee else ""}">{row}</tr>')
    header = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _estimate(found: Figures, name: str) -> str:
    one = getattr(found, name)
    if one is None:
        return "-"
    interval = "" if one.low is None else f"<small>{one.low:,.1f} to {one.high:,.1f}</small>"
    return f"{one.value:,.1f}{interval}"


def _ms(spread: Spread | None, percent: float) -> str:
    if spread is None:
        return "-"
    found = spread.at(percent)
    if found.value is None or found.low is None:
        return f"<small>needs {found.needed:,}</small>"
    high = "?" if found.high is None else f"{found.high * 1e3:.4g}"
    return f"{found.value * 1e3:.4g}<small>{found.low * 1e3:.4g} to {high}</small>"


def _details(run: Measured) -> str:
    found = run.figures
    at = [part.at_s for part in found.timeline]

    def line(name: str, colour: int, values: Sequence[float | None]) -> Line:
        return Line(name=name, x=at, y=values, colour=colour, has_dots=False)

    p50 = line("p50", 1, [None if part.p50_s is None else part.p50_s * 1e3 for part in found.timeline])
    p99 = line("p99", 3, [None if part.p99_s is None else part.p99_s * 1e3 for part in found.timeline])
    rate = line("answers a second", 4, [part.rate for part in found.timeline])
    seconds, warm = Axis(title="seconds"), (0.0, found.warm_up_s)
    plots = [
        chart(seconds, Axis(title="latency, ms", is_log=True), lines=[p50, p99], shaded=warm, width=400, height=230),
        chart(seconds, Axis(title="answers/s"), lines=[rate], shaded=warm, width=400, height=230),
    ]
    if found.histogram and found.latency:
        bars = [Bar(left=low * 1e3, right=high * 1e3, height=count) for low, high, count in found.histogram]
        shown = [found.latency.at(percent) for percent in (50.0, 99.0)]
        marks = [Mark(x=one.value * 1e3, name=f"p{one.percent:g}") for one in shown if one.value is not None]
        plots.append(
            chart(
                Axis(title="latency, ms", is_log=True),
                Axis(title="requests"),
                bars=bars,
                marks=marks,
                width=400,
                height=230,
            )
        )
    panes = "".join(f'<div class="pane">{plot}</div>' for plot in plots)
    remarks = [f"{kind}: {count:,}" for kind, count in found.errors.items()]
    remarks += [found.rest_problem] if found.rest_problem else []
    remarks += [*run.notes, f"warm-up left out: {found.warm_up_s:.2f} s"]
    listed = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f'<h3>{escape(run.label)}</h3><div class="three">{panes}</div><ul class="sub">{listed}</ul>'


def _settings(told: Report) -> str:
    shown = {
        **told.settings,
        **{f"machine {name}": value for name, value in told.machine.items()},
        "schema": told.schema,
    }
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in shown.items()
    )
    return (
        "<p>Latency counts from when a request was meant to be sent. Intervals are 95 %: of rates from 20 windows,"
        " of percentiles from order statistics, widened where neighbours resemble each other. One is refused where"
        " the sample cannot support it.</p>"
        f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'
    )
