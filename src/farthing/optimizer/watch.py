"""How a search is watched, timed and stopped from outside."""

import time
from collections.abc import Callable

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What the search is doing, for whoever watches."""

    doing: str
    spent_s: float
    budget_s: float
    alive: int = 0
    """Settings still in the race."""
    best: str = ""
    best_rows_per_s: float = 0.0


OnEvent = Callable[[Event], None]


class Watch:
    """The time a search has, and who is told what it does with it."""

    def __init__(self, budget_s: float, on_event: OnEvent, is_stopped: Callable[[], bool]) -> None:
        self.budget_s = budget_s
        self._on_event = on_event
        self._is_stopped = is_stopped
        self._started = time.monotonic()

    def is_over(self, share: float = 1.0) -> bool:
        """Whether so much of the time has passed, or somebody said stop."""
        return self._is_stopped() or time.monotonic() - self._started > self.budget_s * share

    def say(self, doing: str, *, alive: int = 0, best: str = "", best_rows_per_s: float = 0.0) -> None:
        """Tells what is done now."""
        self._on_event(
            Event(
                doing=doing,
                spent_s=time.monotonic() - self._started,
                budget_s=self.budget_s,
                alive=alive,
                best=best,
                best_rows_per_s=best_rows_per_s,
            )
        )
