"""Log lines: JSON objects for machines, plain text for a terminal, both on stderr, built on the standard `logging`.

The event loop only puts a record into a bounded queue; a thread of its own formats and writes, so that a slow disk or
a full pipe never holds up a request. A full queue drops records, counts them, and says so as soon as it can write
again. What is worth logging is up to each room: `logging.getLogger(__name__)` and `extra={"model": ...}`.
"""

import atexit
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Final, Literal, TextIO

import orjson

from farthing.types.errors import InvalidSetting

LogFormat = Literal["auto", "json", "text"]
FORMATS: Final[tuple[LogFormat, ...]] = ("auto", "json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")

QUEUE_RECORDS_MAX: Final = 8192
"""Records waiting to be written: some megabytes at worst, and a second of very talkative serving."""

MESSAGE_CHARS_MAX: Final = 16_384
"""Characters kept of one message, trace back or extra; container runtimes split lines at 16 KiB."""

STOP_TIMEOUT_S: Final = 2.0
"""How long `stop` waits for the last lines to be written before it gives up on a stuck stderr."""

ACCESS: Final = logging.getLogger("farthing.access")
"""One line a request, off unless `configure(access=True)`; ask `ACCESS.isEnabledFor(logging.INFO)` once, at start."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes every record has; all others were given as `extra`."""

_FIRST: Final = ("request_id", "trace_id", "model", "version")
"""Extras that come right after the message, in this order."""


class LogOutput:
    """The queue, the thread behind it and the number of records lost. Made by `configure`."""

    def __init__(self, write: Callable[[str], object], format_record: Callable[[logging.LogRecord], str]) -> None:
        self._write = write
        self._format = format_record
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_RECORDS_MAX)
        self._overflows = 0
        self._overflows_lock = threading.Lock()
        self._overflows_reported = 0
        self._write_failures = 0
        self._thread = threading.Thread(target=self._run, name="farthing-log", daemon=True)

    @property
    def dropped(self) -> int:
        """Records lost, to a full queue or to a stderr that is gone. For `Metrics(log_records_dropped=...)`."""
        return self._overflows + self._write_failures

    def start(self) -> None:
        self._thread.start()

    def put(self, record: logging.LogRecord) -> None:
        """Queues a record or drops it; never waits."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            with self._overflows_lock:
                self._overflows += 1

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Writes what is queued and ends; False if that did not happen in time. May be called twice."""
        if not self._thread.is_alive():
            return True
        deadline = time.monotonic() + timeout_s
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._emit(record)
            if self._queue.empty():
                self._report_drops()
        self._report_drops()

    def _emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self._format(record) + "\n")
        except (OSError, ValueError):
            # stderr is gone (closed pipe, full disk): there is nowhere to complain, but it counts as lost.
            self._write_failures += 1

    def _report_drops(self) -> None:
        overflows = self._overflows
        lost = overflows - self._overflows_reported
        if lost:
            self._overflows_reported = overflows
            message = f"{lost} log records were dropped because the log queue of {QUEUE_RECORDS_MAX} was full"
            self._emit(logging.makeLogRecord(_own_record(message, lost)))


class QueueHandler(logging.Handler):
    """Hands records to the output's thread, with everything that belongs to the caller's moment already settled."""

    def __init__(self, output: LogOutput) -> None:
        super().__init__()
        self._output = output

    def createLock(self) -> None:  # noqa: N802 (the name is `logging`'s)
        # Handling is one append to a thread-safe queue: no lock around it.
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        # A copy, because other handlers may want the arguments and frames that must not stay alive in the queue:
        # they hold tensors and requests, and may change before the thread looks.
        queued = copy(record)
        try:
            queued.msg = record.getMessage()
        except (TypeError, ValueError):
            # A log call with wrong arguments is our mistake, but losing the line would hide the one it reports.
            queued.msg = f"{record.msg!s} {record.args!r}"
        if record.exc_info and not record.exc_text:
            queued.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        queued.args = None
        queued.exc_info = None
        self._output.put(queued)


def configure(
    level: str = "info", log_format: LogFormat = "auto", *, access: bool = False, stream: TextIO | None = None
) -> LogOutput:
    """Sends all logging of this process through one bounded queue to stderr. Call it once, and `stop()` at the end.

    `level` counts for Farthing; libraries speak from WARNING up, or at `level` where that is higher.
    """
    if level not in LEVELS:
        raise InvalidSetting(f"log level `{level}` does not exist", hint=f"choose one of {', '.join(LEVELS)}")
    if log_format not in FORMATS:
        raise InvalidSetting(f"log format `{log_format}` does not exist", hint=f"choose one of {', '.join(FORMATS)}")
    target = sys.stderr if stream is None else stream
    use_json = log_format == "json" or (log_format == "auto" and not target.isatty())

    def write(line: str) -> None:
        target.write(line)
        target.flush()

    output = LogOutput(write, json_line if use_json else text_line)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, QueueHandler)]:
        root.removeHandler(handler)
    root.addHandler(QueueHandler(output))
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("farthing").setLevel(number)
    ACCESS.setLevel(logging.INFO if access else logging.CRITICAL + 1)
    logging.captureWarnings(capture=True)
    output.start()
    # Whoever dies without `stop` has reasons that somebody will want to read.
    atexit.register(output.stop)
    return output


def json_line(record: logging.LogRecord) -> str:
    """The record as one JSON object."""
    line: dict[str, Any] = {
        "time": _time(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _bounded(record.getMessage()),
    }
    line.update(_extras(record))
    if record.exc_text:
        line["exception"] = _bounded(record.exc_text)
    try:
        return orjson.dumps(line, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):
        # Lone surrogates, integers beyond 64 bits, cycles: rare enough to pay twice and keep the line.
        return orjson.dumps({key: _printable(str(value)) for key, value in line.items()}).decode()


def text_line(record: logging.LogRecord) -> str:
    """The record for a person: time of day, level, message, extras; further lines are indented."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.created))
    extras = "".join(f" {key}={_printable(_bounded(str(value)))}" for key, value in _extras(record).items())
    lines = [*_bounded(record.getMessage()).split("\n"), *_bounded(record.exc_text or "").split("\n")]
    # Indented, so that no text from a request can pass for a line of its own.
    message = "\n    ".join(_printable(line) for line in lines if line)
    return f"{clock}.{record.msecs:03.0f} {record.levelname:<7} {record.name}: {message}{extras}"


def _extras(record: logging.LogRecord) -> Mapping[str, Any]:
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD and value not in (None, "")}
    return {
        key: given[key] for key in (*(key for key in _FIRST if key in given), *(k for k in given if k not in _FIRST))
    }


def _time(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    micros = round(seconds * 1e6)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(micros // 1_000_000))}.{micros % 1_000_000:06d}Z"


def _plain(value: object) -> str:
    return _bounded(str(value))


def _bounded(text: str) -> str:
    extra = len(text) - MESSAGE_CHARS_MAX
    return text if extra <= 0 else f"{text[:MESSAGE_CHARS_MAX]}… ({extra} characters more)"


def _printable(text: str) -> str:
    """Control characters, line separators and lone surrogates as escapes; everything else as it is."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def _own_record(message: str, lost: int) -> dict[str, Any]:
    return {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": message, "dropped": lost}
