"""Small plots as SVG, drawn for the HTML page: lines, bars and marks over linear or logarithmic axes. No library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

LABEL_GAP: Final = 22.0
WIDTH: Final = 680
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What is along one side; `is_log` needs values above 0."""

    title: str
    is_log: bool = False
    from_zero: bool = True
    is_nines: bool = False
    """Shares from 0 to below 1, so that 90 %, 99 % and 99.9 % are as far from each other."""
    unit: str = ""
    """For the words that appear over a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points in order; None breaks the line. `colour` counts the page's colours from 1, `band` is low and high."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int
    band: Sequence[tuple[float, float] | None] = ()
    has_dots: bool = True
    is_joined: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    left: float
    right: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line with a word."""

    x: float
    name: str


_NINES: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)


def _nines(share: float) -> float:
    return -math.log10(1 - min(share, 1 - 1e-9))


class _Scale:
    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.is_log, self._is_nines = axis.is_log, axis.is_nines
        if axis.is_nines:
            values = [_nines(value) for value in values]
        known = [value for value in values if math.isfinite(value) and (value > 0 or not axis.is_log)] or [1.0]
        low, high = min(known), max(known)
        if self.is_log:
            low, high = low / 1.15, high * 1.15
        else:
            low = min(0.0, low) if axis.from_zero else low
            high = high * (1.0 if axis.is_nines else 1.06) if high > low else low + 1
        self._low, self._high, self._start, self._end = low, high, start, end

    def at(self, value: float) -> float:
        low, high = self._low, self._high
        if self._is_nines:
            value = _nines(value)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-12))
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self._is_nines:
            return [share for share in _NINES if _nines(share) <= self._high]
        if self.is_log:
            decades = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            found = [10.0**d * m for d in decades for m in (1, 2, 5)]
            found = [tick for tick in found if self._low <= tick <= self._high]
            if len(found) < 3:
                return self._even()  # so near to each other that even steps read well
            return found if len(found) <= 9 else [tick for tick in found if f"{tick:e}"[0] == "1"]
        return self._even()

    def _even(self) -> list[float]:
        raw = (self._high - self._low) / 6
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
        first = math.ceil(self._low / step)
        return [n * step for n in range(first, math.floor(self._high / step) + 1)]


def chart(
    x: Axis,
    y: Axis,
    *,
    lines: Sequence[Line] = (),
    bars: Sequence[Bar] = (),
    marks: Sequence[Mark] = (),
    shaded: tuple[float, float] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """One plot. `shaded` is a part of the x axis that does not count (warm-up)."""
    xs = [value for line in lines for value in line.x] + [end for bar in bars for end in (bar.left, bar.right)]
    ys = [value for line in lines for value in line.y if value is not None] + [bar.height for bar in bars]
    ys += [end for line in lines for pair in line.band if pair for end in pair]
    across = _Scale(x, xs, _LEFT, width - _RIGHT)
    up = _Scale(y, ys, height - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y.title)} by {escape(x.title)}">']
    if shaded and shaded[1] > shaded[0]:
        left, right = across.at(shaded[0]), across.at(shaded[1])
        parts.append(
            f'<rect class="warm" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{height - _TOP - _BOTTOM}"/>'
        )
    parts += _grid(x, y, across, up, width, height)
    floor = height - _BOTTOM
    for bar in bars:
        top, left, right = up.at(bar.height), across.at(bar.left), across.at(bar.right)
        wide = max(right - left - 0.6, 0.4)
        said = f"{number(bar.left)} to {number(bar.right)}{x.unit}: {bar.height:,.0f}"
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{max(floor - top, 0):.1f}">'
            f"<title>{escape(said)}</title></rect>"
        )
    for mark in marks:
        at = across.at(mark.x)
        side = ("end", -5) if at > width * 0.7 else ("start", 5)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(
            f'<text class="name" x="{at + side[1]:.1f}" y="{_TOP + 12}" text-anchor="{side[0]}">'
            f"{escape(mark.name)}</text>"
        )
    for line in lines:
        parts += _line(line, x, y, across, up)
    return "".join([*parts, "</svg>", _legend(lines)])


