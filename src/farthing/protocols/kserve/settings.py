"""Bodies of the trace and logging extensions: settings by name, read into what `telemetry` takes and back."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from farthing.protocols.kserve.messages import BodyParser

LogValue = bool | int | str

_logs: Final = BodyParser(dict[str, bool | int | str | None], "log settings")
_traces: Final = BodyParser(dict[str, str | list[str] | None], "trace settings")


def parse_log_settings(body: bytes | memoryview) -> Mapping[str, LogValue | None]:
    """The body of `POST /v2/logging`. Raises `InvalidInput`."""
    return _logs.parse(body)


def parse_trace_settings(body: bytes | memoryview) -> Mapping[str, Sequence[str]]:
    """The body of `POST /v2/trace/setting`: null stands for no value. Raises `InvalidInput`."""
    asked = _traces.parse(body)
    return {
        name: () if value is None else [value] if isinstance(value, str) else value for name, value in asked.items()
    }


def trace_settings_json(settings: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Trace settings as Triton writes them: `trace_level` is a list, everything else one string."""
    return {name: list(values) if name == "trace_level" else values[0] for name, values in settings.items()}
