"""`TraceSetting` and `LogSettings`: told to those who may control models, changed where control is open."""

from typing import Any

from farthing.config.server import ModelControl
from farthing.protocols.kserve_grpc import (
    SERVICE,
    asked_log_settings,
    asked_trace_settings,
    log_settings_message,
    message_class,
    trace_settings_message,
)
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.grpc_call import Call, Rpc
from farthing.telemetry.counters import RouteClass
from farthing.telemetry.log_settings import LogSettings
from farthing.telemetry.trace_settings import TraceSettings
from farthing.types.errors import Forbidden, Unsupported


class GrpcSettings:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime, control: ModelControl, logs: LogSettings, traces: TraceSettings) -> None:
        self._runtime = runtime
        self._is_open = control is ModelControl.EXPLICIT
        self._logs = logs
        self._traces = traces

    def rpcs(self) -> list[Rpc]:
        """Both RPCs."""

        def rpc(name: str, handler: Any) -> Rpc:
            path = f"/{SERVICE}/{name}"
            return Rpc(path, lambda: message_class(f"{name}Request"), handler, Door.CONTROL, RouteClass.OTHER)

        return [rpc("TraceSetting", self.traces), rpc("LogSettings", self.logs)]

    def logs(self, message: Any, call: Call) -> Any:
        """`LogSettings`."""
        if message.settings:
            self._require_open()
            self._logs.update(asked_log_settings(message))
        return log_settings_message(self._logs.current())

    def traces(self, message: Any, call: Call) -> Any:
        """`TraceSetting`. A model has no settings of its own: it has the server's."""
        if message.model_name:
            self._runtime.resolve(message.model_name)
        if message.settings:
            self._require_open()
            if message.model_name:
                raise Unsupported("a model has no trace settings of its own", hint="leave model_name empty")
            self._traces.update(asked_trace_settings(message))
        return trace_settings_message(self._traces.current())

    def _require_open(self) -> None:
        if not self._is_open:
            raise Forbidden(
                "changing settings is closed, like loading models", hint="start with --model-control-mode explicit"
            )