def _grid(x: Axis, y: Axis, across: _Scale, up: _Scale, width: int, height: int) -> list[str]:
    floor, parts = height - _BOTTOM, []
    for tick in across.ticks():
        at = across.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{_tick(x, tick)}</text>')
    for tick in up.ticks():
        at = up.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    middle = (_TOP + floor) / 2
    parts.append(
        f'<text x="{(_LEFT + width - _RIGHT) / 2}" y="{height - 8}" text-anchor="middle">{escape(x.title)}</text>'
    )
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y.title)}</text>')
    return parts


def _line(line: Line, x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for where, pair in zip(line.x, line.band, strict=False):
        if pair:
            at = across.at(where)
            ends = f'y1="{up.at(pair[0]):.1f}" y2="{up.at(pair[1]):.1f}"'
            parts.append(f'<line class="band c{line.colour}" x1="{at:.1f}" x2="{at:.1f}" {ends}/>')
    path, is_down = [], False
    for where, value in zip(line.x, line.y, strict=True):
        if value is None:
            is_down = False
            continue
        path.append(f"{'L' if is_down else 'M'}{across.at(where):.1f} {up.at(value):.1f}")
        is_down = True
    if line.is_joined:
        parts.append(f'<path class="line c{line.colour}" d="{"".join(path)}"/>')
    for where, value in zip(line.x, line.y, strict=True):
        if value is not None:  # without dots too: where the pointer finds what to say
            kind, size = ("dot", 3) if line.has_dots else ("spot", 6)
            said = f"{line.name}: {number(value)}{y.unit} at {_tick(x, where)}{x.unit}"
            parts.append(
                f'<circle class="{kind} c{line.colour}" cx="{across.at(where):.1f}" cy="{up.at(value):.1f}" r="{size}">'
                f"<title>{escape(said)}</title></circle>"
            )
    last = (-LABEL_GAP, 0.0)
    for where, value, label in zip(line.x, line.y, line.labels, strict=False):
        if value is not None:
            here = (across.at(where), up.at(value))
            if math.dist(here, last) < LABEL_GAP:
                continue  # it would stand on the one before
            last = here
            parts.append(
                f'<text class="name" x="{across.at(where):.1f}" y="{up.at(value) + 16:.1f}" text-anchor="middle">'
                f"{escape(label)}</text>"
            )
    return parts


def _legend(lines: Sequence[Line]) -> str:
    if not any(line.name for line in lines):
        return ""
    words = [f'<span class="c{line.colour}"><i></i>{escape(line.name)}</span>' for line in lines]
    return f'<p class="legend">{"".join(words)}</p>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A ratio and its 95 % interval, None where it has none; `is_clear`: 1 is not within."""

    name: str
    value: float
    low: float | None
    high: float | None
    is_clear: bool


def intervals(found: Sequence[Interval], *, width: int = WIDTH) -> str:
    """Ratios under each other over one logarithmic axis, and a line at 1: no difference."""
    row, left = 34, 130
    height = len(found) * row + _BOTTOM
    ends = [end for one in found for end in (one.value, one.low, one.high) if end] + [0.9, 1.1]
    across = _Scale(Axis(title="", is_log=True), ends, left, width - 110)
    floor = height - _BOTTOM + 8
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="A over B with intervals">']
    for tick in across.ticks():
        at = across.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<line class="mark" x1="{across.at(1):.1f}" x2="{across.at(1):.1f}" y1="4" y2="{floor}"/>')
    for place, one in enumerate(found):
        y, colour = place * row + 22, "c2" if one.is_clear else "c1"
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(one.name)}</text>')
        said = f"{one.value:.3f}"
        if one.low is not None and one.high is not None:
            ends_x = f'x1="{across.at(one.low):.1f}" x2="{across.at(one.high):.1f}"'
            parts.append(f'<line class="whisker {colour}" {ends_x} y1="{y}" y2="{y}"/>')
            said += f" ({one.low:.3f} to {one.high:.3f})"
        parts.append(f'<circle class="dot {colour}" cx="{across.at(one.value):.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{width}" y="{y + 4}" text-anchor="end">{said}</text>')
    parts.append(f'<text x="{(left + width - 110) / 2}" y="{height - 6}" text-anchor="middle">A / B</text>')
    return "".join([*parts, "</svg>"])


def _tick(axis: Axis, value: float) -> str:
    return f"{value * 100:.10g} %" if axis.is_nines else number(value)


def number(value: float) -> str:
    """As short as an axis wants it."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.0e}"
