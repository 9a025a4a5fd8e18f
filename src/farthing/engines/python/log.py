"""What a worker prints, line by line into the server's log.

The worker's stdout and stderr are one pipe. `Pump` empties it whatever comes, so that a model that prints can
never block; what it passes on is bounded in length and rate. Lines of Python's `logging` carry their level in
front, behind a mark (`marked`).
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

LINE_BYTES_MAX: Final = 4096
"""A longer line is cut: a model that prints tensors would otherwise fill the log."""

LINES_PER_SECOND_MAX: Final = 500
"""More are counted and dropped: about what a person's terminal can show."""

LAST_LINES: Final = 20
"""Kept for the message when the process dies: a traceback's end, or what faulthandler says of a segfault."""

_MARK: Final = "\x1e"
_LEVELS: Final = {
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "C": logging.CRITICAL,
}
_LOG: Final = logging.getLogger("farthing.engines.python")


class MarkingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records so that the server finds their level again."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_MARK}{record.levelname[:1]}{super().format(record)}"


def parse_line(line: bytes) -> tuple[int, str]:
    """A line's level and text: printable, and no longer than allowed."""
    text = line[:LINE_BYTES_MAX].decode(errors="replace").rstrip()
    level = logging.INFO
    if text.startswith(_MARK):
        level, text = _LEVELS.get(text[1:2], logging.INFO), text[2:]
    if len(line) > LINE_BYTES_MAX:
        text += " … (cut)"
    return level, "".join(c if c.isprintable() or c == "\t" else "�" for c in text)


class Budget:
    """How many lines of a second are passed on. Pure but for its own count: the time is an argument."""

    def __init__(self, per_second_max: int = LINES_PER_SECOND_MAX) -> None:
        self._max = per_second_max
        self._second = -1
        self._count = 0
        self._dropped = 0

    def admit(self, now_s: float) -> tuple[bool, int]:
        """Whether a line may pass, and how many were dropped before it that have not been told of."""
        dropped = 0
        if int(now_s) != self._second:
            self._second, self._count = int(now_s), 0
            dropped, self._dropped = self._dropped, 0
        self._count += 1
        if self._count > self._max:
            self._dropped += 1
            return False, 0
        return True, dropped


class Pump:
    """Reads one worker's output until its end, on a thread of its own."""

    def __init__(self, fd: int, *, model: str, clock: Callable[[], float]) -> None:
        self._fd = fd
        self._model = model
        self._clock = clock
        self._budget = Budget()
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._thread = threading.Thread(target=self._read, name=f"log-{model}", daemon=True)
        self._thread.start()

    def last_lines(self, wait_s: float) -> list[str]:
        """The last lines, once the output has ended, or after the wait (a grandchild may keep it open)."""
        self._thread.join(wait_s)
        return list(self._last)

    def _read(self) -> None:
        rest = b""
        is_skipping = False  # the rest of a line that was cut already
        while data := os.read(self._fd, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not is_skipping:
                    self._pass_on(line)
                is_skipping = False
            if len(rest) > LINE_BYTES_MAX:
                if not is_skipping:
                    self._pass_on(rest)
                rest, is_skipping = b"", True
        if rest and not is_skipping:
            self._pass_on(rest)
        os.close(self._fd)

    def _pass_on(self, line: bytes) -> None:
        level, text = parse_line(line)
        if not text:
            return
        self._last.append(text)
        is_admitted, dropped = self._budget.admit(self._clock())
        if dropped:
            _LOG.warning("%s: %d lines dropped; at most %d a second", self._model, dropped, LINES_PER_SECOND_MAX)
        if is_admitted:
            _LOG.log(level, "%s: %s", self._model, text)
