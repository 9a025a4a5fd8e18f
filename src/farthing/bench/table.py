"""A report for the terminal: one row a load, what was found, and what should not be believed."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from farthing.bench.comparison import Verdict
from farthing.bench.figures import Figures, Spread
from farthing.bench.frames import FrameFigures
from farthing.bench.means import Estimate
from farthing.bench.measure import Measured
from farthing.bench.mlperf import Judged
from farthing.bench.percentiles import Percentile
from farthing.bench.report import Report

NOTES_MAX = 8


def show(told: Report, console: Console) -> None:
    """Writes it all; colours and widths are the console's business."""
    console.print(*_tables(told.runs, told.target, told.knee), sep="\n")
    if told.compared:
        console.print(*_tables(told.compared.b_runs, told.compared.b, None), sep="\n")
        _show_ratios(told, console)
    if told.mlperf:
        _show_mlperf(told.mlperf, console)
    if told.found:
        best = "none" if told.found.load is None else f"{told.found.load:g}"
        console.print(
            f"[bold]highest load that meets {told.settings.get('find', 'the target')}: {best}[/]  ({told.found.reason})"
        )
    if told.knee is not None:
        console.print(f"knee: {told.runs[told.knee].label} (most throughput for its latency)")
    runs = [*told.runs, *(told.compared.b_runs if told.compared else ())]
    said: dict[str, None] = {}
    for run in runs:
        said.update(dict.fromkeys(_remarks(run)))
    for remark in list(said)[:NOTES_MAX]:
        console.print(remark)
    if len(said) > NOTES_MAX:
        console.print(f"... and {len(said) - NOTES_MAX} remarks more, in the JSON report")


def _tables(runs: Sequence[Measured], title: str, knee: int | None) -> list[Table]:
    """One about requests and, of streams, one about their tokens."""
    columns = ["load", "req/s"]
    if any(run.figures.goodput for run in runs):
        columns.append("good/s")
    columns += ["p50 ms", "p90 ms", "p99 ms", "errors"]
    if any(run.server for run in runs):
        columns += ["CPU us/req", "MB"]
    found = [_table(runs, title, knee, [*columns, "load gen."])]
    if any(run.figures.ttft for run in runs):
        tokens = ["load", "tok/s", "tok/s a user", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "ITL p50", "ITL p99"]
        found.append(_table(runs, "tokens (ms)", knee, tokens))
    if any(run.figures.frames for run in runs):
        frames = ["load", "frames", "on time", "late", "superseded", "too late", "overload", "failed", "in time here"]
        found.append(_table(runs, "frames", knee, frames))
    found[-1].caption = "± is half of a 95 % interval; n<N: too few requests to say"
    return found


def _table(runs: Sequence[Measured], title: str, knee: int | None, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "load" else "right", no_wrap=name == "load")
    for index, run in enumerate(runs):
        table.add_row(*[_cell(name, run, is_knee=index == knee) for name in columns])
    return table


def _cell(column: str, run: Measured, *, is_knee: bool) -> str:
    figures = run.figures
    match column.split():
        case ["load"]:
            return f"{run.label}{' (knee)' if is_knee else ''}{'' if figures.is_valid else ' [red]INVALID[/]'}"
        case ["req/s"]:
            return _rate(figures.rate)
        case ["good/s"]:
            return _rate(figures.goodput)
        case [percent, "ms"]:
            return _ms(figures.latency, float(percent[1:]))
        case ["tok/s"]:
            return _rate(figures.tokens_s)
        case ["tok/s", "a", "user"]:
            return f"{figures.user_tokens_s.mean:,.1f}" if figures.user_tokens_s else "-"
        case ["TTFT" | "TPOT" | "ITL" as name, percent]:
            spreads = {"TTFT": figures.ttft, "TPOT": figures.tpot, "ITL": figures.itl}
            return _ms(spreads[name], float(percent[1:]))
        case ["frames" | "on" | "late" | "superseded" | "too" | "overload" | "failed" | "in", *_]:
            return _frames(column, figures.frames) if figures.frames else "-"
        case ["errors"]:
            errors = sum(figures.errors.values())
            return f"[red]{errors:,}[/]" if errors else "0"
        case ["CPU", _]:
            return _short(run.server.cpu_us_per_request) if run.server else "-"
        case ["MB"]:
            return f"{run.server.memory_bytes / 1e6:,.0f}" if run.server else "-"
        case _:
            return f"{figures.generator.cpu_share:.0%}"


