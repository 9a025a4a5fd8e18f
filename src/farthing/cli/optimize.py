"""`farthing optimize`: find the cheapest way to run a model that is still right, on this machine."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from farthing.cli.model_file import model_file
from farthing.cli.plan_told import told, told_json

if TYPE_CHECKING:
    from farthing.optimizer.watch import Event, OnEvent

METRICS: Final = ("auto", "top1", "cosine", "neighbour", "auc", "accuracy")
UNITS_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class TargetType(click.ParamType[float]):
    """`p99=20ms`, or a time alone: milliseconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?:p99\s*[=<]\s*)?(\d+(?:\.\d+)?)\s*(us|ms|s)", str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"`{value}` is no target; write p99=20ms", param, ctx)
        return float(found[1]) * UNITS_MS[found[2]]


class ShareType(click.ParamType[float]):
    """`0.5%`, or a part of 1."""

    name = "SHARE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(value).strip())
        share = float(found[1]) / (100 if found[2] else 1) if found else -1
        if not 0 <= share < 1:
            self.fail(f"`{value}` is no share; write 0.5% or 0.005", param, ctx)
        return share


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", metavar="MODEL")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="Inputs to judge by: .npz, an array for each input, perhaps `labels`.",
)
@click.option("--target", type=TargetType(), show_default="any time", help="Answers at worst, such as p99=20ms.")
@click.option("--max-drop", type=ShareType(), default=0.005, show_default="0.5%", help="What the metric may lose.")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="auto",
    help="accuracy and auc need labels; without them the model as it is is the truth.",
)
@click.option("--time", "budget_s", type=click.FloatRange(min=1), default=240.0, help="Seconds to search for.")
@click.option(
    "--price", metavar="USD|INSTANCE", help="Dollars an hour of this machine, or the name of what was rented."
)
@click.option("--dry-run", is_flag=True, help="Write no plan.")
@click.option("--json", "is_json", is_flag=True, help="Answer with JSON on stdout.")
def command(
    model: str,
    data: Path,
    target: float | None,
    max_drop: float,
    metric: str,
    budget_s: float,
    price: str | None,
    dry_run: bool,
    is_json: bool,
) -> None:
    """Find the cheapest way to run MODEL that answers in time and is still right.

    Engines, precisions, threads, instances and batch sizes are measured on this machine. What changes answers by more
    than --max-drop, judged on data that took no part in making it and with 95 % confidence, is thrown out, however
    fast. The result is a folder beside the model, MODEL.farthing-plan, which `farthing serve` picks up by itself and
    `farthing explain` tells in words. Ctrl-C ends the search with the best so far.

    MODEL is a model file, a model's folder or sample:NAME.

    \b
    farthing optimize model.onnx --data inputs.npz --target p99=20ms --max-drop 0.5%
    farthing optimize sample:wdbc-gbdt --data cases.npz --metric auc --price c5.2xlarge
    """
    from farthing.optimizer import Target, optimize
    from farthing.optimizer.plan import folder_of
    from farthing.optimizer.prices import price_usd_per_hour

    usd = None if price is None else price_usd_per_hour(price)
    file = model_file(model)
    stop = _Stop()
    with _watching() as on_event, stop:
        plan = optimize(
            file,
            Target(answer_ms_max=target, drop_max=max_drop, metric=metric),
            data,
            budget_s=budget_s,
            price_usd_per_hour=usd,
            on_event=on_event,
            is_stopped=stop,
            is_written=not dry_run,
        )
    if stop():
        click.echo("stopped early: the best so far", err=True)
    if is_json:
        click.echo(json.dumps(told_json(plan), indent=2))
    else:
        told(plan, file, is_short=True)
    if not dry_run:
        click.echo(f"written to {folder_of(file)}; `farthing serve {model}` uses it", err=True)


class _Stop:
    """Ctrl-C once: end with the best so far. Twice: end."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._is_stopped

    def __enter__(self) -> "_Stop":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._is_stopped:
            raise KeyboardInterrupt
        self._is_stopped = True


@contextmanager
def _watching() -> Iterator["OnEvent"]:
    """What is being tried and how it stands: a bar on a terminal, a line for each new thing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        said = [""]

        def line(event: "Event") -> None:
            verb = event.doing.partition(" ")[0]
            text = event.doing if verb != "timing" else f"timing {event.alive} settings"
            if text != said[0]:
                said[0] = text
                console.print(f"{event.spent_s:5.0f} s  {text}")

        yield line
        return
    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def show(event: "Event") -> None:
            best = f"   best: {event.best_rows_per_s:,.0f}/s, {event.best}" if event.best else ""
            bars.update(task, completed=min(1.0, event.spent_s / event.budget_s), description=event.doing + best)

        yield show
