"""`grpc.health.v1.Health`: as load balancers and Kubernetes ask whether to send requests here."""

import asyncio
import contextlib
from typing import Any, Final

from farthing.protocols.kserve_grpc import HEALTH_SERVICE, SERVICE, health_message_class
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.grpc_call import Call, Rpc
from farthing.server.grpc_stream_call import StreamCall
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import NotFound, Unavailable, Unsupported

WATCH_S: Final = 1.0
"""Seconds between looks at what watchers want to know; probes ask every few seconds."""


class GrpcHealth:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def rpcs(self) -> list[Rpc]:
        """Every RPC that is answered."""

        def request() -> Any:
            return health_message_class("HealthCheckRequest")

        health = RouteClass.HEALTH
        return [
            Rpc(f"/{HEALTH_SERVICE}/Check", request, self.check, Door.OPEN, health),
            Rpc(f"/{HEALTH_SERVICE}/Watch", request, self.watch, Door.OPEN, health, is_stream=True, is_watch=True),
        ]

    def check(self, message: Any, call: Call) -> Any:
        """`Check`: ready, as the standard probes ask it."""
        if message.service not in ("", SERVICE):
            raise NotFound(f"no service `{message.service[:80]}` here", hint=f"ask about `{SERVICE}`, or about nothing")
        return health_message_class("HealthCheckResponse")(status=self._status(message.service))

    async def watch(self, kind: Any, call: StreamCall) -> None:
        """`Watch`: the status now, and whenever it changes."""
        message = await call.next()
        if message is None:
            raise Unsupported("Watch takes exactly one message")
        said = ""
        while True:
            status = self._status(message.service)
            if status != said and not call.is_backed_up:
                call.send(health_message_class("HealthCheckResponse")(status=status).SerializeToString())
                said = status
            if call.is_stopping:
                raise Unavailable("Server is stopping", retry_after_s=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await call.change()

    def _status(self, service: str) -> str:
        if service not in ("", SERVICE):
            return "SERVICE_UNKNOWN"
        return "NOT_SERVING" if self._runtime.not_ready() else "SERVING"
