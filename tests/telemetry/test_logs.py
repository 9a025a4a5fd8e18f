import io
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.telemetry import logs
from farthing.telemetry.logs import ACCESS, LogOutput, QueueHandler, configure, json_line, text_line
from farthing.types.errors import InvalidSetting

LOG = logging.getLogger("farthing.test")
MOMENT = 1_795_436_413.000042


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    watched = [logging.getLogger(), logging.getLogger("farthing"), ACCESS]
    before = [(logger, logger.level, logger.handlers.copy()) for logger in watched]
    yield
    logging.captureWarnings(capture=False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def record(message: str = "loaded", **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "farthing.test", "levelno": 20, "levelname": "INFO", "msg": message, "created": MOMENT, **extra}
    )


def parsed(line: str) -> dict[str, Any]:
    return msgspec.json.decode(line, type=dict[str, Any])


def test_a_json_line_has_the_fields_everyone_searches_by() -> None:
    line = json_line(record(version="1", model="mlp", rows=4, request_id="a-1", trace_id=""))
    assert "\n" not in line
    assert list(parsed(line).items()) == [
        ("time", "2026-11-23T12:20:13.000042Z"),
        ("level", "info"),
        ("logger", "farthing.test"),
        ("message", "loaded"),
        ("request_id", "a-1"),
        ("model", "mlp"),
        ("version", "1"),
        ("rows", 4),
    ]


def test_the_line_in_the_reference_is_what_is_written() -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference" / "logs-and-traces.md"
    line = json_line(record("model loaded", name="farthing.runtime", model="mlp", version="1", seconds=0.21))
    assert f"```json\n{line}\n```" in reference.read_text()


def test_a_text_line_is_for_people() -> None:
    line = text_line(record(model="mlp", msecs=42.0))
    assert line[8:] == ".042 INFO    farthing.test: loaded model=mlp"


def test_text_from_a_request_cannot_pass_for_a_line_of_its_own() -> None:
    line = text_line(record("no model `x`\n12:00:00.000 INFO    farthing: all is well\x1b[2J", model="a\nb"))
    assert [part[:4] for part in line.split("\n")[1:]] == ["    "]
    assert "\x1b" not in line
    assert line.endswith("model=a\\nb")


@given(
    st.text(),
    st.dictionaries(
        st.text("abcdefgh", min_size=9, max_size=12),
        st.text() | st.integers() | st.floats() | st.binary(max_size=5) | st.lists(st.integers(), max_size=3),
        max_size=4,
    ),
)
def test_whatever_is_logged_comes_out_as_one_json_object_on_one_line(message: str, extra: dict[str, object]) -> None:
    line = json_line(record(message, **extra))
    assert line.encode().count(b"\n") == 0
    assert parsed(line)["logger"] == "farthing.test"
    assert text_line(record(message, **extra)).isprintable() or "\n    " in text_line(record(message, **extra))


def test_a_very_long_message_is_cut_and_says_so() -> None:
    message = parsed(json_line(record("x" * (logs.MESSAGE_CHARS_MAX + 5))))["message"]
    assert message.endswith("x… (5 characters more)")


def test_logging_goes_through_the_queue_to_the_stream_with_exceptions_and_extras() -> None:
    stream = io.StringIO()
    output = configure("info", "json", stream=stream)
    LOG.debug("not this")
    LOG.info("model %s loaded", "mlp", extra={"model": "mlp", "version": "1"})
    try:
        raise OSError("disk on fire")
    except OSError:
        LOG.exception("could not load")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    assert output.stop()
    lines = [parsed(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "model mlp loaded"),
        ("error", "could not load"),
        ("warning", "trouble"),
    ]
    assert lines[0]["model"] == "mlp"
    assert lines[1]["exception"].endswith("OSError: disk on fire")
    assert output.dropped == 0


