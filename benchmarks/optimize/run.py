"""What `farthing optimize` finds for six sample models, on data they were not made from, and what it saves when served.

    python benchmarks/optimize/run.py                       all of them (some 25 minutes on two cores)
    python benchmarks/optimize/run.py minilm-l6 --time 60   one, in less time
    python benchmarks/optimize/run.py --table FILE...       the tables of earlier runs (`--out`)

Two tables. The first: the plan, its rate beside the best setting of each engine alone (right, and within the target)
and beside the model as it came, in process, with 95 % intervals; its share of the machine's peak; what is lost on
samples that took no part; how long the search was. The second: the model behind a server that takes one request at a
time, ONNX Runtime as it comes, beside `farthing serve` with the plan; requests a second with both and the load on the
same cores.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks' server, load and wire

import msgspec
import numpy as np
from numpy.typing import NDArray
from operations import PEAK_PER_CORE, operations
from served import Compared, Served, compare
from tasks import TASKS, Task

import machine
from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.registry import engine_for, engine_named
from farthing.optimizer import Plan, Target, optimize
from farthing.optimizer.plan import folder_of
from farthing.types.tensors import Tensor

PRICE_USD_PER_HOUR: Final = 0.085
"""Of two cores: a quarter of a c5.2xlarge (`optimizer/prices.toml`). Ratios do not depend on it."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one model."""

    task: str
    plan: Plan
    search_s: float
    operations: float
    """Of a row."""
    served: Compared | None = None


def measure(task: Task, seconds: float, *, is_served: bool) -> Result:
    """Searches for a plan of a copy of the sample, and serves it."""
    data = task.data()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{task.name}{task.file.suffix}"
        shutil.copyfile(task.file, model)
        started = time.monotonic()
        plan = optimize(
            model,
            Target(drop_max=task.drop_max, metric=task.metric, answer_ms_max=task.answer_ms_max),
            data,
            budget_s=seconds,
            price_usd_per_hour=PRICE_USD_PER_HOUR,
            is_fresh=True,
            on_event=lambda event: print(
                f"\r{task.name}: {event.spent_s:4.0f} s  {event.doing:70.70}", end="", file=sys.stderr
            ),
        )
        print(file=sys.stderr)
        took = time.monotonic() - started
        row = _request(model, data)
        compared = None
        if is_served:
            original, planned = _answer(model, row, None), _answer(model, row, plan)
            compared = compare(model, row, original, planned, connections=task.connections)
        return Result(task=task.name, plan=plan, search_s=took, operations=operations(model, row), served=compared)


def _request(model: Path, data: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The first sample, with a batch dimension where the model has one."""
    executable = engine_for(model).load(ModelSource(name="m", version=1, path=model, folder=model.parent))
    ranks = {spec.name: len(spec.shape) for spec in executable.inputs}
    executable.close()
    return {
        name: np.asarray(data[name][:1] if data[name].ndim == rank else data[name][0], order="C")
        for name, rank in ranks.items()
    }


def _answer(model: Path, row: dict[str, NDArray[Any]], plan: Plan | None) -> dict[str, Tensor]:
    """What the model as it came, or as planned, says in process."""
    path = folder_of(model) / plan.artefact if plan and plan.artefact else model
    engine = engine_named(plan.engine) if plan else engine_for(model)
    parameters = plan.parameters if plan else {}
    source = ModelSource(name="m", version=1, path=path, folder=path.parent, parameters=parameters)
    executable = engine.load(source)
    try:
        answer = executable.execute(Batch(row, tuple(o.name for o in executable.outputs), (Member(1),)), 0)
        assert isinstance(answer, dict)
        return answer
    finally:
        executable.close()


def in_process(result: Result) -> str:
    """A line of the first table."""
    plan, cores, task = result.plan, result.plan.machine.cores, TASKS[result.task]
    won = next(t for t in plan.tried if t.turns and not t.out)
    best: dict[str, float] = {}
    for tried in plan.tried:
        if tried.turns and tried.answer_ms <= task.answer_ms_max:
            engine = tried.name.partition(" ")[0]
            best[engine] = max(best.get(engine, 0.0), tried.rows_per_s)
    lost = f"{plan.drop.mean:.2%}, at most {plan.drop.upper:.2%}" if plan.drop else "none"
    peak = PEAK_PER_CORE.get(plan.precision, 0.0) * cores
    share = f"{result.operations * plan.rows_per_s / peak:.0%} of {plan.precision}" if result.operations else "-"
    way = f"{won.name}"
    alone = ", ".join(f"{engine} {rate:,.0f} ({plan.rows_per_s / rate:.2f})" for engine, rate in best.items())
    rate = f"{plan.rows_per_s:,.0f} ({won.low:,.0f} to {won.high:,.0f})"
    default = f"{plan.default_rows_per_s:,.0f} ({plan.times_cheaper:.1f})"
    return (
        f"| {result.task} | {way} | {rate} | {default} | {alone} | {share} | "
        f"{lost} of {task.metric_name}; allowed {task.drop_max:.1%} | {result.search_s:.0f} |"
    )


def as_served(result: Result) -> str:
    """A line of the second table."""
    both = result.served
    assert both is not None

    def told(one: Served) -> str:
        usd = PRICE_USD_PER_HOUR / 3600 / one.rate * 1e6
        p99 = "-" if one.p99_ms is None else f"{one.p99_ms:.1f}"
        return f"{one.rate:,.0f} | {p99} | {one.cpu_us:,.0f} | {usd:.4f}"

    errors = both.at_a_time.errors + both.planned.errors
    times = f"**{both.times:.1f}** ({both.low:.1f} to {both.high:.1f})" + (f", {errors} errors" if errors else "")
    return f"| {result.task} | {told(both.at_a_time)} | {told(both.planned)} | {times} |"


def header(*columns: str) -> str:
    """The head of a table."""
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def show(results: list[Result]) -> None:
    """Both tables."""
    print(
        "| model | plan | rows/s | as it came (times) | best of an engine alone (times) | of peak | lost | search, s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(in_process(result) for result in results))
    with_server = [result for result in results if result.served]
    if not with_server:
        return
    print(
        "\n| model | one at a time: requests/s | p99, ms | CPU us | $/million | as planned: requests/s | p99, ms ",
        end="",
    )
    print("| CPU us | $/million | times cheaper |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(as_served(result) for result in with_server))
    times = sorted(result.served.times for result in with_server if result.served)
    middle = len(times) // 2
    median = times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2
    print(f"\nMedian: {median:.1f} times cheaper.")


def main() -> None:
    """Searches, serves and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SAMPLE")
    parser.add_argument("--time", type=float, default=180, help="seconds of search for each (180)")
    parser.add_argument("--not-served", action="store_true", help="leave out the second table")
    parser.add_argument("--out", type=Path, help="a folder: a JSON file for each model")
    parser.add_argument("--table", action="store_true", help="the names are such files; print their tables")
    options = parser.parse_args()
    if options.table:
        show([msgspec.json.decode(Path(name).read_bytes(), type=Record).result for name in options.names])
        return
    results = []
    for name in options.names or TASKS:
        results.append(measure(TASKS[name], options.time, is_served=not options.not_served))
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            record = {"machine": machine.describe(), "result": msgspec.to_builtins(results[-1])}
            (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + os.linesep)
    show(results)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A file of `--out`."""

    machine: dict[str, Any]
    result: Result


if __name__ == "__main__":
    main()
