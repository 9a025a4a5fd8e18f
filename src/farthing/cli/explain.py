"""`farthing explain`: the plan of a model in words: what was tried, what each step gained, why the winner won."""

import json
from pathlib import Path

import click

from farthing.cli.model_file import model_file
from farthing.cli.plan_told import told, told_json
from farthing.types.errors import NotFound


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the picture there.")
@click.option("--json", "is_json", is_flag=True, help="Answer with JSON on stdout.")
def command(model: str, html: Path | None, is_json: bool) -> None:
    """Tell what `farthing optimize` decided for MODEL and why.

    MODEL is a model file, a model's folder or sample:NAME.

    \b
    farthing explain model.onnx
    farthing explain model.onnx --html plan.html
    """
    from farthing.optimizer.machine import this_machine
    from farthing.optimizer.plan import read_plan, stale

    file = model_file(model)
    plan = read_plan(file)
    if plan is None:
        raise NotFound(f"{file} has no plan", hint=f"make one: farthing optimize {model} --data inputs.npz")
    why = stale(plan, file, this_machine())
    if html is not None:
        from farthing.cli.plan_page import to_html

        html.write_text(to_html(plan, file, why), encoding="utf-8")
    if is_json:
        click.echo(json.dumps({**told_json(plan), "stale": why}, indent=2))
        return
    told(plan, file, is_short=False)
    if why:
        click.echo(f"stale, and not used here: {why}")
        click.echo(f"measure it again: farthing optimize {model} --remeasure")
