"""A run's figures, and how they become one table: medians over rounds with the lowest and the highest.

python benchmarks/report.py benchmarks/results/serve-DATE.json     prints the tables of an earlier run
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

GENERATOR_BUSY: Final = 0.9
"""Above this share of its core the load generator may be what was measured; such rates are marked `>=`."""
STRANGERS_CORES: Final = 0.05
"""CPU, in cores, that may go to others before a cell is marked with `~`: not to be published."""


@dataclass(slots=True, kw_only=True)
class Cell:
    """One measurement."""

    server: str
    model: str
    wire: str
    connections: int
    round: int
    rate: float
    p50_ms: float | None
    p99_ms: float | None
    """None where there were too few requests to say."""
    cpu_us: float
    """CPU microseconds of the server's whole process tree for each request; also CPU seconds per million."""
    memory_mb: float
    """Proportional set size of the tree right after the load."""
    start_s: float
    """From the start of the process to its first right answer."""
    errors: int
    generator_share: float
    strangers_cores: float
    calibration_ms: float
    engine_rate: float = 0.0
    """Rows per second of the engine alone at its best batch, around this measurement; 0 where it was not taken."""
    engine_cpu_us: float = 0.0
    """CPU microseconds the engine alone spends on a row then; unlike the rate it hardly feels strangers."""
    served_engine_rate: float = 0.0
    """Rows per second of the engine alone under the conditions of a server (`yardstick`): the rest is serving."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything that one call of `serve` found out."""

    machine: dict[str, Any]
    peers: dict[str, dict[str, str]]
    settings: dict[str, Any]
    engine: dict[str, list[dict[int, dict[str, float]]]]
    """Model -> for each round, batch size -> what the engine alone does (`yardstick.Alone`)."""
    cells: list[Cell]
    failures: list[str]


