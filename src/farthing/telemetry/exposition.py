"""Prometheus' text format 0.0.4, written line by line.

Ours rather than the client library's: that one cannot write a counter without the suffix `_total`, which Triton's
names do not have, and importing it takes a fifth of the time a server has to start. The tests read everything back
with the library's parser. Which metrics exist and what they mean belongs to `catalogue`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, Literal, NamedTuple

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """One metric: what `# HELP` and `# TYPE` say of it, and its unit for the reference."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    unit: str
    help: str


def label_text(names: Sequence[str], values: Sequence[str]) -> str:
    """`name="value"` pairs, escaped; computed once and shared by all samples that carry the same labels."""
    assert len(names) == len(values), (names, values)
    return ",".join(f'{name}="{_escape_value(value)}"' for name, value in zip(names, values, strict=True))


class ExpositionWriter:
    """Collects lines family by family; samples follow the family they belong to, as the format demands."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._family: Family | None = None

    def family(self, family: Family) -> None:
        """Begins a family. Its samples come next."""
        self._family = family
        self._lines.append(f"# HELP {family.name} {_escape_help(family.help)}\n")
        self._lines.append(f"# TYPE {family.name} {family.type}\n")

    def sample(self, labels: str, value: float) -> None:
        """A value of the counter or gauge begun last."""
        assert self._family is not None
        name = self._family.name
        self._lines.append(f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n")

    def histogram(self, labels: str, bounds: Sequence[float], buckets: Sequence[int], total: float) -> None:
        """A histogram from plain (not cumulative) bucket counts; the last bucket has no upper bound."""
        assert self._family is not None
        assert len(buckets) == len(bounds) + 1, (len(buckets), len(bounds))
        name = self._family.name
        prefix = f"{labels}," if labels else ""
        running = list(accumulate(buckets))
        for bound, count in zip((*map(_number, bounds), "+Inf"), running, strict=True):
            self._lines.append(f'{name}_bucket{{{prefix}le="{bound}"}} {count}\n')
        braces = f"{{{labels}}}" if labels else ""
        self._lines.append(f"{name}_sum{braces} {_number(total)}\n{name}_count{braces} {running[-1]}\n")

    def text(self) -> bytes:
        return "".join(self._lines).encode()


def _number(value: float) -> str:
    # repr of a float is Go's shortest form as well; inf and nan never get here, all our values are measured.
    return repr(value)


def _escape_value(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
