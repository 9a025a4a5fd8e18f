"""Log settings: told, checked, and honoured."""

import io
import logging
from collections.abc import Iterator

import pytest

from farthing.telemetry.log_settings import LogSettings
from farthing.telemetry.logs import LogOutput, QueueHandler, configure
from farthing.types.errors import InvalidInput, Unsupported


@pytest.fixture
def lines() -> Iterator[tuple[LogOutput, io.StringIO]]:
    root, ours = logging.getLogger(), logging.getLogger("farthing")
    before = root.level, ours.level, list(root.handlers)
    stream = io.StringIO()
    output = configure("info", "text", stream=stream)
    yield output, stream
    output.stop()
    for handler in [handler for handler in root.handlers if isinstance(handler, QueueHandler)]:
        root.removeHandler(handler)
    root.setLevel(before[0])
    ours.setLevel(before[1])


def said(lines: tuple[LogOutput, io.StringIO]) -> str:
    log = logging.getLogger("farthing.somewhere")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, logging.getLevelName(level))
    logging.getLogger("library").warning("LIBRARY")
    lines[0].stop()
    return " ".join(
        word for word in ("DEBUG", "INFO", "WARNING", "ERROR", "LIBRARY") if f": {word}" in lines[1].getvalue()
    )


def test_the_level_chosen_at_start_is_told(lines: tuple[LogOutput, io.StringIO]) -> None:
    found = LogSettings().current()
    assert (found["log_info"], found["log_warning"], found["log_error"], found["log_verbose_level"]) == (
        True,
        True,
        True,
        0,
    )
    assert said(lines) == "INFO WARNING ERROR LIBRARY"


@pytest.mark.parametrize(
    ("wanted", "heard"),
    [
        ({"log_verbose_level": 1}, "DEBUG INFO WARNING ERROR LIBRARY"),
        ({"log_info": False}, "WARNING ERROR LIBRARY"),
        ({"log_warning": False}, "INFO ERROR LIBRARY"),
        ({"log_info": False, "log_warning": False, "log_error": False}, "LIBRARY"),
        ({"log_info": None}, "INFO WARNING ERROR LIBRARY"),
    ],
)
def test_each_severity_has_its_switch(
    lines: tuple[LogOutput, io.StringIO], wanted: dict[str, bool | int | str | None], heard: str
) -> None:
    settings = LogSettings()
    settings.update(wanted)
    assert {
        name: value for name, value in settings.current().items() if name in wanted and wanted[name] is not None
    } == {name: value for name, value in wanted.items() if value is not None}
    assert said(lines) == heard


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"log_info": 1}, InvalidInput),
        ({"log_verbose_level": True}, InvalidInput),
        ({"log_verbose_level": -1}, InvalidInput),
        ({"log_file": "/etc/passwd"}, Unsupported),
        ({"log_format": "default"}, Unsupported),
        ({"no_such": 1}, InvalidInput),
    ],
)
def test_all_is_checked_before_anything_is_changed(
    wanted: dict[str, bool | int | str | None], error: type[Exception]
) -> None:
    settings = LogSettings()
    before = settings.current()
    with pytest.raises(error):
        settings.update({"log_error": not before["log_error"], **wanted})
    assert settings.current() == before
