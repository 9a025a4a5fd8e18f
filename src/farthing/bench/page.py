"""A report as one HTML page that needs nothing else: what was found, plots, every figure, how it was made."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Final

from farthing.bench.figures import Figures, Spread
from farthing.bench.frames import FrameFigures
from farthing.bench.means import Estimate
from farthing.bench.measure import Measured
from farthing.bench.mlperf import Judged
from farthing.bench.page_plots import curves, details_plots, distributions, ratio_plots
from farthing.bench.report import Report

DETAILS_MAX: Final = 12
"""Loads shown with a timeline and a histogram; a search makes more than anyone reads."""


def to_html(told: Report) -> str:
    """The page."""
    when = f"{told.made_at.replace('T', ' ').replace('Z', ' UTC')}"
    where = f"{told.machine.get('cpu', '')}, cores: {told.machine.get('cores', '?')}"
    models = ", ".join(told.settings.get("models", ()))
    body = [
        f"<h1>{escape(models or told.target)}</h1>",
        f'<p class="sub">{escape(f"{told.target}, {when}, {where}, farthing {told.farthing}")}</p>',
        _tiles(told),
        *_conclusions(told),
    ]
    if told.compared:
        body += ["<h2>A against B</h2>", ratio_plots(told)]
    elif len(told.runs) > 1 and not any(run.figures.frames for run in told.runs):
        body += ["<h2>Latency against load</h2>", curves(told), _LEGEND]
    if any(run.figures.frames for run in told.runs):
        body += ["<h2>What became of the frames</h2>", _frames(told.runs)]
    if any(run.figures.histogram for run in told.runs):
        body += ["<h2>Latency by percentile</h2>", distributions(told)]
    if told.mlperf and told.mlperf.pairs:
        body += ["<h2>By two clocks</h2>", _two_clocks(told.mlperf)]
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


PROBLEMS_MAX: Final = 3
"""Said one by one; more are folded into a list."""
_LEGEND: Final = '<p class="sub">Bars around points are 95 % intervals; numbers at points are loads.</p>'


def _tiles(told: Report) -> str:
    """The load that the eye should find first: the knee, the highest that met the target, else the last one."""
    runs = [run for run in told.runs if run.figures.answered]
    if not runs or told.compared:
        return ""
    best = [run for run in runs if told.found and run.load == told.found.load]
    run = told.runs[told.knee] if told.knee is not None else (best or runs)[-1]
    found = run.figures
    tiles = [("load", f"<em>{escape(run.label)}</em>", ""), ("answers a second", *_big(found.rate))]
    if found.goodput:
        tiles.append(("of these good", *_big(found.goodput)))
    if found.frames:
        tiles.append(("frames on time", f"{found.frames.on_time_share:.1%}", f"of {found.frames.sent:,}"))
    if found.tokens_s:
        tiles.append(("tokens a second", *_big(found.tokens_s)))
    spreads = [("p50", found.latency, 50.0), ("p99", found.latency, 99.0)]
    if found.ttft:
        spreads = [("TTFT p95", found.ttft, 95.0), ("TPOT p95", found.tpot, 95.0), ("ITL p99", found.itl, 99.0)]
    tiles += [(f"{name}, ms", *_big_ms(spread, percent)) for name, spread, percent in spreads]
    if run.server:
        said = f"{run.server.cores:.2f} cores, {run.server.memory_bytes / 1e6:,.0f} MB"
        tiles.append(("CPU a request, us", f"{run.server.cpu_us_per_request:,.4g}", said))
    errors = sum(sum(one.figures.errors.values()) for one in told.runs)
    tiles.append(("errors, all loads", f"{errors:,}", ""))
    shown = "".join(
        f'<div class="tile{" wrong" if name.startswith("errors") and value != "0" else ""}"><span>{name}</span>'
        f"<b>{value}</b><small>{small}</small></div>"
        for name, value, small in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _big(found: Estimate) -> tuple[str, str]:
    return _short(found.value), _interval(found)


def _big_ms(spread: Spread | None, percent: float) -> tuple[str, str]:
    found = spread.at(percent) if spread else None
    if found is None or found.value is None or found.low is None:
        return "?", f"needs {found.needed:,} requests" if found else ""
    high = "?" if found.high is None else f"{found.high * 1e3:.3g}"
    return f"{found.value * 1e3:.3g}", f"{found.low * 1e3:.3g} to {high}"


def _unmet(judged: Judged) -> list[str]:
    """LoadGen's conditions that were not met, in its words."""
    return [f"not met: {name.removesuffix(' satisfied')}" for name in judged.unmet]


def _two_clocks(judged: Judged) -> str:
    """The same requests by LoadGen's clock and by ours."""
    rows = []
    for name, pair in judged.pairs.items():
        unit = 1e3 if name.startswith("p") else 1.0
        values = ["-" if one is None else _short(one * unit) for one in (pair.loadgen, pair.farthing)]
        ratio = f"{pair.farthing / pair.loadgen:.3f}" if pair.loadgen and pair.farthing else "-"
        rows.append(([f"{name}{', ms' if unit > 1 else ''}", *values, ratio], False))
    return _rows(["the same requests", judged.by, "farthing", "ratio"], rows)


