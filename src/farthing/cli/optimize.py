"""`farthing optimize`: find the cheapest way to run a model that is still right, on this machine."""

import json
import re
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from farthing.cli.model_file import model_file
from farthing.cli.plan_told import told, told_json, told_together
from farthing.cli.plan_watch import watching
from farthing.types.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from farthing.optimizer import Plan, Target

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
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--data",
    "datas",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Inputs to judge by: .npz (an array for each input, perhaps `labels`), .npy, or texts (.txt, .jsonl).",
)
@click.option(
    "--target", "targets", type=TargetType(), multiple=True, show_default="any time",
    help="Answers at worst, such as p99=20ms.",
)  # fmt: skip
@click.option("--max-drop", type=ShareType(), default=0.005, show_default="0.5%", help="What the metric may lose.")
@click.option(
    "--metric",
    "metrics",
    metavar="NAME|FILE.py:FUNCTION",
    multiple=True,
    show_default="auto",
    help="auto, top1, accuracy, auc, cosine, neighbour or a function of yours; accuracy and auc need labels.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    show_default="tokenizer.json beside the model",
    help="Turns texts into inputs.",
)
@click.option("--outputs", default="", metavar="NAMES", help="Outputs that are needed, with commas; others are cut.")
@click.option("--fixed-shapes", is_flag=True, help="Requests will have the shapes of the data, rows of a batch aside.")
@click.option("--jointly", is_flag=True, help="Plan several models for one machine: a --data for each, in their order.")
@click.option("--time", "budget_s", type=click.FloatRange(min=1), default=240.0, help="Seconds to search for.")
@click.option(
    "--price", metavar="USD|INSTANCE", help="Dollars an hour of this machine, or the name of what was rented."
)
@click.option("--remeasure", is_flag=True, help="As asked for when the plan was made, measured anew.")
@click.option("--fresh", is_flag=True, help="Do not go on with a search that was stopped.")
@click.option("--dry-run", is_flag=True, help="Write no plan.")
@click.option("--json", "is_json", is_flag=True, help="Answer with JSON on stdout.")
def command(
    models: tuple[str, ...],
    datas: tuple[Path, ...],
    targets: tuple[float, ...],
    max_drop: float,
    metrics: tuple[str, ...],
    tokenizer: Path | None,
    outputs: str,
    fixed_shapes: bool,
    jointly: bool,
    budget_s: float,
    price: str | None,
    remeasure: bool,
    fresh: bool,
    dry_run: bool,
    is_json: bool,
) -> None:
    """Find the cheapest way to run MODEL that answers in time and is still right.

    Engines, precisions, threads, instances and batch sizes are measured on this machine. What changes answers by more
    than --max-drop, judged on data that took no part in making it and with 95 % confidence, is thrown out, however
    fast. The result is a folder beside the model, MODEL.farthing-plan, which `farthing serve` picks up by itself and
    `farthing explain` tells in words. Ctrl-C ends the search with the best so far; the next one goes on from there.

    MODEL is a model file, a model's folder or sample:NAME.

    \b
    farthing optimize model.onnx --data inputs.npz --target p99=20ms --max-drop 0.5%
    farthing optimize sample:minilm-l6 --data sentences.txt --metric cosine
    farthing optimize sample:wdbc-gbdt --data cases.npz --metric auc --price c5.2xlarge
    farthing optimize a.onnx b.onnx --jointly --data a.npz --data b.npz --target p99=20ms --target p99=1s
    """
    from farthing.optimizer import Target, Wanted
    from farthing.optimizer.plan import folder_of
    from farthing.optimizer.prices import price_usd_per_hour

    usd = None if price is None else price_usd_per_hour(price)
    files = [model_file(model) for model in models]
    if len(files) > 1 and not jointly:
        raise InvalidInput(
            f"{len(files)} models are named", hint="--jointly plans them for one machine; or one at a time"
        )
    wanted = [
        Wanted(
            model=file,
            target=Target(
                answer_ms_max=limit,
                drop_max=max_drop,
                metric=metric or "auto",
                outputs=tuple(name.strip() for name in outputs.split(",") if name.strip()),
                has_fixed_shapes=fixed_shapes,
            ),
            data=data or Path(),
            tokenizer=tokenizer,
        )
        for file, data, limit, metric in zip(
            files,
            _each(datas, files, "--data", is_needed=not remeasure),
            _each(targets, files, "--target"),
            _each(metrics, files, "--metric"),
            strict=True,
        )
    ]
    if remeasure:
        wanted, usd = _as_before(wanted, models, usd)
    stop = _Stop()
    with watching() as on_event, stop:
        plans = _found(
            wanted,
            budget_s=budget_s,
            price_usd_per_hour=usd,
            on_event=on_event,
            is_stopped=stop,
            is_written=not dry_run,
            is_fresh=fresh or remeasure,
        )
    if stop():
        click.echo("stopped early: the best so far; the same command goes on from here", err=True)
    if is_json:
        shown = [told_json(plan) for plan in plans]
        click.echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))
    else:
        if len(plans) > 1:
            told_together(plans)
        for plan, one in zip(plans, wanted, strict=True):
            told(plan, one.model, is_short=True)
    if not dry_run:
        for model, one in zip(models, wanted, strict=True):
            click.echo(f"written to {folder_of(one.model)}; `farthing serve {model}` uses it", err=True)


