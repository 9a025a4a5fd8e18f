"""What operators and their machines ask: is it alive, is it ready, how is it doing, what does it offer."""

import asyncio
from typing import Any

from farthing import __version__
from farthing.protocols.kserve import encode_json, live_json, openapi_document, ready_json
from farthing.protocols.openai.openapi import with_openai
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.telemetry.metrics import CONTENT_TYPE, Metrics, render
from farthing.types.errors import not_ready_error


class Operations:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime, metrics: Metrics, *, not_ready_status: int) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._not_ready = not_ready_error(not_ready_status)
        self._openapi = b""

    def routes(self) -> list[Route]:
        """The lines of the table."""
        get = b"GET"
        return [
            Route(get, "/v2/health/live", self.live, Door.OPEN, RouteClass.HEALTH),
            Route(get, "/v2/health/ready", self.ready, Door.OPEN, RouteClass.HEALTH),
            Route(get, "/openapi.json", self.openapi, Door.OPEN, RouteClass.METADATA),
            *self.metrics_routes(),
        ]

    def metrics_routes(self) -> list[Route]:
        """All that a port for metrics alone has."""
        return [Route(b"GET", "/metrics", self.metrics, Door.INFERENCE, RouteClass.METRICS)]

    def live(self, exchange: Exchange) -> None:
        """`GET /v2/health/live`: is there progress? A batch that hangs in its engine turns this red."""
        hung = self._runtime.hung()
        if hung is not None:
            raise self._not_ready(f"not live: {hung}", hint="restart the server, and mend or replace that model")
        exchange.respond(200, encode_json(live_json()))

    def ready(self, exchange: Exchange) -> None:
        """`GET /v2/health/ready`: should a load balancer send requests here?"""
        reason = self._runtime.not_ready()
        if reason:
            raise self._not_ready(f"not ready: {reason}")
        exchange.respond(200, encode_json(ready_json()))

    async def metrics(self, exchange: Exchange) -> None:
        """`GET /metrics`, in Prometheus' text format."""
        scrape = self._metrics.scrape()
        text = await asyncio.get_running_loop().run_in_executor(None, render, scrape)
        exchange.respond(200, text, content_type=CONTENT_TYPE.encode())

    def openapi(self, exchange: Exchange) -> Any:
        """`GET /openapi.json`."""
        if not self._openapi:
            self._openapi = encode_json(with_openai(openapi_document(__version__)))
        exchange.respond(200, self._openapi)
