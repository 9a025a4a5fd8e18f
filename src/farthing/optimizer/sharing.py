"""Several models on one machine: which ways of sharing it are tried, and how good one is.

A way gives each model threads and instances; together they may ask for more cores than there are, for models that take
turns are often faster than models that are fenced in. How good it is: the geometric mean of what each model does, in
parts of what it does alone. That is Nash's bargain ("The Bargaining Problem", Econometrica 18, 1950): it needs no
prices and no traffic, and nobody is starved for the others' sake. Pure; `optimizer.joint` carries it out.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Final

import msgspec

from farthing.optimizer.race import Turn

WAYS_MAX: Final = 48
"""Tried in the first round; a turn of each is half a second."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What one model is given."""

    threads: int
    """Of one instance."""
    instances: int
    rows: int
    """Of a batch."""

    @property
    def name(self) -> str:
        """Such as `2 x 1 thread, 8 rows`."""
        wide = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        return f"{self.instances} x {wide}, {self.rows} row" + ("s" if self.rows != 1 else "")


Way = tuple[Shape, ...]
"""A shape for each model, in their order."""


def name_of(way: Way) -> str:
    """Such as `1 x 2 threads, 8 rows | 1 x 1 thread, 1 row`."""
    return " | ".join(shape.name for shape in way)


def ways_to_share(planned: Way, cores: int) -> list[Way]:
    """Ways worth trying, the first each model as it was planned alone.

    Every model may have all cores, some or one, in wide or narrow instances, and batches as planned, or of a quarter,
    for targets that the company of others would break. All combinations, where these are few; else those that differ
    from the plans, or from one core each, in one model.
    """
    choices = [_shapes(shape, cores) for shape in planned]
    if math.prod(len(shapes) for shapes in choices) <= WAYS_MAX:
        ways = list(product(*choices))
    else:
        narrow = tuple(Shape(threads=1, instances=1, rows=shape.rows) for shape in planned)
        ways = [narrow, *_neighbours(planned, choices), *_neighbours(narrow, choices)]
    ways.sort(key=lambda way: (_is_over(way, cores), sum(s.threads * s.instances for s in way)))
    kept = [planned, *(way for way in dict.fromkeys(ways) if way != planned)]
    return kept[:WAYS_MAX]


def goodness(rates: Sequence[float], alone: Sequence[float]) -> float:
    """The geometric mean of rates in parts of those alone."""
    logs = [math.log(max(rate, 1e-9) / max(best, 1e-9)) for rate, best in zip(rates, alone, strict=True)]
    return math.exp(sum(logs) / len(logs))


def as_turn(together: Sequence[Turn], alone: Sequence[float], answer_ms_max: Sequence[float | None]) -> Turn:
    """One turn of a way in the words of `optimizer.race`: goodness for a rate, and for a time to answer the worst share
    of a model's allowance, so that a race's target is 1."""
    used = [
        2 * turn.run_ms_p99 / allowed if allowed else 0.0 for turn, allowed in zip(together, answer_ms_max, strict=True)
    ]
    return Turn(
        rows_per_s=goodness([turn.rows_per_s for turn in together], alone),
        run_ms_p99=max(used) / 2,
        runs=sum(turn.runs for turn in together),
    )


def shares(parts: Sequence[float]) -> list[float]:
    """What each model costs, in parts of the machine: by what it does of what it could do alone."""
    return [part / sum(parts) for part in parts]


def _shapes(planned: Shape, cores: int) -> list[Shape]:
    given = {(planned.threads, planned.instances): None}
    used = cores
    while used >= 1:
        given |= {(used, 1): None, (1, used): None}
        used //= 2
    rows = dict.fromkeys((planned.rows, max(1, planned.rows // 4)))
    return [Shape(threads=t, instances=i, rows=r) for r in rows for t, i in given]


def _neighbours(way: Way, choices: Sequence[Sequence[Shape]]) -> list[Way]:
    return [
        (*way[:at], shape, *way[at + 1 :]) for at, shapes in enumerate(choices) for shape in shapes if shape != way[at]
    ]


def _is_over(way: Way, cores: int) -> bool:
    return sum(shape.threads * shape.instances for shape in way) > cores
