"""gRPC on a socket: all connections of one server, the sweep of what is out of time, and the end.

The frames are `protocols.http2`'s, a connection's socket `server.http2`'s, calls `server.grpc_calls`', the methods
`server.grpc_service`'s.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from farthing.config.server import HttpLimits
from farthing.protocols.http2 import Http2Limits
from farthing.server.admission import Admission
from farthing.server.auth import Keys
from farthing.server.grpc_call import Rpc
from farthing.server.grpc_calls import GrpcCalls
from farthing.server.http2 import LINGER_S, Http2Socket
from farthing.server.last_call import refuse_newcomers
from farthing.server.restricted import Restrictions
from farthing.server.tracing import Tracing
from farthing.telemetry.counters import GrpcCounters

FAREWELL_S: Final = 0.2
"""For how long at least new calls are told that the server stops before it closes: then clients go elsewhere by
themselves, and the last answers have left."""

log = logging.getLogger(__name__)


class GrpcListener:
    """The gRPC side of one server; lives on its event loop. Called by `create_server` for each connection."""

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
        self.limits = limits
        self.http2_limits = Http2Limits(header_list_bytes_max=limits.head_bytes_max, headers_max=limits.headers_max)
        self.counters = counters
        self.calls = GrpcCalls(
            rpcs,
            keys=keys,
            admission=admission,
            counters=counters,
            limits=limits,
            tracing=tracing,
            restrictions=restrictions,
        )
        self.now_s = time.monotonic()
        """Coarse time, moved by `sweep`."""
        self._sockets: set[Http2Socket] = set()
        self._to_flush: list[Http2Socket] = []
        self._gone = asyncio.Event()
        self._gone.set()
        self.server: asyncio.Server | None = None
        """What listens; closed at the end of `drain`."""

    def __call__(self) -> Http2Socket:
        return Http2Socket(self)

    def admit(self, socket: Http2Socket) -> bool:
        """Counts a connection, if there is room for it."""
        if len(self._sockets) >= self.limits.connections_max:
            return False
        self._sockets.add(socket)
        self._gone.clear()
        return True

    def forget(self, socket: Http2Socket) -> None:
        """A connection is over."""
        self._sockets.discard(socket)
        if not self._sockets:
            self._gone.set()

    def flush_soon(self, socket: Http2Socket) -> None:
        """Writes what a connection has to say at the end of this turn of the event loop, in one go."""
        if not self._to_flush:
            asyncio.get_running_loop().call_soon(self._flush)
        self._to_flush.append(socket)

    def _flush(self) -> None:
        sockets, self._to_flush = self._to_flush, []
        for socket in sockets:
            socket.flush()

    def sweep(self) -> None:
        """Ends connections and calls that are out of time; call it about once a second."""
        self.now_s = time.monotonic()
        for socket in list(self._sockets):
            socket.check_time(self.now_s)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new calls and waits for those under way. Answers whether all were answered in time."""
        self.calls.stop()
        for socket in list(self._sockets):
            socket.http2.announce_end()
        is_clean = True
        try:
            await asyncio.wait_for(self.calls.empty.wait(), timeout_s)
        except TimeoutError:
            is_clean = False
            log.warning("not every call could be answered within %g s", timeout_s)
        await asyncio.sleep(FAREWELL_S)
        if self.server is not None:
            for sock in self.server.sockets:
                refuse_newcomers(sock)
            self.server.close()
        for socket in list(self._sockets):
            socket.end_when_idle()
        try:
            await asyncio.wait_for(self._gone.wait(), LINGER_S if is_clean else 0)
        except TimeoutError:
            self._abort()
        return is_clean

    def close(self) -> None:
        """Ends every connection."""
        self.calls.stop()
        if self.server is not None:
            self.server.close()
        self._abort()

    def _abort(self) -> None:
        for socket in list(self._sockets):
            socket.abort()
