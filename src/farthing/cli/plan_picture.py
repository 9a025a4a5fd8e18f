"""Pictures of a plan as SVG: the front of speed and time to answer, what each step gained, what each recipe loses.

Drawn for one page, with words where a reader looks and everything else under the pointer. No library.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from farthing.cli.plan_steps import Branch, Step, chosen, default, front, recipe_of
from farthing.cli.plan_told import dollars

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried

WIDTH: Final = 860
HEIGHT: Final = 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 74, 26, 46

COLOURS: Final = 8
"""Of the page's style, `k1` to `k8`; recipes beyond share them."""


class _Log:
    """A logarithmic scale from pixel to pixel."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high / low) ** 0.06 if high > low else 1.5
        self._low, self._high = math.log10(low / room), math.log10(high * room)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (math.log10(max(value, 1e-12)) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 3, 4, 5, 6, 7, 8, 9)):
            found = [
                10.0**d * f for d in decades for f in factors if self._low <= math.log10(10.0**d * f) <= self._high
            ]
            if 4 <= len(found) <= 10:
                return found
        return found


def colours_of(plan: "Plan") -> dict[str, int]:
    """Recipe -> number of its colour, the chosen one's the first."""
    won = chosen(plan)
    names = dict.fromkeys([recipe_of(won)] if won else [])
    names |= dict.fromkeys(recipe_of(one) for one in plan.tried if one.turns)
    return {name: 1 + number % COLOURS for number, name in enumerate(names)}