def test_a_log_call_with_wrong_arguments_still_leaves_a_line() -> None:
    stream = io.StringIO()
    output = configure("info", "json", stream=stream)
    # To our handler alone: pytest's own raises at such a call.
    QueueHandler(output).handle(record("%d rows", args=("four",)))
    assert output.stop()
    assert parsed(stream.getvalue())["message"] == "%d rows ('four',)"


def test_auto_means_text_on_a_terminal_and_json_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for stream in (Terminal(), io.StringIO()):
        output = configure("info", "auto", stream=stream)
        LOG.info("hello")
        assert output.stop()
        shown.append(stream.getvalue()[0])
    assert shown[0].isdigit()
    assert shown[1] == "{"


def test_the_access_log_is_off_unless_asked_for() -> None:
    configure("debug", "json", stream=io.StringIO()).stop()
    assert not ACCESS.isEnabledFor(logging.INFO)
    configure("debug", "json", access=True, stream=io.StringIO()).stop()
    assert ACCESS.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(("level", "log_format"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_names_the_ones_there_are(level: str, log_format: Any) -> None:
    with pytest.raises(InvalidSetting, match="choose one of"):
        configure(level, log_format)


def test_a_full_queue_drops_at_once_counts_and_says_so_when_it_can_write_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "QUEUE_RECORDS_MAX", 3)
    is_stuck, go_on = threading.Event(), threading.Event()
    written: list[str] = []

    def write(line: str) -> None:
        is_stuck.set()
        go_on.wait()
        written.append(line)

    output = LogOutput(write, text_line)
    output.start()
    handler = QueueHandler(output)
    handler.handle(record("first"))
    is_stuck.wait()
    for number in range(10):
        handler.handle(record(f"queued {number}"))
    assert output.dropped == 7
    go_on.set()
    assert output.stop()
    assert [line.rpartition(": ")[2].strip() for line in written] == [
        "first",
        "queued 0",
        "queued 1",
        "queued 2",
        "7 log records were dropped because the log queue of 3 was full dropped=7",
    ]


def test_a_stream_that_is_gone_costs_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    output = configure("info", "json", stream=stream)
    stream.close()
    LOG.info("into the void")
    assert output.stop()
    assert output.dropped == 1


def test_stopping_does_not_wait_for_a_stuck_stream_for_ever() -> None:
    go_on = threading.Event()
    output = LogOutput(lambda _line: go_on.wait(), text_line)
    output.start()
    output.put(record())
    assert not output.stop(timeout_s=0.01)
    go_on.set()


def test_what_is_queued_holds_no_arguments_or_frames_alive_and_other_handlers_still_have_them() -> None:
    stream, seen = io.StringIO(), []
    output = LogOutput(stream.write, lambda queued: f"{queued.args} {queued.exc_info} {queued.getMessage()}")
    output.start()
    entry = record("%s", args=("tensor",))
    QueueHandler(output).handle(entry)
    seen.append(entry.getMessage())
    assert output.stop()
    assert stream.getvalue() == "None None tensor\n"
    assert (seen, entry.args) == (["tensor"], ("tensor",))


def test_a_real_process_writes_json_to_stderr_and_nothing_to_stdout() -> None:
    program = (
        "import logging\n"
        "from farthing.telemetry.logs import configure\n"
        "output = configure('info', 'auto')\n"
        "logging.getLogger('farthing.x').info('up', extra={'model': 'mlp'})\n"
        "output.stop()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == ""
    line = parsed(done.stderr)
    assert (line["message"], line["model"], line["logger"]) == ("up", "mlp", "farthing.x")


def test_a_process_that_dies_still_writes_its_last_lines() -> None:
    program = (
        "import logging\n"
        "from farthing.telemetry.logs import configure\n"
        "configure('info', 'json')\n"
        "for number in range(100): logging.getLogger('farthing.x').info('line %d', number)\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert done.returncode == 3
    assert [parsed(line)["message"] for line in done.stderr.splitlines()] == [f"line {n}" for n in range(100)]