def _found(wanted: list[Any], **how: Any) -> "list[Plan]":
    from farthing.optimizer import optimize, optimize_jointly

    if len(wanted) > 1:
        return optimize_jointly(wanted, **how)
    [one] = wanted
    return [optimize(one.model, one.target, one.data, tokenizer=one.tokenizer, **how)]


def _each(given: tuple[Any, ...], files: list[Path], option: str, *, is_needed: bool = False) -> list[Any]:
    """A value for each model: as many as there are, or one for all."""
    if not given:
        if is_needed:
            raise InvalidInput(
                f"{option} is missing", hint=f"{option} inputs.npz: arrays, or texts, that the model will be judged by"
            )
        return [None] * len(files)
    if len(given) == len(files):
        return list(given)
    if len(given) == 1 and option != "--data":
        return list(given) * len(files)
    raise InvalidInput(
        f"{option} is given {len(given)} times for {len(files)} model{'s' * (len(files) > 1)}",
        hint="say it for each model, in their order",
    )


def _as_before(wanted: list[Any], models: tuple[str, ...], usd: float | None) -> tuple[list[Any], float | None]:
    """What was asked for when the plans were made, but for what is said now."""
    from msgspec.structs import replace

    from farthing.optimizer.plan import read_plan

    asked_again = []
    for one, model in zip(wanted, models, strict=True):
        plan = read_plan(one.model)
        if plan is None:
            raise NotFound(
                f"{one.model} has no plan to measure again", hint=f"farthing optimize {model} --data inputs.npz"
            )
        data = one.data if one.data != Path() else Path(plan.asked.data)
        if not plan.asked.data and one.data == Path():
            raise InvalidInput(
                "the plan was made from arrays, not from a file", hint="name the data: --data inputs.npz"
            )
        if not data.is_file():
            raise InvalidInput(f"the plan's data, {data}, are not there any more", hint="name them: --data inputs.npz")
        target: Target = replace(
            one.target,
            answer_ms_max=one.target.answer_ms_max or plan.answer_ms_max,
            drop_max=plan.drop_max,
            metric=one.target.metric if one.target.metric != "auto" else plan.asked.metric,
            outputs=one.target.outputs or plan.asked.outputs,
            has_fixed_shapes=one.target.has_fixed_shapes or plan.asked.has_fixed_shapes,
        )
        tokenizer = one.tokenizer or (Path(plan.asked.tokenizer) if plan.asked.tokenizer else None)
        asked_again.append(replace(one, target=target, data=data, tokenizer=tokenizer))
        usd = plan.price_usd_per_hour if usd is None else usd
    return asked_again, usd


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