def front_picture(plan: "Plan") -> str:
    """Speed against time to answer: every setting a point, the front a line, the plan a star."""
    timed = [one for one in plan.tried if one.turns and one.answer_ms > 0]
    if not timed:
        return ""
    colours, best, begin = colours_of(plan), chosen(plan), default(plan)
    ends = [plan.answer_ms_max] if plan.answer_ms_max else []
    across = _Log([one.answer_ms for one in timed] + ends, _LEFT, WIDTH - _RIGHT)
    up = _Log([one.rows_per_s for one in timed], HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="rows a second by time to answer">']
    parts += _axes(plan, across, up)
    if plan.answer_ms_max:
        at = across.at(plan.answer_ms_max)
        parts.append(
            f'<rect class="late" x="{at:.1f}" y="{_TOP}" width="{WIDTH - _RIGHT - at:.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/><line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" '
            f'y2="{HEIGHT - _BOTTOM}"/><text class="name" x="{at + 6:.1f}" y="{HEIGHT - _BOTTOM - 8}">target '
            f"{plan.answer_ms_max:g} ms</text>"
        )
    on_front = front(plan)
    line = " ".join(f"{across.at(one.answer_ms):.1f},{up.at(one.rows_per_s):.1f}" for one in _rising(on_front))
    parts.append(f'<polyline class="front" points="{line}"/>')
    names = {one.name for one in on_front}
    for one in sorted(timed, key=lambda one: one.name in names):
        if one is not best and one is not begin:
            radius, faint = (4.5, "") if one.name in names else (3, " faint")
            parts.append(
                f'<circle class="k{colours[recipe_of(one)]}{faint}" cx="{across.at(one.answer_ms):.1f}" '
                f'cy="{up.at(one.rows_per_s):.1f}" r="{radius}">{_title(one, plan)}</circle>'
            )
    marked = [(best, _star, "the plan")] if best is not None else []
    marked += [(begin, _diamond, "as it came")] if begin is not None and begin is not best else []
    for one, mark, word in marked:
        x, y = across.at(one.answer_ms), up.at(one.rows_per_s)
        side = ("end", -12) if x > WIDTH * 0.75 else ("start", 12)
        parts.append(f'<path class="k{colours[recipe_of(one)]} big" d="{mark(x, y)}">{_title(one, plan)}</path>')
        parts.append(
            f'<text class="name strong" x="{x + side[1]:.1f}" y="{y - 8:.1f}" text-anchor="{side[0]}">'
            f"{word}: {one.rows_per_s:,.0f}/s</text>"
        )
    legend = "".join(f'<span class="k{colour}"><i></i>{escape(name)}</span>' for name, colour in colours.items())
    return "".join([*parts, "</svg>", f'<p class="legend">{legend}</p>'])


def steps_picture(steps: Sequence[Step]) -> str:
    """What each step gained, a bar a step; bars are as long as rates."""
    most = max((step.rows_per_s for step in steps), default=1.0)
    rows = []
    for number, step in enumerate(steps):
        gain = f"x {step.gain:.2f}" if number else ""
        wide = 100 * step.rows_per_s / most
        rows.append(
            f'<div class="step" title="{escape(step.setting)}"><b>{escape(step.what)}</b>'
            f'<span class="track"><i style="width:{wide:.1f}%"></i></span>'
            f"<em>{step.rows_per_s:,.0f}/s</em><em>{gain}</em></div>"
        )
    return f'<div class="steps">{"".join(rows)}</div>'


def drops_picture(found: Sequence[Branch], drop_max: float) -> str:
    """What recipes lose: from the mean to the upper bound, against what is allowed."""
    moved = [branch for branch in found if branch.drop_upper]
    if not moved:
        return '<p class="sub">No recipe that was judged moves answers by more than the order of sums does.</p>'
    end = min(1.0, max(3 * drop_max, sorted(branch.drop_upper for branch in moved)[len(moved) // 2] * 1.3, 0.002))
    limit = 100 * min(1.0, drop_max / end)
    rows = []
    for branch in sorted(moved, key=lambda branch: branch.drop_upper):
        low, high = (100 * min(1.0, max(0.0, value) / end) for value in (branch.drop, branch.drop_upper))
        kind = "ok" if branch.best is not None else "over"
        more = "+" if branch.drop_upper > end else ""
        rows.append(
            f'<div class="step drop" title="{escape(branch.out or "chosen")}"><b>{escape(branch.recipe)}</b>'
            f'<span class="track"><i class="{kind}" style="left:{low:.1f}%;width:{max(0.7, high - low):.1f}%"></i>'
            f'<u style="left:{limit:.1f}%"></u></span><em>{branch.drop:.2%}</em>'
            f"<em>≤ {branch.drop_upper:.2%}{more}</em></div>"
        )
    return f'<div class="steps">{"".join(rows)}</div>'


def _axes(plan: "Plan", across: _Log, up: _Log) -> list[str]:
    floor, right, parts = HEIGHT - _BOTTOM, WIDTH - _RIGHT, []
    for tick in across.ticks():
        at = across.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks():
        at = up.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
        usd = plan.usd_per_million(tick)
        if usd is not None:
            parts.append(f'<text x="{right + 7}" y="{at + 4:.1f}">${usd:.2g}</text>')
    parts.append(f'<text class="name" x="{_LEFT - 56}" y="14">rows a second ↑</text>')
    if plan.price_usd_per_hour is not None:
        parts.append(f'<text class="name" x="{WIDTH - 4}" y="14" text-anchor="end">$ a million ↓</text>')
    parts.append(
        f'<text class="name" x="{right}" y="{HEIGHT - 8}" text-anchor="end">answer at the worst moment, ms (sooner is '
        "to the left)</text>"
    )
    return parts


def _rising(on_front: "Sequence[Tried]") -> "list[Tried]":
    """Those of the front that are faster than all that answer sooner: truth has no place in this plane."""
    kept: list[Tried] = []
    for one in sorted(on_front, key=lambda one: (one.answer_ms, -one.rows_per_s)):
        if not kept or one.rows_per_s > kept[-1].rows_per_s:
            kept.append(one)
    return kept


def _title(one: "Tried", plan: "Plan") -> str:
    lost = f"loses at most {one.drop_upper:.2%}" if one.drop_upper else "same answers"
    usd = plan.usd_per_million(one.rows_per_s)
    cost = f", {dollars(usd)} a million" if usd is not None else ""
    figures = f"{one.rows_per_s:,.0f} rows/s ({one.low:,.0f} to {one.high:,.0f}), {one.answer_ms:.3g} ms, {lost}{cost}"
    return (
        f"<title>{escape(f'{one.name}: {figures}; {one.out}' if one.out else f'{one.name}: {figures}; chosen')}</title>"
    )


def _star(x: float, y: float) -> str:
    points = []
    for corner in range(10):
        radius, angle = (11, 4.6)[corner % 2], math.pi * (corner / 5 - 0.5)
        points.append(f"{x + radius * math.cos(angle):.1f} {y + radius * math.sin(angle):.1f}")
    return "M" + "L".join(points) + "Z"


def _diamond(x: float, y: float) -> str:
    return f"M{x:.1f} {y - 8:.1f}L{x + 8:.1f} {y:.1f}L{x:.1f} {y + 8:.1f}L{x - 8:.1f} {y:.1f}Z"


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
