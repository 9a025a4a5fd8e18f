"""A plan as people read it. `farthing optimize` shows its head, `farthing explain` all of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried


def headline(plan: "Plan") -> str:
    """How much cheaper, and at what loss."""
    lost = (
        f"{plan.drop.mean:.2%} {plan.drop.metric} drop (at most {plan.drop.upper:.2%})" if plan.drop else "same answers"
    )
    text = f"{plan.times_cheaper:.1f} times cheaper than the default, {lost}"
    usd, before = plan.usd_per_million(), plan.usd_per_million(plan.default_rows_per_s)
    return text if usd is None or before is None else f"{text}: ${usd:.3f} a million instead of ${before:.3f}"


def told(plan: "Plan", file: Path, *, is_short: bool) -> None:
    """Writes the plan to stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    console.print(headline(plan), style="bold", markup=False)
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    console.print(
        f"{file.name}: {plan.engine} {plan.precision}, {plan.instances} x {threads}, batches of {plan.rows}: "
        f"{plan.rows_per_s:,.0f} rows/s, answers within {plan.answer_ms:.3g} ms at full load",
        markup=False,
    )
    if is_short:
        return
    target = "any time" if plan.answer_ms_max is None else f"{plan.answer_ms_max:g} ms"
    console.print(
        f"made {plan.made} for answers within {target} and a drop of at most {plan.drop_max:.2%}, on "
        f"{plan.machine.cores} cores of {plan.machine.processor}",
        markup=False,
    )
    _errors(plan, console)
    table = Table(
        "candidate", "rows/s", "95 %", "worst answer, ms", "drop", "turns", "why not", box=None, pad_edge=False
    )
    for column in table.columns[1:6]:
        column.justify = "right"
    front = set(pareto(plan))
    for one in plan.tried:
        mark = "*" if one.name in front else ""
        table.add_row(one.name + mark, *figures(one), one.out or "chosen")
    console.print()
    console.print(table)
    console.print("* nothing else is at once faster, sooner and truer")


def pareto(plan: "Plan") -> list[str]:
    """Names of the timed candidates on the front of rate, time to answer and drop."""
    from farthing.optimizer.race import front

    return front({t.name: (-t.rows_per_s, t.answer_ms, t.drop_upper) for t in plan.tried if t.turns})


def told_json(plan: "Plan") -> dict[str, Any]:
    """The plan, and what follows from it."""
    return {
        "summary": headline(plan),
        "times_cheaper": plan.times_cheaper,
        "usd_per_million": plan.usd_per_million(),
        "pareto": pareto(plan),
        "plan": msgspec.to_builtins(plan),
    }


def _errors(plan: "Plan", console: Any) -> None:
    for error in plan.errors:
        console.print(
            f"output {error.output}: moves by {error.mean_abs:.2g} in the mean, {error.largest_abs:.2g} at most "
            f"({error.relative:.2g} of its spread)",
            markup=False,
        )


def figures(one: "Tried") -> tuple[str, ...]:
    """Its columns of a table, all but the first and the last."""
    drop = f"{one.drop_upper:.2%}" if one.drop_upper else "-"
    if not one.turns:
        return "-", "-", "-", drop, "-"
    return f"{one.rows_per_s:,.0f}", f"{one.low:,.0f}-{one.high:,.0f}", f"{one.answer_ms:.3g}", drop, str(one.turns)
