"""A plan as one HTML page: what was gained and how, the front as a picture, what was lost, all that was tried."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farthing.cli.plan_picture import drops_picture, front_picture, steps_picture
from farthing.cli.plan_steps import branches, front, steps, why
from farthing.cli.plan_told import company, dollars, figures, headline, pareto, rates, way

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried

_TEXT: Final = 'style="text-align:left;white-space:normal;min-width:16em"'

STYLE: Final = """
:root{--k1:#16794c;--k2:#2563c9;--k3:#c2570c;--k4:#8b1a4b;--k5:#0e7c86;--k6:#6d4bc4;--k7:#8a6d00;--k8:#5b6470}
@media (prefers-color-scheme:dark){:root{--k1:#5fd09b;--k2:#7aa7f7;--k3:#f0a35e;--k4:#ec7fae;--k5:#5cc8d1;--k6:#b39cf5;
--k7:#d9bd55;--k8:#a3adba}}
.k1{color:var(--k1)}.k2{color:var(--k2)}.k3{color:var(--k3)}.k4{color:var(--k4)}.k5{color:var(--k5)}.k6{color:var(--k6)}
.k7{color:var(--k7)}.k8{color:var(--k8)}
h1{font-size:26px;line-height:1.25}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:18px 0 8px}
.card{background:var(--pane);border-radius:8px;padding:12px 16px}
.card b{display:block;font-size:26px;line-height:1.2;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}
svg circle,svg path.big{fill:currentColor;stroke:var(--paper);stroke-width:1}
svg circle:hover,svg path.big:hover{stroke:var(--ink);stroke-width:2}
svg .faint{opacity:.38}
svg .strong{font-size:13px;font-weight:600}
.front{fill:none;stroke:var(--ink);stroke-width:1.5;opacity:.55}
.late{fill:var(--soft);opacity:.1}
.limit{stroke:var(--ink);stroke-dasharray:4 4}
.legend span{display:inline-block}
.legend i{height:9px;width:9px;border-radius:50%}
.step{display:grid;grid-template-columns:minmax(150px,26em) 1fr 6.5em 6.5em;gap:12px;align-items:center;padding:3px 0}
.step b{font-weight:500}
.step em{font-style:normal;white-space:nowrap;text-align:right;font-variant-numeric:tabular-nums;font-size:13px}
.track{position:relative;height:16px;background:var(--pane);border-radius:4px;overflow:hidden}
.track i{position:absolute;top:0;bottom:0;left:0;background:var(--k2);border-radius:4px}
.steps .step:last-child .track i{background:var(--k1)}
.steps .drop .track i,.steps .drop:last-child .track i{background:var(--k1)}
.steps .drop .track i.over,.steps .drop:last-child .track i.over{background:var(--k4);opacity:.75}
.track u{position:absolute;top:0;bottom:0;border-left:2px dashed var(--ink)}
@media (max-width:700px){.step{grid-template-columns:1fr 5.5em 4.5em}.step .track{grid-column:1/-1;grid-row:2}}
tr.chosen td{font-weight:600;background:var(--pane)}
details summary{cursor:pointer;margin:34px 0 8px;font-size:18px;font-weight:600}
"""


def to_html(plan: "Plan", file: Path, stale: str = "") -> str:
    """The page; it needs nothing else. `stale` is why the plan is not used here."""
    style = resources.files("farthing.bench").joinpath("page.css").read_text(encoding="utf-8") + STYLE
    title = escape(f"{file.name}: {headline(plan)}")
    where = f"{file.name}, made {plan.made} on {plan.machine.cores} cores of {plan.machine.processor}"
    body = [
        f"<h1>{escape(headline(plan))}</h1>",
        f'<p class="sub">{escape(where)}</p>',
        f'<p class="big bad">stale, and not used here: {escape(stale)}</p>' if stale else "",
        _cards(plan),
        f'<p class="big">{escape(_sentence(plan))}</p>',
        *(f'<p class="sub">{escape(note)}</p>' for note in plan.notes),
        "<h2>What each step gained</h2>",
        steps_picture(steps(plan)),
        "<h2>Speed against time to answer</h2>",
        f'<div class="pane">{front_picture(plan)}</div>',
        '<p class="sub">A point is one setting of a recipe; nothing beats those on the line in speed and time.'
        " Point at one for its name.</p>",
        "<h2>What is lost</h2>",
        drops_picture(branches(plan), plan.drop_max),
        '<p class="sub">Bars go from what was seen to what can be ruled out with 95 % confidence; the dashed line is '
        f"what is allowed, {plan.drop_max:.2%}. Red ones are out.</p>",
        _errors(plan),
        "<h2>The front</h2>",
        _front(plan),
        _shared(plan),
        f"<details><summary>All {len(plan.tried)} candidates</summary>",
        _table(plan.tried, set(pareto(plan)), plan),
        "</details>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _cards(plan: "Plan") -> str:
    lost = f"{plan.drop.mean:.2%}" if plan.drop else "0 %"
    cards = [
        (f"{plan.times_cheaper:.1f} x", "cheaper than as it came"),
        (lost, f"accuracy drop ({plan.drop.metric})" if plan.drop else "accuracy drop: the same answers"),
        (f"{plan.rows_per_s:,.0f}/s", f"rows, instead of {plan.default_rows_per_s:,.0f}"),
        (f"{plan.answer_ms:.3g} ms", "answer at the worst moment"),
    ]
    usd, before = plan.usd_per_million(), plan.usd_per_million(plan.default_rows_per_s)
    if usd is not None and before is not None:
        cards.append((dollars(usd), f"a million, instead of {dollars(before)}"))
    shown = "".join(f"<div class=card><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in cards)
    return f'<div class="cards">{shown}</div>'


def _sentence(plan: "Plan") -> str:
    text = f"{way(plan)}: {rates(plan)}. Chosen because {why(plan)}."
    if plan.together is not None:
        text = f"{way(plan)}: {rates(plan)}. {company(plan).capitalize()}."
    return text


def _errors(plan: "Plan") -> str:
    rows = "".join(
        f"<tr><td>{escape(error.output)}</td><td>{error.mean_abs:.2g}</td><td>{error.largest_abs:.2g}</td>"
        f"<td>{error.relative:.2g}</td></tr>"
        for error in plan.errors
    )
    heads = "".join(f"<th>{h}</th>" for h in ("output", "moves in the mean", "at most", "of its spread"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""


def _shared(plan: "Plan") -> str:
    if plan.together is None:
        return ""
    rows = []
    for one in plan.together.tried:
        parts, answers = ", ".join(f"{p:.0%}" for p in one.parts), ", ".join(f"{ms:.3g}" for ms in one.answer_ms)
        cells = f"<td>{parts}</td><td>{answers}</td><td {_TEXT}>{escape(one.out or 'chosen')}</td>"
        rows.append(f"<tr{'' if one.out else ' class=chosen'}><td>{escape(one.name)}</td>{cells}</tr>")
    heads = "".join(f"<th>{h}</th>" for h in ("way", "of what each does alone", "worst answers, ms", "why not"))
    return f"<h2>Sharing the machine</h2><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _front(plan: "Plan") -> str:
    has_price = plan.price_usd_per_hour is not None
    heads = ["setting", "rows/s", "95 %", "worst answer, ms", "drop, at most", *["$ a million"] * has_price]
    rows = []
    for one in front(plan):
        cells = [*figures(one)[:4], *[dollars(plan.usd_per_million(one.rows_per_s) or 0.0)] * has_price]
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{'' if one.out else ' class=chosen'}><td>{escape(one.name)}</td>{shown}</tr>")
    head = "".join(f"<th>{head}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _table(tried: "Sequence[Tried]", front_names: set[str], plan: "Plan") -> str:
    has_price = plan.price_usd_per_hour is not None
    heads = ["candidate", "rows/s", "95 %", "worst answer, ms", "drop, at most", "turns"]
    heads += ["$ a million"] * has_price + ["why not"]
    rows = []
    for one in tried:
        name = escape(one.name) + (" *" if one.name in front_names else "")
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in figures(one))
        if has_price:
            usd = plan.usd_per_million(one.rows_per_s) if one.turns else None
            cells += f"<td>{dollars(usd) if usd is not None else '-'}</td>"
        out = f"<td {_TEXT}>{escape(one.out or 'chosen')}</td>"
        rows.append(f"<tr{'' if one.out else ' class=chosen'}><td>{name}</td>{cells}{out}</tr>")
    head = "".join(f"<th>{head}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
