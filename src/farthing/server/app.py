"""What happens to every request before its handler and after its answer: route, key, share, id, trace, log.

Handlers answer an exchange at once, or are coroutines that do; inference answers through a callback. Bytes on the
wire belong to `server.http1`, the answers themselves to `server.kserve` and `server.operations`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from farthing.server.admission import Admission
from farthing.server.auth import Door, Keys
from farthing.server.exchange import Exchange
from farthing.server.restricted import Restrictions
from farthing.server.routes import Match, Routes
from farthing.server.tracing import Tracing
from farthing.telemetry.counters import HttpCounters, RejectReason
from farthing.telemetry.traces import clean_request_id, continue_trace, request_ids
from farthing.types.errors import FarthingError, Forbidden, TenantLimited, Unauthenticated
from farthing.types.trace import TraceContext

access_log = logging.getLogger("farthing.access")
log = logging.getLogger(__name__)


class App:
    """Dispatches exchanges to handlers."""

    def __init__(
        self,
        *,
        routes: Routes,
        keys: Keys | None,
        restrictions: Restrictions,
        admission: Admission,
        counters: HttpCounters,
        tracing: Tracing | None = None,
        has_access_log: bool = False,
    ) -> None:
        self._routes = routes
        self._keys = keys
        self._restrictions = restrictions
        self._admission = admission
        self._counters = counters
        self._tracing = tracing
        self._has_access_log = has_access_log
        self._next_id = request_ids()
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Answers the exchange, now or later."""
        headers = exchange.headers
        given = headers.get(b"x-request-id")
        exchange.request_id = request_id = (
            given is not None and clean_request_id(given.decode("latin-1"))
        ) or self._next_id()
        exchange.reply_headers = b"X-Request-Id: " + request_id.encode() + b"\r\n"
        context = None
        if b"traceparent" in headers:
            context = continue_trace(headers[b"traceparent"].decode("latin-1"))
            if context is not None:
                exchange.reply_headers += b"traceparent: " + context.header().encode() + b"\r\n"
        match = self._routes.match(exchange.method, exchange.path)
        route = match.route
        exchange.route = route.kind
        if self._tracing is not None:
            self._tracing.exchange_began(exchange, match, context)
        if self._has_access_log or exchange.trace is not None or exchange.begin_trace is not None:
            exchange.on_end = partial(self._ended, exchange, match, context)
        if self._keys is not None:
            self._admit(exchange, route.door)
        if self._restrictions:
            self._restrictions.check(route.kind, headers)
        answer = route.handler(exchange, *match.args)
        if answer is not None:
            self._await(exchange, answer)

    def _admit(self, exchange: Exchange, door: Door) -> None:
        assert self._keys is not None
        try:
            key = self._keys.check(door, exchange.headers)
            if key is None:
                return
            exchange.tenant = key.name
            exchange.tenant_inflight_max = key.inflight_max
            if key.inflight_max:
                self._admission.enter(key.name, key.inflight_max)
                exchange.on_end = partial(self._left, key.name, exchange.on_end)
        except Unauthenticated:
            self._counters.rejected[RejectReason.UNAUTHENTICATED] += 1
            raise
        except Forbidden:
            self._counters.rejected[RejectReason.FORBIDDEN] += 1
            raise
        except TenantLimited:
            self._counters.rejected[RejectReason.TENANT_LIMITED] += 1
            raise

    def _left(self, tenant: str, then: Callable[[int], None] | None, status: int) -> None:
        self._admission.leave(tenant)
        if then is not None:
            then(status)

    def _await(self, exchange: Exchange, answer: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_finish(exchange, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended(self, exchange: Exchange, match: Match, context: TraceContext | None, status: int) -> None:
        end_ns = time.monotonic_ns()
        if exchange.trace is not None:
            context = exchange.trace.context
        if self._has_access_log:
            access_log.info(
                "%s %s %d",
                exchange.method.decode(),
                exchange.path.decode("latin-1"),
                status,
                extra={
                    "request_id": exchange.request_id,
                    "trace_id": context.trace_id if context else "",
                    "tenant": exchange.tenant,
                    "duration_ms": round((end_ns - exchange.received_ns) / 1e6, 3),
                    "body_bytes": exchange.body_bytes,
                },
            )
        if self._tracing is not None:
            self._tracing.exchange_ended(exchange, match, status, end_ns)


async def _finish(exchange: Exchange, answer: Awaitable[None]) -> None:
    try:
        await answer
    except FarthingError as error:
        exchange.fail(error)
    except Exception:
        log.exception("answering %s %s failed", exchange.method.decode(), exchange.path.decode("latin-1"))
        exchange.fail(FarthingError("the server failed to answer this request", hint="its log says why"))
