"""All connections of one server: their shared limits and counters, and the sweep that ends those out of time.

What one connection does belongs to `server.http1`; opening sockets to `server.server`.
"""

import asyncio
import time
from email.utils import formatdate

from farthing.config.server import HttpLimits
from farthing.server.admission import Admission
from farthing.server.exchange import App
from farthing.server.http1 import Connection
from farthing.server.known_heads import KnownHeads
from farthing.telemetry.counters import HttpCounters
from farthing.types.errors import Overloaded


class Listener:
    """All connections of one server: their shared limits, counters and the once-a-second sweep of timeouts."""

    def __init__(self, app: App, limits: HttpLimits, admission: Admission, counters: HttpCounters) -> None:
        self.app = app
        self.limits = limits
        self.admission = admission
        self.counters = counters
        self.known_heads = KnownHeads()
        self.connections: set[Connection] = set()
        self.now_s = time.monotonic()
        """Coarse time, moved by `sweep`; exact enough for timeouts of seconds and free to read."""
        self.date = b""
        self.is_draining = False
        """Answers now say that the connection ends."""
        self.is_stopping = False
        """Requests that begin now are refused; those that began before are answered."""
        self.empty = asyncio.Event()
        """Set while there is no connection."""
        self.empty.set()
        self.sweep()

    def __call__(self) -> Connection:
        return Connection(self)

    def join(self, connection: Connection) -> None:
        """A client has come."""
        self.counters.connections_total += 1
        self.counters.connections_open += 1
        self.connections.add(connection)
        self.empty.clear()

    def leave(self, connection: Connection) -> None:
        """It has gone."""
        self.counters.connections_open -= 1
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def full_error(self) -> Overloaded | None:
        """What to tell a connection that is one too many."""
        most = self.limits.connections_max
        if len(self.connections) <= most:
            return None
        hint = "reuse connections (keep-alive), or come back later"
        return Overloaded(f"the server has {most} connections open, its limit", hint=hint, retry_after_s=1)

    def sweep(self) -> None:
        """Ends connections that are out of time; call it about once a second."""
        self.now_s = time.monotonic()
        self.date = b"Date: " + formatdate(usegmt=True).encode() + b"\r\nServer: farthing\r\n"
        for connection in list(self.connections):
            connection.check_time(self.now_s)

    def end_idle(self) -> None:
        """Ends connections without a request under way; the others end after their answers."""
        for connection in list(self.connections):
            connection.end_if_idle()

    def abort(self) -> None:
        """Ends every connection now."""
        for connection in list(self.connections):
            connection.abort()
