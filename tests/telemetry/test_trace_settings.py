"""Trace settings: told, checked, and honoured."""

import pytest

from farthing.telemetry.trace_settings import TraceSettings
from farthing.types.errors import InvalidInput, Unsupported


def begun(settings: TraceSettings, requests: int, model: str = "") -> int:
    return sum(settings.begins(model) for _ in range(requests))


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
        ({"log_frequency": ["-1"]}, InvalidInput),
        ({"trace_level": ["ALL"]}, InvalidInput),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, InvalidInput),
        ({"trace_file": ["/etc/passwd"]}, Unsupported),
        ({"trace_mode": ["triton"]}, Unsupported),
        ({"no_such": ["1"]}, InvalidInput),
    ],
)
def test_all_is_checked_before_anything_is_changed(wanted: dict[str, list[str]], error: type[Exception]) -> None:
    settings = TraceSettings(has_sink=True)
    for model in ("", "mlp"):
        before = settings.current(model)
        with pytest.raises(error):
            settings.update({"trace_count": ["7"], **wanted}, model)
        assert settings.current(model) == before


def test_a_model_has_settings_of_its_own_until_they_are_dropped() -> None:
    settings = TraceSettings(has_sink=True)
    settings.update({"trace_rate": ["2"], "log_frequency": ["3"]})
    settings.update({"trace_rate": ["5"]}, "mlp")
    assert (begun(settings, 10, "mlp"), begun(settings, 10, "other")) == (2, 5)
    assert settings.current("mlp") == {**settings.current(), "trace_rate": ["5"]}
    settings.update({"log_frequency": ["7"]})
    assert (settings.export_after("mlp"), settings.export_after("other")) == (7, 7), (
        "what it leaves out is the server's"
    )
    settings.update({"trace_level": ["OFF"]}, "mlp")
    assert begun(settings, 100, "mlp") == 0
    settings.update({"trace_rate": [], "trace_level": []}, "mlp")
    assert settings.current("mlp") == settings.current()
    settings.update({"trace_level": ["OFF"]})
    assert begun(settings, 100, "mlp") == 0


def test_a_count_of_a_models_own_goes_on_when_other_settings_change() -> None:
    settings = TraceSettings(has_sink=True)
    settings.update({"trace_count": ["3"]}, "mlp")
    assert begun(settings, 2, "mlp") == 2
    settings.update({"log_frequency": ["9"]})
    assert settings.current("mlp")["trace_count"] == ["1"]
    settings.update({"trace_rate": ["1"]}, "mlp")
    assert begun(settings, 10, "mlp") == 1
    assert settings.current()["trace_count"] == ["-1"]
    settings.update({"trace_count": ["4"]})
    settings.update({"trace_count": []}, "mlp")
    assert begun(settings, 3, "mlp") + begun(settings, 3, "other") == 4, "without its own it shares the server's"


def test_tracing_wants_somewhere_to_send_traces_to() -> None:
    with pytest.raises(Unsupported, match="nowhere to send"):
        TraceSettings(has_sink=False).update({"trace_level": ["TIMESTAMPS"]})
