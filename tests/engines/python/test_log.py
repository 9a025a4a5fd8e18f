"""A worker's output reaches the log by line and level, bounded in length and rate."""

import logging
import os
import time

import pytest

from farthing.engines.python.log import LAST_LINES, LINE_BYTES_MAX, Budget, MarkingHandler, Pump, parse_line


def test_a_marked_line_keeps_its_level_and_others_are_info() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "mind %s", ("it",), None)
    line = MarkingHandler().format(record).encode()
    assert parse_line(line) == (logging.WARNING, "mind it")
    assert parse_line(b"plain\r") == (logging.INFO, "plain")


def test_a_line_is_cut_and_made_printable() -> None:
    _, text = parse_line(b"\x1b[31m" + b"x" * 2 * LINE_BYTES_MAX)
    assert text.startswith("�[31mx")
    assert text.endswith("… (cut)")
    assert len(text) <= LINE_BYTES_MAX + 8


def test_lines_over_the_rate_are_dropped_and_counted() -> None:
    budget = Budget(per_second_max=2)
    assert [budget.admit(5.0)[0] for _ in range(5)] == [True, True, False, False, False]
    assert budget.admit(6.1) == (True, 3)
    assert budget.admit(6.2) == (True, 0)


def test_the_pump_reads_to_the_end_and_remembers_the_last_lines(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    with caplog.at_level(logging.INFO):
        pump = Pump(reading, model="m", clock=time.monotonic)
        text = b"".join(b"line %d\n" % i for i in range(40)) + b"y" * 3 * LINE_BYTES_MAX + b"\nlast, unended"
        os.write(writing, text)
        os.close(writing)
        lines = pump.last_lines(5.0)
    assert len(lines) == LAST_LINES
    assert lines[-3] == "line 39"
    assert lines[-2].startswith("yyy")
    assert lines[-1] == "last, unended"
    assert "m: line 0" in caplog.messages
