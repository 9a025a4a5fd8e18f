"""A plan as people read it. `farthing optimize` shows its head, `farthing explain` all of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from farthing.cli.plan_steps import front, steps, why

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried


def headline(plan: "Plan") -> str:
    """How much cheaper, and at what loss."""
    lost = (
        f"{plan.drop.mean:.2%} accuracy drop ({plan.drop.metric}; at most {plan.drop.upper:.2%})"
        if plan.drop
        else "0 % accuracy drop (the same answers)"
    )
    text = f"{plan.times_cheaper:.1f} times cheaper than the default, {lost}"
    usd, before = plan.usd_per_million(), plan.usd_per_million(plan.default_rows_per_s)
    return text if usd is None or before is None else f"{text}: {dollars(usd)} a million instead of {dollars(before)}"


def dollars(usd: float) -> str:
    """Three digits of a price."""
    return f"${usd:.3f}" if usd >= 0.1 else f"${usd:.3g}"


def told(plan: "Plan", file: Path, *, is_short: bool) -> None:
    """Writes the plan to stdout."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    console.print(headline(plan), style="bold", markup=False)
    console.print(f"{file.name}: {way(plan)}: {rates(plan)}", markup=False)
    if plan.together is not None:
        console.print(company(plan), markup=False)
    if is_short:
        for note in plan.notes:
            console.print(f"note: {note}", style="dim", markup=False)
        return
    from farthing.cli.plan_tree import tree_of

    target = "any time" if plan.answer_ms_max is None else f"{plan.answer_ms_max:g} ms"
    console.print(
        f"made {plan.made} for answers within {target} and a drop of at most {plan.drop_max:.2%}, on "
        f"{plan.machine.cores} cores of {plan.machine.processor}",
        markup=False,
    )
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    console.print()
    _steps(plan, console)
    console.print(f"chosen: {why(plan)}", markup=False)
    console.print()
    console.print(tree_of(plan, file.name))
    _errors(plan, console)
    _front(plan, console)
    if plan.together is not None:
        _shared(plan, console)


def told_together(plans: "Sequence[Plan]") -> None:
    """Writes what the models make of the machine together, before each is told by itself."""
    import click

    together = math.exp(sum(math.log(plan.times_cheaper) for plan in plans) / len(plans))
    worst = max((plan.drop.mean for plan in plans if plan.drop), default=0.0)
    click.echo(f"{together:.1f} times cheaper than the default, {worst:.2%} accuracy drop, all {len(plans)} together")


def way(plan: "Plan") -> str:
    """Such as `openvino int8, 2 x 1 thread, batches of 8`."""
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    rows = f"batches of {plan.rows}" if plan.rows > 1 else "one row at a time"
    runtime = f" ({plan.parameters['runtime']})" if "runtime" in plan.parameters else ""
    return f"{plan.engine} {plan.precision}{runtime}, {plan.instances} x {threads}, {rows}"


def rates(plan: "Plan") -> str:
    """How fast, and how soon."""
    return f"{plan.rows_per_s:,.0f} rows/s, answers within {plan.answer_ms:.3g} ms at full load"


def company(plan: "Plan") -> str:
    """With whom it shares the machine, and what that costs it."""
    assert plan.together is not None
    others = ", ".join(other.place for other in plan.together.others)
    kept = plan.rows_per_s / plan.together.alone_rows_per_s
    return (
        f"planned together with {others}, all at full load: it does {kept:.0%} of the "
        f"{plan.together.alone_rows_per_s:,.0f} rows/s that it does alone, for {plan.together.share:.0%} of the "
        f"machine's cost, in about {plan.together.memory_bytes >> 20} MiB"
    )


def pareto(plan: "Plan") -> list[str]:
    """Names of the timed candidates on the front of rate, time to answer and drop."""
    return [one.name for one in front(plan)]


def told_json(plan: "Plan") -> dict[str, Any]:
    """The plan, and what follows from it."""
    return {
        "summary": headline(plan),
        "times_cheaper": plan.times_cheaper,
        "usd_per_million": plan.usd_per_million(),
        "steps": msgspec.to_builtins(steps(plan)),
        "why": why(plan),
        "pareto": pareto(plan),
        "plan": msgspec.to_builtins(plan),
    }


def _steps(plan: "Plan", console: Any) -> None:
    from rich.table import Table

    table = Table("what each step gained", "rows/s", "", "with", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:3]:
        column.justify = "right"
    for number, step in enumerate(steps(plan)):
        mark = "  " * number + ("└ " if number else "")
        gain = f"x {step.gain:.2f}" if number else ""
        table.add_row(mark + step.what, f"{step.rows_per_s:,.0f}", gain, step.setting)
    console.print(table)


def _errors(plan: "Plan", console: Any) -> None:
    from rich.table import Table

    if not plan.errors:
        return
    table = Table("how far outputs move", "in the mean", "at most", "of its spread", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for error in plan.errors:
        table.add_row(error.output, f"{error.mean_abs:.2g}", f"{error.largest_abs:.2g}", f"{error.relative:.2g}")
    console.print()
    console.print(table)


def _front(plan: "Plan", console: Any) -> None:
    from rich.table import Table

    has_price = plan.price_usd_per_hour is not None
    heads = ["the front", "rows/s", "95 %", "worst answer, ms", "drop, at most"] + ["$ a million"] * has_price
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in front(plan):
        usd = [dollars(plan.usd_per_million(one.rows_per_s) or 0.0)] if has_price else []
        style = "bold" if not one.out else ""
        table.add_row(one.name + (" (chosen)" if not one.out else ""), *figures(one)[:4], *usd, style=style)
    console.print()
    console.print(table)
    console.print("nothing else is at once faster, sooner and truer than one of these")


def _shared(plan: "Plan", console: Any) -> None:
    from rich.table import Table

    assert plan.together is not None
    table = Table("sharing the machine", "of what each does alone", "worst answers, ms", "", box=None, pad_edge=False)
    for one in plan.together.tried[:12]:
        parts = "  ".join(f"{part:.0%}" for part in one.parts)
        table.add_row(one.name, parts, "  ".join(f"{ms:.3g}" for ms in one.answer_ms), one.out or "chosen")
    console.print()
    console.print(table)


def figures(one: "Tried") -> tuple[str, ...]:
    """Its columns of a table, all but the first and the last."""
    drop = f"{one.drop_upper:.2%}" if one.drop_upper else "-"
    if not one.turns:
        return "-", "-", "-", drop, "-"
    return f"{one.rows_per_s:,.0f}", f"{one.low:,.0f}-{one.high:,.0f}", f"{one.answer_ms:.3g}", drop, str(one.turns)
