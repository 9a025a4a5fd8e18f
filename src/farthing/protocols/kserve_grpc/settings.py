"""Log and trace settings as messages: Triton's maps of values to plain ones and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from farthing.protocols.kserve_grpc.messages import message_class


def asked_log_settings(message: Any) -> dict[str, bool | int | str | None]:
    """The settings a `LogSettingsRequest` changes; None for one without a value."""
    found: dict[str, bool | int | str | None] = {}
    for name, setting in message.settings.items():
        kind = setting.WhichOneof("parameter_choice")
        found[name] = getattr(setting, kind) if kind is not None else None
    return found


def log_settings_message(values: Mapping[str, bool | int | str]) -> Any:
    """A `LogSettingsResponse`."""
    message = message_class("LogSettingsResponse")()
    for name, value in values.items():
        if isinstance(value, bool):
            message.settings[name].bool_param = value
        elif isinstance(value, int):
            message.settings[name].uint32_param = value
        else:
            message.settings[name].string_param = value
    return message


def asked_trace_settings(message: Any) -> dict[str, list[str]]:
    """The settings a `TraceSettingRequest` changes; an empty list for one without a value."""
    return {name: list(setting.value) for name, setting in message.settings.items()}


def trace_settings_message(values: Mapping[str, Sequence[str]]) -> Any:
    """A `TraceSettingResponse`."""
    message = message_class("TraceSettingResponse")()
    for name, strings in values.items():
        message.settings[name].value.extend(strings)
    return message