def _problems(run: Measured) -> list[str]:
    """Why a load is invalid."""
    unanswered = [] if run.figures.answered else ["no request was answered"]
    return [*run.figures.generator.problems, *unanswered]


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
        said.append(
            f'<p class="big{bad}">{escape("; ".join([judged, *_unmet(told.mlperf), *told.mlperf.problems]))}</p>'
        )
    wrong = [(run.label, problem) for run in told.runs for problem in _problems(run)]
    lines = [escape(f"{label} is invalid: {problem}") for label, problem in wrong]
    if len(lines) > PROBLEMS_MAX:
        listed = "".join(f"<li>{line}</li>" for line in lines)
        said.append(
            f'<details class="big bad"><summary>{len(lines)} loads are invalid</summary><ul>{listed}</ul></details>'
        )
    else:
        said += [f'<p class="big bad">{line}</p>' for line in lines]
    return said


def _table(runs: Sequence[Measured], knee: int | None) -> str:
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
        cells.append(f"{run.server.cpu_us_per_request:,.1f}" if run.server else "-")
        cells.append(f"{run.server.memory_bytes / 1e6:,.0f}" if run.server else "-")
        cells.append(f"{found.generator.cpu_share:.0%} busy{'' if found.is_valid else '<small>INVALID</small>'}")
        rows.append((cells, index == knee))
    return _rows(head, rows) + (_tokens(runs, knee) if any(run.figures.ttft for run in runs) else "")


def _tokens(runs: Sequence[Measured], knee: int | None) -> str:
    head = ["tokens", "tokens/s", "tokens/s a user", "prompt tokens/s", "TTFT p50 ms", "TTFT p95 ms", "TPOT p50 ms"]
    head += ["TPOT p95 ms", "ITL p50 ms", "ITL p99 ms"]
    rows = []
    for index, run in enumerate(runs):
        found = run.figures
        cells = [escape(run.label), _estimate(found, "tokens_s")]
        cells.append(_short(found.user_tokens_s.mean) if found.user_tokens_s else "-")
        cells += [_estimate(found, "prompt_tokens_s"), *(_ms(found.ttft, percent) for percent in (50.0, 95.0))]
        cells += [*(_ms(found.tpot, percent) for percent in (50.0, 95.0)), _ms(found.itl, 50.0), _ms(found.itl, 99.0)]
        rows.append((cells, index == knee))
    return _rows(head, rows)


def _rows(head: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table; a row that is marked stands out."""
    header = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        f'<tr class="{"knee" if is_marked else ""}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for cells, is_marked in rows
    )
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


_FATES: Final = (
    ("on time", "c4"), ("late", "c2"), ("superseded", "c1"), ("too late to run", "c5"), ("overload", "c3"),
    ("failed", "c6"),
)  # fmt: skip


def _frames(runs: Sequence[Measured]) -> str:
    """A bar a load, cut where the fates of its frames part."""
    rows = []
    for run in runs:
        found = run.figures.frames
        if found is None:
            continue
        parts = "".join(
            f'<i class="{colour}" style="flex:{count}" title="{name}: {count:,}"></i>'
            for (name, colour), count in zip(_FATES, _fates(found), strict=True)
            if count
        )
        rows.append(
            f'<div class="fate"><span>{escape(run.label)}</span><div>{parts}</div>'
            f"<b>{found.on_time_share:.1%}</b><small>told by {found.by}</small></div>"
        )
    legend = "".join(f'<span class="{colour}"><i></i>{name}</span>' for name, colour in _FATES)
    return f'<div class="pane">{"".join(rows)}<p class="legend">{legend}</p></div>'


def _fates(found: FrameFigures) -> list[int]:
    dropped = found.dropped
    return [found.on_time, found.late, dropped["superseded"], dropped["late"], dropped["overload"], found.failed]


def _estimate(found: Figures, name: str) -> str:
    one = getattr(found, name)
    if one is None:
        return "-"
    return f"{_short(one.value)}<small>{_interval(one)}</small>"


def _interval(found: Estimate) -> str:
    return "" if found.low is None or found.high is None else f"{_short(found.low)} to {_short(found.high)}"


def _short(value: float) -> str:
    """Four digits that matter, and never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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
    panes = "".join(f'<div class="pane">{plot}</div>' for plot in details_plots(run))
    remarks = [f"{kind}: {count:,}" for kind, count in found.errors.items()]
    remarks += [found.rest_problem] if found.rest_problem else []
    remarks += [*run.notes, f"warm-up left out: {found.warm_up_s:.2f} s"]
    listed = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    is_open = " open" if found.is_valid else ""
    return (
        f"<details{is_open}><summary>{escape(run.label)}</summary>"
        f'<div class="three">{panes}</div><ul class="sub">{listed}</ul></details>'
    )


def _settings(told: Report) -> str:
    shown = {
        **told.settings,
        **{f"machine {name}": value for name, value in told.machine.items()},
        "schema": told.schema,
    }
    said = {name: ", ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in shown.items()}
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in said.items()
        if value is not False and value not in ("", None, {})
    )
    return (
        "<p>Latency counts from when a request was meant to be sent. Intervals are 95 %: of rates from 20 windows,"
        " of percentiles from order statistics, widened where neighbours resemble each other. One is refused where"
        " the sample cannot support it.</p>"
        f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'
    )
