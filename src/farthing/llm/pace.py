"""How many rows may a step have, so that nobody waits long for the next one?

A step that reads prompts keeps everyone who decodes waiting, and everyone whose prompt is not in it. More rows a step
use the processor better, up to a point, so a step gets as many as take `STEP_NS` at the rate measured so far, and twice
as many where more read than decode: then most gain by whatever brings all prompts to their end. Who is alone is not
paced: nobody waits.
"""

from typing import Final

from msgspec.structs import replace

from farthing.llm.scheduler import Limits

STEP_NS: Final = 40_000_000
"""A reader takes in some 25 tokens a second at most; a pause of 40 ms among them is not seen."""

LONG_STEPS: Final = 2
"""So many times `STEP_NS` where most wait for their first token."""

PROMPT_ROWS_MIN: Final = 64
"""Rows for prompts in every step, however slow the model is: fewer waste most of a pass over its weights."""

ROWS_GRAIN: Final = 32
"""Rows change by so many, so that noise does not change them at each step."""

WEIGHT: Final = 0.1
"""Of the newest step in the rate."""


class Pace:
    """The limits of the next step. One owner, one thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Where most decode."""
        self._long = limits
        self._rows_max = limits.step_tokens
        self._rows_min = min(limits.sequences_max + PROMPT_ROWS_MIN, limits.step_tokens)
        self._row_ns = 0.0

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """A step of so many rows took so long. Small ones say nothing of the rate of large ones."""
        if rows < PROMPT_ROWS_MIN:
            return
        row_ns = max(elapsed_ns, 1) / rows
        self._row_ns += (WEIGHT if self._row_ns else 1.0) * (row_ns - self._row_ns)
        self.limits = self._of(self.limits, STEP_NS)
        self._long = self._of(self._long, LONG_STEPS * STEP_NS)

    def limits_for(self, *, decoding: int, reading: int) -> Limits:
        """Of a step for which so many want their next token, and so many the rest of their prompt."""
        return self._long if reading > decoding else self.limits

    def _of(self, limits: Limits, step_ns: int) -> Limits:
        rows = int(step_ns / self._row_ns) // ROWS_GRAIN * ROWS_GRAIN
        rows = min(max(rows, self._rows_min), self._rows_max)
        return limits if rows == limits.step_tokens else replace(limits, step_tokens=rows)
