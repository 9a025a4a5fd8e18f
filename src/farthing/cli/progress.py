"""Showing a pull at work, on stderr: bars on a terminal, one line a step elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from farthing.repository.samples.progress import Progress, Step


@contextmanager
def progress_shown() -> Iterator[Progress]:
    """What to call with each step of a pull; afterwards the terminal is as it was found."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("{task.fields[doing]}"), console=console) as bars:
        yield _OnBars(bars)


class _Lines:
    """A line for each new thing that is done: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ("", "")

    def __call__(self, step: Step) -> None:
        if (step.sample, step.doing) != self._said:
            self._said = (step.sample, step.doing)
            size = f", {step.total_bytes / 1e6:.1f} MB" if step.total_bytes and not step.done_bytes else ""
            self._console.print(f"{step.sample}: {step.doing}{size}")


class _OnBars:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: Step) -> None:
        if step.sample not in self._tasks:
            self._tasks[step.sample] = self._bars.add_task(step.sample, doing="", total=None)
        task = self._tasks[step.sample]
        self._bars.update(task, doing=step.doing)
        if step.total_bytes:
            self._bars.update(task, completed=step.done_bytes, total=step.total_bytes)
