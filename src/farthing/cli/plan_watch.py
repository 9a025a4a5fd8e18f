"""A search as it is watched: what is being tried and why, what came out, who leads.

On a terminal a small board that is drawn again and again; elsewhere a line for each new thing.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farthing.optimizer.watch import Event, OnEvent

BAR: Final = 28
"""Characters of the longest bar."""

FOUND_KEPT: Final = 6
"""Lines of what came out that stay on the board."""

DRAWN_S: Final = 0.1


@contextmanager
def watching() -> Iterator["OnEvent"]:
    """Shows events on stderr for as long as it lasts."""
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        console.soft_wrap = True
        yield _lines(console)
        return
    from rich.live import Live

    board = Board()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        drawn = [0.0]

        def show(event: "Event") -> None:
            board.take(event)
            now = time.monotonic()
            if event.found or now - drawn[0] > DRAWN_S:
                drawn[0] = now
                live.update(board.drawn(), refresh=True)

        yield show


def _lines(console: Any) -> "OnEvent":
    said = [""]

    def line(event: "Event") -> None:
        text = event.found or event.doing
        if text.startswith("timing "):
            text = f"timing {event.alive} settings" if event.alive else text
        if text != said[0]:
            said[0] = text
            console.print(f"{event.spent_s:5.0f} s  {text}", markup=False)

    return line


class Board:
    """What a person looks at while a search goes on."""

    def __init__(self) -> None:
        self._now: Event | None = None
        self._found: deque[str] = deque(maxlen=FOUND_KEPT)

    def take(self, event: "Event") -> None:
        """One more event."""
        if event.found:
            self._found.append(event.found)
        else:
            self._now = event

    def drawn(self) -> "RenderableType":
        """The board, to be printed by rich."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        event = self._now
        if event is None:
            return Text("")
        head = Table.grid(padding=(0, 1))
        left = max(0.0, event.budget_s - event.spent_s)
        bar = ProgressBar(
            total=event.budget_s, completed=min(event.spent_s, event.budget_s), width=BAR, complete_style="cyan"
        )
        alive = f"   {event.alive} settings still in the race" if event.alive else ""
        head.add_row(bar, Text(f"{left:.0f} s left at most, Ctrl-C takes the best so far{alive}", style="dim"))
        lines = Table.grid(padding=(0, 2))
        for found in self._found:
            style = "green" if " is right" in found else "dim"
            lines.add_row(
                Text("✓" if " is right" in found else "✗" if " is out" in found else "·", style), Text(found, style)
            )
        now = Text.assemble(("▸ ", "bold cyan"), (event.doing, "bold"), (f"  {event.why}" if event.why else "", "dim"))
        return Group(head, lines, now, self._leaders(event))

    def _leaders(self, event: "Event") -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        if not event.leaders:
            return table
        best = event.leaders[0].rows_per_s
        for place, leader in enumerate(event.leaders):
            bar = "█" * max(1, round(BAR * leader.rows_per_s / best))
            times = f"{leader.rows_per_s / event.default_rows_per_s:.1f} x" if event.default_rows_per_s else ""
            style = "bold green" if place == 0 else ""
            table.add_row(
                Text(bar, "green" if place == 0 else "blue"),
                Text(f"{leader.rows_per_s:,.0f}/s" if best > 10 else f"{leader.rows_per_s:.2f}", style),
                Text(times, style),
                Text(f"{leader.answer_ms:.3g} ms" if leader.answer_ms else "", "dim"),
                Text(leader.name, style),
            )
        return table
