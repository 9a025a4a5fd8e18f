"""What time is it? Asked through a seam, so that tests and simulations can turn the hands themselves.

All waiting in the house is measured on a monotonic clock in integer nanoseconds; wall-clock time appears only in
what people and other machines read (logs, `last_inference`), and those ask the system themselves.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that never goes back. Only differences of its readings mean anything."""

    def now_ns(self) -> int: ...


class MonotonicClock:
    """The machine's clock."""

    # The builtin itself, not a method around it: the hot path reads the clock several times a request.
    now_ns = staticmethod(time.monotonic_ns)


class ManualClock:
    """A clock that stands still until told otherwise, for tests and simulations."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, *, ns: int = 0, us: int = 0, ms: int = 0, s: float = 0) -> int:
        """Moves the hands forward by the sum of what is given; answers the new time."""
        step_ns = ns + us * 1_000 + ms * 1_000_000 + round(s * 1_000_000_000)
        if step_ns < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-step_ns} ns")
        self._now_ns += step_ns
        return self._now_ns