def one_line(cell: Cell) -> str:
    """A cell for someone who watches."""
    share = f", {cell.rate / cell.engine_rate:.0%} of the engine" if cell.engine_rate else ""
    return (
        f"{cell.wire} c={cell.connections}: {cell.rate:,.0f}/s, p50 {_ms(cell.p50_ms)} p99 {_ms(cell.p99_ms)} ms, "
        f"{cell.cpu_us:,.1f} CPU-us, {cell.memory_mb:.0f} MB, start {cell.start_s:.2f} s, {cell.errors} errors"
        f"{share} (generator {cell.generator_share:.0%} of its core, others {cell.strangers_cores:.2f} cores, "
        f"calibration {cell.calibration_ms:.2f} ms)"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _spread(found: Sequence[float | None], show: Callable[[float], str] = _number) -> str:
    """Median, and the range where there is one; `?` where nothing can be said."""
    values = [value for value in found if value is not None]
    if not values:
        return "?"
    middle = show(statistics.median(values))
    if len(values) < 2:
        return middle
    return f"{middle} ({show(min(values))}-{show(max(values))})"


def _rate(cells: list[Cell]) -> str:
    marks = ">= " if max(c.generator_share for c in cells) > GENERATOR_BUSY else ""
    marks += "~" if max(c.strangers_cores for c in cells) > STRANGERS_CORES else ""
    errors = sum(c.errors for c in cells)
    return marks + _spread([c.rate for c in cells]) + (f" **{errors} errors**" if errors else "")


def _rows(cells: list[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Cells of one server and wire together, in the order in which they were run."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(f"{cell.server}:{cell.wire}", []).append(cell)
    yield from groups.items()


def _small_table(cells: list[Cell]) -> Iterator[str]:
    counts = sorted({c.connections for c in cells})
    heads = [f"c={n}: req/s, p50 / p99 ms" for n in counts]
    shown = "/".join(map(str, counts))
    yield f"| server | {' | '.join(heads)} | CPU-us per request (c={shown}) | memory MB | start s |"
    yield "|---" * (len(counts) + 4) + "|"
    for name, group in _rows(cells):
        by_count = {n: [c for c in group if c.connections == n] for n in counts}
        columns = [
            f"{_rate(some)}, {_spread([c.p50_ms for c in some])} / {_spread([c.p99_ms for c in some])}" if some else "-"
            for some in by_count.values()
        ]
        cpu = " / ".join(_spread([c.cpu_us for c in some]) if some else "-" for some in by_count.values())
        memory = max(c.memory_mb for c in group)
        start = _spread(list({c.round: c.start_s for c in group}.values()))
        yield f"| {name} | {' | '.join(columns)} | {cpu} | {memory:.0f} | {start} |"


def _heavy_table(cells: list[Cell]) -> Iterator[str]:
    heads = ["server", "connections", "req/s", "p50 / p99 ms", "CPU-ms per request (the engine alone)"]
    heads += ["share of the engine (of the same with rows that come singly, in huge pages)", "memory MB", "start s"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * 8 + "|"
    for name, group in _rows(cells):
        share = _spread([c.rate / c.engine_rate for c in group if c.engine_rate], lambda v: f"{v:.1%}")
        served = [c.rate / c.served_engine_rate for c in group if c.served_engine_rate]
        if served:
            share += f" ({_spread(served, lambda v: f'{v:.1%}')})"
        cpu = f"{_spread([c.cpu_us / 1e3 for c in group])} ({_spread([c.engine_cpu_us / 1e3 for c in group])})"
        yield (
            f"| {name} | {group[0].connections} | {_rate(group)} "
            f"| {_spread([c.p50_ms for c in group])} / {_spread([c.p99_ms for c in group])} "
            f"| {cpu} | {share} "
            f"| {max(c.memory_mb for c in group):.0f} | {_spread([c.start_s for c in group])} |"
        )


def summary(run: Run) -> str:
    """One row a server, medians only: the README's table."""

    def cell(server: str, model: str, wire: str, of: Callable[[Cell], float | None], *, connections: int = 64) -> str:
        wanted = (server, model, wire, connections)
        found = [of(c) for c in run.cells if (c.server, c.model, c.wire, c.connections) == wanted]
        values = [value for value in found if value is not None]
        return _number(statistics.median(values)) if values else "-"

    def both(server: str, model: str, of: Callable[[Cell], float | None], *, connections: int = 64) -> str:
        cells = [cell(server, model, wire, of, connections=connections) for wire in ("json", "binary")]
        return cells[0] if cells[1] == "-" else " / ".join(cells)

    def share(c: Cell) -> float | None:
        return c.rate / c.engine_rate * 100 if c.engine_rate else None

    heads = [
        "tiny MLP, 64 connections: CPU-us a request, JSON / binary",
        "req/s, JSON / binary",
        "p99 ms, JSON / binary",
    ]
    heads += ["memory MB", "start s", "EfficientNet, % of engine", "MiniLM, % of engine, JSON / binary"]
    lines = [f"| server | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for server in dict.fromkeys(c.server for c in run.cells):
        wire = next(c.wire for c in run.cells if c.server == server)
        columns = [
            both(server, "mlp", lambda c: c.cpu_us),
            both(server, "mlp", lambda c: c.rate),
            both(server, "mlp", lambda c: c.p99_ms),
            cell(server, "mlp", wire, lambda c: c.memory_mb),
            cell(server, "mlp", wire, lambda c: c.start_s),
            cell(server, "effnet", "binary", share, connections=16),
            both(server, "minilm", share, connections=16),
        ]
        name = f"{server} {run.peers[server]['version']}".strip()
        lines.append(f"| {f'**{name}**' if server == 'farthing' else name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _rounds(count: int) -> str:
    return f"{count} interleaved rounds" if count > 1 else "one round"


def for_readme(run: Run, file: str) -> str:
    """The summary with what a reader must know of it: when, where, which code, how long, and what went wrong."""
    about = run.machine
    changes = " plus changes" if about["uncommitted_changes"] else ""
    disturbed = sorted({c.server for c in run.cells if c.strangers_cores > STRANGERS_CORES})
    errors = sorted({c.server for c in run.cells if c.errors})
    lines = [
        f"{str(about['date'])[:10]}, {about['cpu']}, {about['cores']} cores, commit {about['commit']}{changes}: "
        f"{_rounds(run.settings['rounds'])} of {run.settings['seconds']:g} s, medians; the same ONNX files, "
        "server on one core, `farthing bench` on another. Whole tables with their spread: "
        f"`python benchmarks/report.py benchmarks/results/{file}`.",
        "",
        summary(run),
    ]
    said = (
        ["A quick run: it shows that everything works; its figures mean nothing."] if run.settings["is_quick"] else []
    )
    if disturbed:
        said.append(f"Other programs disturbed {', '.join(disturbed)}.")
    if errors:
        said.append(f"There were errors: {', '.join(errors)}.")
    said += [f"Failed: {failure}." for failure in run.failures]
    return "\n".join([*lines, "", " ".join(said)]).strip()


def _engine_line(name: str, rounds: list[dict[int, dict[str, float]]]) -> str:
    batches = ", ".join(f"{b}: {_spread([r[b]['rows_per_s'] for r in rounds])}" for b in rounds[0])
    return f"The engine alone ({name}, onnxruntime, 1 thread, in process), rows/s by batch size: {batches}."


def markdown(run: Run) -> str:
    """The whole run as a page."""
    about = run.machine
    changes = " plus changes" if about["uncommitted_changes"] else ""
    lines = [
        f"Measured {about['date']} at commit {about['commit']}{changes} "
        f"on {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}, "
        f"Python {about['python']}, onnxruntime {run.settings['onnxruntime']}: server on one core, `farthing bench` on "
        "another; "
        f"{run.settings['rounds']} rounds of {run.settings['seconds']} s each, interleaved; median (lowest-highest).",
    ]
    if run.settings["is_quick"]:
        lines.append("A quick run: it shows that everything works; its figures mean nothing.")
    for model in dict.fromkeys(c.model for c in run.cells):
        cells = [c for c in run.cells if c.model == model]
        calibrations = [c.calibration_ms for c in cells]
        lines += ["", f"#### {model}", ""]
        if run.engine.get(model):
            lines += [_engine_line(model, run.engine[model]), ""]
        lines += _heavy_table(cells) if run.engine.get(model) else _small_table(cells)
        lines += ["", f"Calibration loop: {_spread(calibrations)} ms."]
    lines += ["", "`~`: more than a twentieth of a core went to other programs meanwhile; not to be published. "]
    lines[-1] += "`>=`: the load generator was at its own limit. `?`: too few requests to say."
    lines += ["", *(f"- {name} {p['version']}: {p['about']}" for name, p in run.peers.items())]
    lines += [f"- FAILED: {failure}" for failure in run.failures]
    return "\n".join(lines)


def read(file: Path) -> Run:
    """A run from its JSON."""
    document = json.loads(file.read_text())
    document["cells"] = [Cell(**cell) for cell in document["cells"]]
    document["engine"] = {
        model: [{int(batch): alone for batch, alone in r.items()} for r in rounds]
        for model, rounds in document["engine"].items()
    }
    return Run(**document)


if __name__ == "__main__":
    words = sys.argv[1:]
    shown = summary if "--summary" in words else markdown
    print(shown(read(Path(next(word for word in words if not word.startswith("-"))))))
