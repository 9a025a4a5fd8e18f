"""Every call of every connection, from its head to its end: who may, is there room, and how many are under way.

What `protocols.http2` calls as streams come and go. One call's life is `server.grpc_call`'s, the methods are
`server.grpc_service`'s, sockets `server.http2`'s.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from farthing.config.server import HttpLimits
from farthing.protocols.http2 import Connection, Data, Head, Stream
from farthing.server.admission import Admission
from farthing.server.auth import Door, Keys
from farthing.server.grpc_call import Call, Plan, Rpc
from farthing.server.grpc_stream_call import StreamCall
from farthing.server.restricted import Restrictions
from farthing.server.tracing import Tracing
from farthing.telemetry.counters import GrpcCounters, RouteClass
from farthing.types.errors import DeadlineExceeded, FarthingError, Overloaded, Unavailable

NAMES_BYTES_MAX: Final = 1 << 20
"""What a message may hold beside its tensors: names, shapes, parameters."""

NO_RPC: Final = Rpc("", lambda: None, lambda message, call: None, Door.OPEN, RouteClass.OTHER)
"""Stands for a method that is not here."""

log = logging.getLogger(__name__)


class GrpcCalls:
    """The calls of one server; a `protocols.http2.Handler`."""

    def __init__(
        self,
        rpcs: Sequence[Rpc],
        *,
        keys: Keys | None,
        admission: Admission,
        counters: GrpcCounters,
        limits: HttpLimits,
        tracing: Tracing | None,
        restrictions: Restrictions,
    ) -> None:
        self._rpcs = {rpc.path.encode(): rpc for rpc in rpcs}
        self._keys = keys
        self.admission = admission
        self.counters = counters
        self.limits = limits
        self.tracing = tracing
        self._restrictions = restrictions
        self.message_bytes_max = limits.body_bytes_max + NAMES_BYTES_MAX
        self.is_stopping = False
        """New calls are refused."""
        self.streams: set[StreamCall] = set()
        self._owed = 0
        self.empty = asyncio.Event()
        """Set while no call is under way, beside those that only watch."""
        self.empty.set()

    def request(self, stream: Stream, head: Head) -> None:
        """A call began."""
        plan = head.meaning
        if plan is None:
            plan = head.meaning = Plan(head, self._rpcs)
        if plan.not_grpc is not None:
            stream.connection.end(stream, plan.not_grpc)
            return
        rpc = plan.rpc or NO_RPC
        stream.call = call = StreamCall(self, stream, plan, rpc) if rpc.is_stream else Call(self, stream, plan, rpc)
        self.counters.requests_in_flight += 1
        if not rpc.is_watch:
            self._owed += 1
            if self._owed == 1:
                self.empty.clear()
        if self.tracing is not None:
            self.tracing.call_began(call, head.fields)
        if plan.refusal is not None:
            call.fail(plan.refusal)
            return
        try:
            self._admit(call, rpc, head)
            call.start()
        except FarthingError as error:
            call.fail(error)

    def _admit(self, call: Call, rpc: Rpc, head: Head) -> None:
        if self.is_stopping:
            raise Unavailable("Server is stopping", retry_after_s=1)
        if self.counters.requests_in_flight > self.limits.connections_max:
            raise Overloaded(
                f"the server has {self.limits.connections_max} calls under way, its limit",
                hint="wait for answers before sending more requests",
                retry_after_s=1,
            )
        if call.plan.timeout_us == 0:
            raise DeadlineExceeded("the deadline passed before the request was read", hint="allow more time")
        if self._keys is not None:
            key = self._keys.check(rpc.door, head.fields)
            if key is not None:
                call.enter(key.name, key.inflight_max)
        if self._restrictions:
            self._restrictions.check(rpc.kind, head.fields)

    def data(self, stream: Stream, data: Data, is_last: bool) -> None:
        """More of a call's body came."""
        call = stream.call
        if call is None or call.is_done:
            return  # it has its answer; the rest is of no interest
        try:
            call.data(data, is_last)
        except FarthingError as error:
            call.fail(error)
        except Exception:
            self._failed(call)

    def guard(self, call: Call, function: Callable[[], object]) -> None:
        """Calls what may raise; the call is answered with what it raises."""
        try:
            function()
        except FarthingError as error:
            call.fail(error)
        except Exception:
            self._failed(call)

    def _failed(self, call: Call) -> None:
        log.exception("answering %s failed", call.rpc.path)
        call.fail(FarthingError("the server failed to answer this request", hint="its log says why"))

    def drained(self, stream: Stream) -> None:
        """The client has read what a streaming call has sent so far."""
        if isinstance(stream.call, StreamCall):
            stream.call.drained()

    def closed(self, stream: Stream) -> None:
        """A call is over."""
        call = stream.call
        if call is None:
            return
        stream.call = None
        call.over()
        self.counters.requests_in_flight -= 1
        if not call.rpc.is_watch:
            self._owed -= 1
            if not self._owed:
                self.empty.set()

    def stop(self) -> None:
        """From now on new calls are refused. Streams are told once what they asked for is answered."""
        self.is_stopping = True
        for call in list(self.streams):
            call.wake()

    def check_time(self, connection: Connection, now_s: float) -> None:
        """Ends calls of a connection that are out of time."""
        for stream in list(connection.streams.values()):
            if stream.call is not None:
                stream.call.check_time(now_s)
