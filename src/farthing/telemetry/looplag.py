"""How late does the event loop get to things? The one number that shows a blocked loop from outside.

A callback asks to be called after an interval and records how much later it was. What to do about a slow loop is
nobody's business here.
"""

import asyncio
from typing import Final

from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.counters import DurationHistogram

INTERVAL_S: Final = 0.25
"""Seconds between two looks: four a second cost nothing measurable and see every stall that a person would feel."""


class LoopLag:
    """Measures the running loop from `start` to `stop`; `histogram` holds what was seen."""

    def __init__(self, clock: Clock | None = None, interval_s: float = INTERVAL_S) -> None:
        self.histogram = DurationHistogram()
        self._clock = clock or MonotonicClock()
        self._interval_s = interval_s
        self._interval_ns = round(interval_s * 1e9)
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._timer is None, "already started"
        self._schedule(loop)

    def stop(self) -> None:
        """Looks no more; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_ns = self._clock.now_ns() + self._interval_ns
        self._timer = loop.call_later(self._interval_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # Loops round timers to a millisecond and may fire early by that much; that is no lag.
        self.histogram.observe(max(0, self._clock.now_ns() - self._due_ns))
        self._schedule(loop)
