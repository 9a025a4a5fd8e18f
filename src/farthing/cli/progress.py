"""Showing a pull at work, on stderr: bars on a terminal, one line a step elsewhere."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from farthing.repository.samples.progress import Step


class PullProgress:
    """Called with each `Step` of a pull; a context, so that the terminal is left as it was found."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars: Progress | None = None
        self._lines: dict[str, TaskID] = {}
        self._said: tuple[str, str] = ("", "")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[doing]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, step: Step) -> None:
        if self._bars is None:
            if (step.sample, step.doing) != self._said:
                self._said = (step.sample, step.doing)
                size = f", {step.total_bytes / 1e6:.1f} MB" if step.total_bytes and not step.done_bytes else ""
                self._console.print(f"{step.sample}: {step.doing}{size}")
            return
        if step.sample not in self._lines:
            self._lines[step.sample] = self._bars.add_task(step.sample, doing="", total=None)
        line = self._lines[step.sample]
        self._bars.update(line, doing=step.doing)
        if step.total_bytes:
            self._bars.update(line, completed=step.done_bytes, total=step.total_bytes)
