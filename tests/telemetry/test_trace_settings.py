"""Trace settings: told, checked, and honoured."""

import pytest

from farthing.telemetry.trace_settings import TraceSettings
from farthing.types.errors import InvalidInput, Unsupported


def begun(settings: TraceSettings, requests: int) -> int:
    return sum(settings.begins() for _ in range(requests))


def test_what_was_chosen_at_start_holds_until_something_else_is_set() -> None:
    assert begun(TraceSettings(has_sink=True, ratio=1.0), 10) == 10
    assert begun(TraceSettings(has_sink=True, ratio=0.0), 10) == 0
    assert begun(TraceSettings(has_sink=False, ratio=1.0), 10) == 0
    assert TraceSettings(has_sink=True, ratio=0.01).current()["trace_rate"] == ["100"]
    assert TraceSettings(has_sink=False).current()["trace_level"] == ["OFF"]


def test_one_request_in_so_many_until_so_many_traces() -> None:
    settings = TraceSettings(has_sink=True)
    settings.update({"trace_rate": ["4"], "trace_count": ["3"]})
    assert begun(settings, 8) == 2
    assert settings.current()["trace_count"] == ["1"]
    assert begun(settings, 100) == 1
    settings.update({"trace_count": []})
    assert begun(settings, 100) == 25
    settings.update({"trace_level": ["OFF"]})
    assert begun(settings, 100) == 0


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"trace_rate": ["0"]}, InvalidInput),
        ({"trace_rate": ["1", "2"]}, InvalidInput),
        ({"trace_rate": ["9" * 5000]}, InvalidInput),
        ({"trace_count": ["-2"]}, InvalidInput),
        ({"trace_count": ["1-"]}, InvalidInput),
        ({"trace_level": ["ALL"]}, InvalidInput),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, InvalidInput),
        ({"trace_file": ["/etc/passwd"]}, Unsupported),
        ({"trace_mode": ["triton"]}, Unsupported),
        ({"no_such": ["1"]}, InvalidInput),
    ],
)
def test_all_is_checked_before_anything_is_changed(wanted: dict[str, list[str]], error: type[Exception]) -> None:
    settings = TraceSettings(has_sink=True)
    before = settings.current()
    with pytest.raises(error):
        settings.update({"trace_count": ["7"], **wanted})
    assert settings.current() == before


def test_tracing_wants_somewhere_to_send_traces_to() -> None:
    with pytest.raises(Unsupported, match="nowhere to send"):
        TraceSettings(has_sink=False).update({"trace_level": ["TIMESTAMPS"]})
