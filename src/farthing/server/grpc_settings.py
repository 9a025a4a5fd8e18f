"""`TraceSetting` and `LogSettings`; who may change what is `server.settings`' to say."""

from typing import Any

from farthing.protocols.kserve_grpc import (
    SERVICE,
    asked_log_settings,
    asked_trace_settings,
    log_settings_message,
    message_class,
    trace_settings_message,
)
from farthing.server.auth import Door
from farthing.server.grpc_call import Call, Rpc
from farthing.server.settings import Settings
from farthing.telemetry.counters import RouteClass


class GrpcSettings:
    """The handlers of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rpcs(self) -> list[Rpc]:
        """Both RPCs."""

        def rpc(name: str, handler: Any, kind: RouteClass) -> Rpc:
            path = f"/{SERVICE}/{name}"
            return Rpc(path, lambda: message_class(f"{name}Request"), handler, Door.CONTROL, kind)

        return [
            rpc("TraceSetting", self.traces, RouteClass.TRACE),
            rpc("LogSettings", self.logs, RouteClass.LOGGING),
        ]

    def logs(self, message: Any, call: Call) -> Any:
        """`LogSettings`."""
        return log_settings_message(self._settings.logs(asked_log_settings(message) if message.settings else {}))

    def traces(self, message: Any, call: Call) -> Any:
        """`TraceSetting`."""
        wanted = asked_trace_settings(message) if message.settings else {}
        return trace_settings_message(self._settings.traces(message.model_name, wanted))
