"""How a search is watched, timed and stopped from outside."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

LEADERS: Final = 6
"""Settings that an event tells of."""


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """How one of the best settings so far stands."""

    name: str
    rows_per_s: float
    answer_ms: float


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What the search is doing, for whoever watches."""

    doing: str
    why: str = ""
    """What it is good for."""
    found: str = ""
    """What has just come out; then nothing new is being done."""
    spent_s: float
    budget_s: float
    alive: int = 0
    """Settings still in the race."""
    best: str = ""
    best_rows_per_s: float = 0.0
    leaders: tuple[Leader, ...] = ()
    """The fastest so far, the first the best."""
    default_rows_per_s: float = 0.0


OnEvent = Callable[[Event], None]


class Stopped(Exception):
    """Somebody said stop in the middle of something; what was found before it stands."""


class Watch:
    """The time a search has, and who is told what it does with it."""

    def __init__(
        self, budget_s: float, on_event: OnEvent, is_stopped: Callable[[], bool], *, spent_s: float = 0.0
    ) -> None:
        """`spent_s` is what an earlier part of the same search has taken."""
        self.budget_s = budget_s
        self._on_event = on_event
        self.is_stopped = is_stopped
        self._started = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        """Of the search, earlier parts included."""
        return time.monotonic() - self._started

    def pass_on(self, event: Event) -> None:
        """Tells what a search inside this one tells, on this one's clock."""
        self._on_event(msgspec.structs.replace(event, spent_s=self.spent_s, budget_s=self.budget_s))

    def spent_before(self, seconds: float) -> None:
        """So much was spent by an earlier part of the same search."""
        self._started -= seconds

    def is_over(self, share: float = 1.0) -> bool:
        """Whether so much of the time has passed, or somebody said stop."""
        return self.is_stopped() or self.spent_s > self.budget_s * share

    def check(self) -> None:
        """Raises `Stopped` once somebody said stop; for the middle of what takes long."""
        if self.is_stopped():
            raise Stopped

    def say(
        self,
        doing: str,
        why: str = "",
        *,
        alive: int = 0,
        leaders: tuple[Leader, ...] = (),
        default_rows_per_s: float = 0.0,
    ) -> None:
        """Tells what is done now."""
        best = leaders[0] if leaders else None
        self._on_event(
            Event(
                doing=doing,
                why=why,
                spent_s=self.spent_s,
                budget_s=self.budget_s,
                alive=alive,
                best=best.name if best else "",
                best_rows_per_s=best.rows_per_s if best else 0.0,
                leaders=leaders,
                default_rows_per_s=default_rows_per_s,
            )
        )

    def tell(self, found: str) -> None:
        """Tells what came out."""
        self._on_event(Event(doing="", found=found, spent_s=self.spent_s, budget_s=self.budget_s))