def _frames(column: str, found: FrameFigures) -> str:
    """What became of frames; shares of all of them where that reads better."""
    share = {"on time": found.on_time, "in time here": found.seen_in_time}
    if column in share:
        return f"{share[column]:,} ({share[column] / max(found.sent, 1):.1%})"
    counts = {"frames": found.sent, "late": found.late, "failed": found.failed}
    return f"{counts.get(column, found.dropped.get(column.removeprefix('too '), 0)):,}"


def _rate(found: Estimate | None) -> str:
    if found is None:
        return "-"
    half = "" if found.high is None else f" ±{_short(found.high - found.value)}"
    return f"{_short(found.value)}{half}"


def _ms(spread: Spread | None, percent: float) -> str:
    if spread is None:
        return "-"
    found = spread.at(percent)
    return _percentile(found)


def _percentile(found: Percentile) -> str:
    if found.value is None:
        return f"n<{found.needed}"
    sides = [abs(end - found.value) for end in (found.low, found.high) if end is not None]
    half = f" ±{_short(max(sides) * 1e3)}" if len(sides) == 2 else " ±?"
    return f"{_short(found.value * 1e3)}{half}"


def _short(number: float) -> str:
    """Three or four digits that matter."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.1f}" if abs(number) >= 100 else f"{number:.3g}"


def _show_ratios(told: Report, console: Console) -> None:
    assert told.compared is not None
    for name, ratio in told.compared.ratios.items():
        interval = "" if ratio.low is None else f"  [{ratio.low:.3f}, {ratio.high:.3f}]"
        colour = "bold" if ratio.verdict in {Verdict.HIGHER, Verdict.LOWER} else "dim"
        console.print(
            f"{name}, A / B: {ratio.value:.3f}{interval}  [{colour}]{ratio.verdict.value}[/]", highlight=False
        )


def _show_mlperf(judged: Judged, console: Console) -> None:
    """The same run by two clocks, then the judgement."""
    if judged.pairs:
        table = Table(title=f"by {judged.by}, and by us", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("", "LoadGen", "farthing", "ratio"):
            table.add_column(name, justify="right" if name else "left")
        for name, pair in judged.pairs.items():
            unit = 1e3 if name.startswith("p") else 1.0
            cells = ["-" if one is None else _short(one * unit) for one in (pair.loadgen, pair.farthing)]
            ratio = f"{pair.farthing / pair.loadgen:.3f}" if pair.loadgen and pair.farthing else "-"
            table.add_row(f"{name}{', ms' if unit != 1 else ''}", *cells, ratio)
        console.print(table)
    if judged.result:
        colour = "green" if judged.is_valid else "red"
        unmet = f" (not met: {', '.join(name.removesuffix(' satisfied') for name in judged.unmet)})" * bool(
            judged.unmet
        )
        console.print(f"MLPerf {judged.scenario}: [{colour}]{judged.result}[/] by {judged.by}{unmet}")
    for problem in judged.problems:
        console.print(f"[red]not to be believed[/]: {escape(problem)}")
    if judged.logs:
        console.print(f"logs: {escape(judged.logs)}/{{{escape(', '.join(judged.files))}}}")


def _remarks(run: Measured) -> list[str]:
    found = run.figures
    remarks = [f"[red]INVALID[/] {run.label}: {problem}" for problem in found.generator.problems]
    if not found.answered:
        remarks.append(f"[red]INVALID[/] {run.label}: no request was answered in the measured window")
    if found.rest_problem:
        remarks.append(f"[yellow]not at rest[/] {run.label}: {found.rest_problem}")
    for kind, count in found.errors.items():
        said = found.samples.get(kind, "")
        remarks.append(f"[red]errors[/] {run.label}: {count:,} x {kind}{': ' if said else ''}{escape(said[:200])}")
    if found.frames and found.frames.problem:
        remarks.append(f"[red]not to be believed[/] {run.label}: {escape(found.frames.problem)}")
    remarks += [f"note {run.label}: {note}" for note in run.notes]
    if run.is_interrupted:
        remarks.append(f"note {run.label}: interrupted; this is what was measured until then")
    return remarks + _omission(found, run.label)


def _omission(found: Figures, label: str) -> list[str]:
    """Where the two clocks disagree, the server stalled its clients: say what other tools would not have seen."""
    if not (found.latency and found.service and found.generator.waited_for_connection):
        return []
    seen, hidden = found.latency.at(99), found.service.at(99)
    if seen.value is None or hidden.value is None or seen.value < 1.5 * hidden.value:
        return []
    return [
        f"note {label}: p99 is {seen.value * 1e3:.3g} ms from when requests were meant to leave; from when they"
        f" could leave it would seem to be {hidden.value * 1e3:.3g} ms"
    ]
