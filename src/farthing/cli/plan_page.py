"""A plan as one HTML page: what was gained, the front of speed, time and truth as a picture, all that was tried."""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farthing.bench.plot import Axis, Line, chart
from farthing.cli.plan_told import figures, headline, pareto

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried

_TEXT: Final = 'style="text-align:left;white-space:normal;min-width:16em"'

_SETTING: Final = re.compile(r", \d+ x ")
"""Where in a candidate's name its recipe ends."""

COLOURS: Final = 4
"""Colours the page's style has; recipes beyond share them."""


def to_html(plan: "Plan", file: Path) -> str:
    """The page; it needs nothing else."""
    style = resources.files("farthing.bench").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(f"{file.name}: {headline(plan)}")
    where = f"made {plan.made} on {plan.machine.cores} cores of {plan.machine.processor}"
    body = [
        f"<h1>{escape(headline(plan))}</h1>",
        f'<p class="sub">{escape(f"{file.name}, {where}")}</p>',
        "<h2>Speed against time to answer</h2>",
        _front(plan),
        '<p class="sub">A point is a setting of a recipe; the line joins those that nothing else beats in speed, time '
        "and truth together.</p>",
        "<h2>What was tried</h2>",
        _table(plan.tried, set(pareto(plan))),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _front(plan: "Plan") -> str:
    timed = [one for one in plan.tried if one.turns]
    recipes: dict[str, list[Tried]] = {}
    for one in timed:
        recipes.setdefault(_SETTING.split(one.name)[0], []).append(one)
    names = set(pareto(plan))
    front = sorted((one for one in timed if one.name in names), key=lambda one: one.answer_ms)
    lines = [
        Line(
            name="the front",
            x=[one.answer_ms for one in front],
            y=[one.rows_per_s for one in front],
            colour=COLOURS,
            has_dots=False,
        )
    ]
    lines += [
        Line(
            name=name,
            x=[one.answer_ms for one in ones],
            y=[one.rows_per_s for one in ones],
            colour=1 + number % (COLOURS - 1),
            is_joined=False,
        )
        for number, (name, ones) in enumerate(recipes.items())
    ]
    x = Axis(title="answer at the worst moment, ms", is_log=True)
    return chart(x, Axis(title="rows a second"), lines=lines)


def _table(tried: "Sequence[Tried]", front: set[str]) -> str:
    heads = ("candidate", "rows/s", "95 %", "worst answer, ms", "drop", "turns", "why not")
    rows = []
    for one in tried:
        name = escape(one.name) + (" *" if one.name in front else "")
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in figures(one))
        why = f"<td {_TEXT}>{escape(one.out or 'chosen')}</td>"
        rows.append(f"<tr><td>{name}</td>{cells}{why}</tr>")
    head = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
