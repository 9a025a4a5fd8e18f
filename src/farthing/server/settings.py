"""The trace and logging extensions over HTTP; the RPCs are `server.grpc_settings`'s. Who may change what is said here.

Settings are told to those who may control models, and changed where control is open. What they do is
`telemetry.log_settings`' and `telemetry.trace_settings`'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from farthing.config.server import ModelControl
from farthing.protocols.kserve import (
    encode_json,
    parse_log_settings,
    parse_trace_settings,
    trace_settings_json,
)
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.telemetry.log_settings import LogSettings, Value
from farthing.telemetry.trace_settings import TraceSettings
from farthing.types.errors import Forbidden


class Settings:
    """What may be changed while serving, whichever protocol asks."""

    def __init__(self, runtime: Runtime, control: ModelControl, traces: TraceSettings) -> None:
        self._runtime = runtime
        self._is_open = control is ModelControl.EXPLICIT
        self._logs = LogSettings()
        self._traces = traces

    def logs(self, wanted: Mapping[str, Value | None]) -> dict[str, Value]:
        """All log settings, after these were changed. Raises `Forbidden` where that is closed, `InvalidInput`."""
        if wanted:
            self._require_open()
            self._logs.update(wanted)
        return self._logs.current()

    def traces(self, model: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """All trace settings, of a model or the server, after these were changed. No value: the server's again."""
        if model:
            self._runtime.resolve(model)
        if wanted:
            self._require_open()
            self._traces.update(wanted, model)
        return self._traces.current(model)

    def _require_open(self) -> None:
        if not self._is_open:
            raise Forbidden(
                "changing settings is closed, like loading models", hint="start with --model-control-mode explicit"
            )


class SettingsExtension:
    """The handlers of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def routes(self) -> list[Route]:
        """The lines of the table."""

        def both(path: str, tell: Any, change: Any, kind: RouteClass) -> list[Route]:
            return [Route(b"GET", path, tell, Door.CONTROL, kind), Route(b"POST", path, change, Door.CONTROL, kind)]

        trace = RouteClass.TRACE

        return [
            *both("/v2/logging", self.tell_logs, self.change_logs, RouteClass.LOGGING),
            *both("/v2/trace/setting", self.tell_traces, self.change_traces, trace),
            *both("/v2/models/{m}/trace/setting", self.tell_traces, self.change_traces, trace),
        ]

    def tell_logs(self, exchange: Exchange) -> None:
        """`GET /v2/logging`."""
        exchange.respond(200, encode_json(self._settings.logs({})))

    def change_logs(self, exchange: Exchange) -> None:
        """`POST /v2/logging`: all or nothing; answers with every setting."""
        exchange.respond(200, encode_json(self._settings.logs(parse_log_settings(exchange.body))))

    def tell_traces(self, exchange: Exchange, model: str = "") -> None:
        """`GET /v2[/models/{m}]/trace/setting`."""
        exchange.respond(200, encode_json(trace_settings_json(self._settings.traces(model, {}))))

    def change_traces(self, exchange: Exchange, model: str = "") -> None:
        """`POST /v2[/models/{m}]/trace/setting`: all or nothing; answers with every setting."""
        wanted = parse_trace_settings(exchange.body)
        exchange.respond(200, encode_json(trace_settings_json(self._settings.traces(model, wanted))))
