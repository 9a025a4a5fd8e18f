"""A run as tables: medians over rounds, shares of the machine's limits, ratios to the best peer, targets met or missed.

python benchmarks/llm_cpu/table.py benchmarks/results/llm-cpu-DATE.json ...          prints earlier runs
python benchmarks/llm_cpu/table.py --join ALL.json ONE.json TWO.json ...             puts runs of one commit together
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from figures import Run, Turn

STRANGERS_CORES: Final = 0.05
"""CPU, in cores, that may go to others before a turn is marked with `~`: not to be published."""

Figure = Callable[[Turn], float]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure, how it is written, whether less is better, and its share of a limit where there is one."""

    title: str
    of: Figure
    digits: int = 0
    is_less_better: bool = False
    share: Figure | None = None


COLUMNS: Final = (
    Column("decode tok/s", lambda t: t.decode, 1, share=lambda t: t.decode_share),
    Column("prefill tok/s", lambda t: t.prefill, share=lambda t: t.prefill_share),
    Column("c8 gen tok/s", lambda t: t.c8, share=lambda t: t.aggregate_share(t.c8)),
    Column("c32 gen tok/s", lambda t: t.c32, share=lambda t: t.aggregate_share(t.c32)),
    Column("TTFT c1 ms", lambda t: t.ttft_c1_ms, is_less_better=True),
    Column("TTFT p95 c8 ms", lambda t: t.ttft_c8_p95_ms, is_less_better=True),
    Column("PSS MB", lambda t: t.memory_mb, is_less_better=True),
    Column("start s", lambda t: t.start_s, 2, is_less_better=True),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What issue 3 asks of one column of one model."""

    model: str
    column: str
    ratio: float = 0
    """To the best peer of the column; for times, at most."""
    share: float = 0
    """Of the limit, at least, by the engine of this precision."""
    precision: str = ""


TARGETS: Final = (
    Target("smollm2-135m", "decode tok/s", ratio=1.5),
    Target("smollm2-135m", "decode tok/s", share=0.8),
    Target("smollm2-135m", "c8 gen tok/s", ratio=2),
    Target("smollm2-135m", "c32 gen tok/s", ratio=2.5),
    Target("smollm2-135m", "prefill tok/s", ratio=1.75),
    Target("smollm2-135m", "TTFT c1 ms", ratio=0.55),
    Target("smollm2-135m", "TTFT p95 c8 ms", ratio=0.55),
    Target("llama-1b-shape", "decode tok/s", share=0.9, precision="q4"),
    Target("llama-1b-shape", "c8 gen tok/s", ratio=1.7),
    Target("llama-1b-shape", "c32 gen tok/s", ratio=1.7),
    Target("llama-1b-shape", "prefill tok/s", ratio=1.2),
    Target("smollm2-135m", "start s", ratio=1),
    Target("llama-1b-shape", "start s", ratio=1),
)


def one_line(turn: Turn) -> str:
    """A turn for someone who watches."""
    parts = []
    for column in COLUMNS:
        share = f" ({column.share(turn):.0%})" if column.share else ""
        parts.append(f"{column.title} {column.of(turn):,.{column.digits}f}{share}")
    probes = f"read {turn.read_limit / 1e9:.1f} GB/s, int8 {turn.operations_limit / 1e12:.2f} TOP/s"
    return (
        f"{', '.join(parts)} ({probes}, generator {turn.generator_cores:.2f}, others {turn.strangers_cores:.2f} cores)"
    )


def median(turns: Sequence[Turn], of: Figure) -> float:
    return statistics.median(map(of, turns))


def _cell(turns: Sequence[Turn], column: Column) -> str:
    values = [column.of(turn) for turn in turns]
    text = f"{statistics.median(values):,.{column.digits}f}"
    if len(values) > 1:
        text += f" [{min(values):,.{column.digits}f}-{max(values):,.{column.digits}f}]"
    return text + (f" ({median(turns, column.share):.0%})" if column.share else "")


def by_engine(turns: Sequence[Turn]) -> dict[str, list[Turn]]:
    """In the order in which they were run."""
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        groups.setdefault(turn.engine, []).append(turn)
    return groups


def best(groups: dict[str, list[Turn]], column: Column) -> tuple[str, float]:
    """The engine whose median is best, and that median."""
    pick = min if column.is_less_better else max
    return pick(((name, median(turns, column.of)) for name, turns in groups.items()), key=lambda pair: pair[1])


def _split(turns: Sequence[Turn]) -> tuple[dict[str, list[Turn]], dict[str, list[Turn]]]:
    """Farthing's turns without guessing ahead, and the peers'."""
    ours = [turn for turn in turns if turn.is_ours and not turn.engine.endswith("-lookup")]
    return by_engine(ours), by_engine([turn for turn in turns if not turn.is_ours])


def _model_table(turns: Sequence[Turn]) -> Iterator[str]:
    yield f"| engine | MB a token | {' | '.join(column.title for column in COLUMNS)} |"
    yield "|---|--:" + "|--:" * len(COLUMNS) + "|"
    for name, group in by_engine(turns).items():
        mark = "~" if max(turn.strangers_cores for turn in group) > STRANGERS_CORES else ""
        cells = " | ".join(_cell(group, column) for column in COLUMNS)
        yield f"| {mark}{name} | {group[0].streamed_bytes / 1e6:,.0f} | {cells} |"
    ours, peers = _split(turns)
    if ours and peers:
        ratios = " | ".join(f"{best(ours, c)[1] / best(peers, c)[1]:.2f}" for c in COLUMNS)
        yield f"| **best Farthing / best peer** | | {ratios} |"
        for name, group in ours.items():
            ratios = " | ".join(f"{median(group, c.of) / best(peers, c)[1]:.2f}" for c in COLUMNS)
            yield f"| {name} / best peer | | {ratios} |"


def target_lines(turns: Sequence[Turn]) -> Iterator[str]:
    """One line for each target that this run can judge."""
    columns = {column.title: column for column in COLUMNS}
    for target in TARGETS:
        ours, peers = _split([turn for turn in turns if turn.model == target.model])
        column = columns[target.column]
        ours = {name: group for name, group in ours.items() if name.endswith(target.precision)}
        if not ours or (target.ratio and not peers):
            continue
        where = f"{target.model}, {target.column}"
        if target.ratio:
            (name, value), (peer, theirs) = best(ours, column), best(peers, column)
            ratio = value / theirs
            is_met = ratio <= target.ratio if column.is_less_better else ratio >= target.ratio
            word = "at most" if column.is_less_better else "at least"
            text = f"{name} {value:,.{column.digits}f}, {ratio:.2f} times {peer}'s {theirs:,.{column.digits}f}"
            text += f"; target {word} {target.ratio:g}"
        else:
            assert column.share is not None
            shares = {name: median(group, column.share) for name, group in ours.items()}
            name = max(shares, key=lambda n: shares[n])
            is_met = shares[name] >= target.share
            text = f"{name} {shares[name]:.0%} of the limit; target at least {target.share:.0%}"
        yield f"- {'met' if is_met else '**missed**'}: {where}: {text}"


def markdown(run: Run) -> str:
    """All tables of a run."""
    lines = []
    about = run.machine
    lines.append(f"{about['date']}, {about['cores']} cores of {about['cpu']}, commit {about['commit']}")
    reads = [turn.read_limit / 1e9 for turn in run.turns]
    operations = [turn.operations_limit / 1e12 for turn in run.turns]
    if run.turns:
        lines.append(
            f"Read limit {statistics.median(reads):.1f} GB/s [{min(reads):.1f}-{max(reads):.1f}], int8 limit "
            f"{statistics.median(operations):.2f} TOP/s [{min(operations):.2f}-{max(operations):.2f}], two threads, "
            "probed beside each turn; generator at most "
            f"{max(turn.generator_cores for turn in run.turns):.2f} cores"
        )
    for model in dict.fromkeys(turn.model for turn in run.turns):
        lines += ["", f"#### {model}", "", *_model_table([turn for turn in run.turns if turn.model == model])]
    lines += ["", "#### targets", "", *target_lines(run.turns)]
    lines += [f"- failed: {failure}" for failure in run.failures]
    return "\n".join(lines)


def for_readme(run: Run, file: str) -> str:
    """Medians alone, a table a model, with what a reader must know: when, where, which code, how often."""
    about = run.machine
    changes = " plus changes" if about["uncommitted_changes"] else ""
    rounds = f"{run.settings['rounds']} rounds" if run.settings["rounds"] > 1 else "one round"
    lines = [
        f"{str(about['date'])[:10]}, {about['cpu']}, {about['cores']} cores for each engine, commit {about['commit']}"
        f"{changes}: {rounds} in turn, medians; through its HTTP API where an engine has one; in brackets the share of "
        "what memory or 8-bit arithmetic allowed beside that turn. Spread: "
        f"`python benchmarks/llm_cpu/table.py benchmarks/results/{file}`.",
    ]
    if run.settings["is_quick"]:
        lines.append("A quick run: it shows that everything works; its figures mean nothing.")
    for model in dict.fromkeys(turn.model for turn in run.turns):
        turns = [turn for turn in run.turns if turn.model == model]
        lines += [
            "",
            f"| {model} | {' | '.join(column.title for column in COLUMNS)} |",
            "|---" + "|--:" * len(COLUMNS) + "|",
        ]
        for name, group in by_engine(turns).items():
            cells = []
            for column in COLUMNS:
                share = f" ({median(group, column.share):.0%})" if column.share else ""
                cells.append(f"{median(group, column.of):,.{column.digits}f}{share}")
            mark = "~" if max(turn.strangers_cores for turn in group) > STRANGERS_CORES else ""
            shown = f"**{name}**" if group[0].is_ours else name
            lines.append(f"| {mark}{shown} | {' | '.join(cells)} |")
    if any(turn.strangers_cores > STRANGERS_CORES for turn in run.turns):
        lines += ["", "`~`: other programs took more than a twentieth of a core meanwhile."]
    lines += ["", *target_lines(run.turns), *(f"- failed: {failure}" for failure in run.failures)]
    return "\n".join(lines)


def load(file: Path) -> Run:
    """A run from its JSON."""
    raw: dict[str, Any] = json.loads(file.read_text())
    return Run(**{**raw, "turns": [Turn(**turn) for turn in raw["turns"]]})


def joined(runs: Sequence[Run]) -> Run:
    """The turns of several runs in one, for machines that are free only for a turn at a time.

    Raises if machine, code or amounts were not the same: such turns say nothing of each other.
    """
    first = runs[0]
    for run in runs[1:]:
        for what in ("cpu", "cores", "commit"):
            if run.machine[what] != first.machine[what]:
                raise ValueError(f"{what}: {run.machine[what]} is not {first.machine[what]}")
        if run.settings["is_quick"] != first.settings["is_quick"]:
            raise ValueError("a quick run is not like another")
    turns = [turn for run in runs for turn in run.turns]
    counts: dict[tuple[str, str], int] = {}
    for turn in turns:
        counts[turn.model, turn.engine] = turn.round = counts.get((turn.model, turn.engine), 0) + 1
    settings = {**first.settings, "rounds": max(counts.values()), "requests": {}}
    for run in runs:
        settings["requests"] |= run.settings["requests"]
    return Run(
        machine=first.machine,
        engines={name: about for run in runs for name, about in run.engines.items()},
        settings=settings,
        turns=turns,
        failures=[failure for run in runs for failure in run.failures],
    )


def main(argv: Sequence[str]) -> None:
    """Prints, or joins and prints."""
    if argv[:1] == ["--join"]:
        run = joined([load(Path(name)) for name in argv[2:]])
        Path(argv[1]).write_text(json.dumps(asdict(run), indent=1) + "\n")
        print(markdown(run))
        return
    for name in argv:
        print(markdown(load(Path(name))))


if __name__ == "__main__":
    main(sys.argv[1:])
