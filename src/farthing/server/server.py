"""The server's life: listen, load, serve, drain, end.

`Server` puts the rooms together and owns the sockets. Ready turns green when the models are there and red first when
the end begins; then requests under way are answered, connections closed, models unloaded. Signals belong to
whoever runs the process (`cli.serve`).
"""

import asyncio
import errno
import gc
import importlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from farthing import __version__
from farthing.config.server import Address, ServerConfig
from farthing.repository import Repository
from farthing.runtime.huge_pages import HugePages
from farthing.runtime.runtime import Runtime
from farthing.server.admission import Admission
from farthing.server.app import App
from farthing.server.auth import Keys
from farthing.server.forwarding import HeaderForwarding
from farthing.server.frame_sockets import FrameSockets
from farthing.server.generate_extension import GenerateExtension
from farthing.server.kserve import KServe
from farthing.server.last_call import refuse_newcomers
from farthing.server.listener import Listener
from farthing.server.openai import OpenAi
from farthing.server.operations import Operations
from farthing.server.restricted import GRPC, Restrictions
from farthing.server.routes import Route, Routes
from farthing.server.settings import Settings, SettingsExtension
from farthing.server.shared_memory import SharedMemoryExtension
from farthing.server.tls import tls_context
from farthing.server.tracing import Tracing
from farthing.telemetry.counters import GrpcCounters, HttpCounters
from farthing.telemetry.looplag import LoopLag
from farthing.telemetry.metrics import Metrics
from farthing.telemetry.trace_settings import TraceSettings
from farthing.telemetry.traces import SpanSink
from farthing.types.errors import CannotListen

if TYPE_CHECKING:
    from farthing.server.grpc import GrpcListener

LAST_CALL_S: Final = 0.1
"""Between the last connection let in and the first one closed: a request may be on its way, a round trip behind."""

SWEEP_S: Final = 1.0
"""Seconds between looks at connections that are out of time."""

BACKLOG: Final = 4096
"""Connections the system holds until we accept them; a burst of clients must not meet a reset."""

log = logging.getLogger(__name__)


class Server:
    """One running server on one event loop."""

    def __init__(
        self,
        config: ServerConfig,
        repository: Repository,
        *,
        spans: SpanSink | None = None,
        trace_ratio: float = 0.0,
        log_records_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config = config
        self.runtime = Runtime(repository, config)
        self._counters = HttpCounters()
        self._grpc_counters = GrpcCounters()
        self._lag = LoopLag()
        self._metrics = Metrics(
            version=__version__,
            models=self.runtime,
            http=self._counters,
            grpc=self._grpc_counters,
            cache=self.runtime.catalog.serving.cache.counters,
            loop_lag=self._lag.histogram,
            log_records_dropped=log_records_dropped,
            spans_dropped=lambda: spans.dropped if spans is not None else 0,
        )
        trace_settings = TraceSettings(has_sink=spans is not None, ratio=trace_ratio)
        scheme = "http" if config.tls is None else "https"
        self._tracing = tracing = None if spans is None else Tracing(spans, trace_settings, scheme=scheme)
        self._settings = Settings(self.runtime, config.model_control, trace_settings)
        self._admission = admission = Admission(config.admission)
        operations = Operations(self.runtime, self._metrics, not_ready_status=config.not_ready_status)
        pattern = config.header_forward_pattern
        kserve = KServe(
            self.runtime,
            config.limits.body_bytes_max,
            not_ready_status=config.not_ready_status,
            forwarding=HeaderForwarding(pattern) if pattern else None,
        )
        self._keys = keys = Keys.read(config.keys) if config.keys is not None else None

        restrictions = Restrictions(config.restricted)

        def listener(routes: list[Route]) -> Listener:
            app = App(
                routes=Routes(routes),
                keys=keys,
                admission=admission,
                counters=self._counters,
                tracing=tracing,
                restrictions=restrictions,
                has_access_log=config.access_log,
            )
            return Listener(app, config.limits, admission, self._counters)

        self._tls = tls_context(config.tls) if config.tls is not None else None
        self._listener = listener(
            operations.routes()
            + kserve.routes()
            + FrameSockets(self.runtime, config.limits, admission, self._counters).routes()
            + GenerateExtension(self.runtime, config.limits.body_bytes_max).routes()
            + SharedMemoryExtension(self.runtime.shared_memory).routes()
            + SettingsExtension(self._settings).routes()
            + OpenAi(self.runtime).routes()
        )
        self._metrics_listener = listener(operations.metrics_routes())
        self._sockets: list[asyncio.Server] = []
        self._grpc_listener: GrpcListener | None = None
        self._huge_pages = HugePages()
        self._sweeper: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self.http: Address | None = None
        """Where it listens, once it does."""
        self.grpc: Address | None = None
        """Where gRPC is, once `listen_grpc` has opened it."""
        self.metrics: Address | None = None
        """Where `/metrics` is alone, if it was asked for."""

    async def listen(self) -> None:
        """Opens the port; `http` then says which. Raises `CannotListen`."""
        loop = asyncio.get_running_loop()
        self.http = await self._open(self._config.http, self._listener, is_tls=True)
        if self._config.metrics is not None:
            self.metrics = await self._open(self._config.metrics, self._metrics_listener, is_tls=False)
        self._lag.start(loop)
        self._sweep(loop)

    async def listen_grpc(self) -> None:
        """Opens the gRPC port of the configuration; `grpc` then says which. HTTP need not wait for the import.

        Raises `CannotListen` if the port cannot be had.
        """
        if self._config.grpc is None:
            return
        # Importing protobuf takes a twentieth of a second, in which the event loop has better things to do.
        await asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "farthing.server.grpc")
        from farthing.server.grpc import GrpcListener
        from farthing.server.grpc_health import GrpcHealth
        from farthing.server.grpc_reflection import reflection_rpcs
        from farthing.server.grpc_service import GrpcService
        from farthing.server.grpc_settings import GrpcSettings
        from farthing.server.grpc_shared_memory import GrpcSharedMemory

        pattern = self._config.grpc_header_forward_pattern
        service = GrpcService(
            self.runtime,
            self._config.limits.body_bytes_max,
            tracing=self._tracing,
            forwarding=HeaderForwarding(pattern, option="--grpc-header-forward-pattern") if pattern else None,
        )
        memory = GrpcSharedMemory(self.runtime.shared_memory)
        settings = GrpcSettings(self._settings)
        listener = GrpcListener(
            [*service.rpcs(), *memory.rpcs(), *settings.rpcs(), *GrpcHealth(self.runtime).rpcs(), *reflection_rpcs()],
            keys=self._keys,
            admission=self._admission,
            counters=self._grpc_counters,
            limits=self._config.limits,
            tracing=self._tracing,
            restrictions=Restrictions(self._config.grpc_restricted, GRPC),
        )
        tls = tls_context(self._config.tls, "h2") if self._config.tls is not None else None
        listener.server = await self._listen(self._config.grpc, listener, tls, "--grpc")
        self._grpc_listener = listener
        self.grpc = Address(self._config.grpc.host, listener.server.sockets[0].getsockname()[1])

    async def load(self) -> None:
        """Loads the models; requests for those that are ready are answered meanwhile."""
        await self.runtime.start()
        # What lives from here on dies young: the collector need not look at the models again and again. Where it was
        # off while they were loaded there is next to no garbage among them: 700 objects, and 25 ms to find them.
        if gc.isenabled():
            gc.collect()
        gc.freeze()
        gc.enable()

    async def drain(self) -> bool:
        """Ready turns red, then everything accepted is answered. Answers whether all were, in time.

        For a moment everyone is still served, with word that the connection ends: load balancers see red, and
        clients that keep connections come back elsewhere instead of meeting a closed one.
        """
        self.runtime.begin_stop()
        self._listener.is_draining = True
        await asyncio.sleep(self._config.drain_notice_s)
        is_clean, is_grpc_clean = await asyncio.gather(self._drain_http(), self._drain_grpc())
        return is_clean and is_grpc_clean

    async def _drain_http(self) -> bool:
        for server in self._sockets:
            for sock in server.sockets:
                refuse_newcomers(sock)
        await asyncio.sleep(LAST_CALL_S)
        self._listener.is_stopping = True
        for server in self._sockets:
            server.close()
        self._listener.end_idle()
        try:
            await asyncio.wait_for(self._listener.empty.wait(), self._config.exit_timeout_s)
        except TimeoutError:
            log.warning("not every request could be answered within %g s", self._config.exit_timeout_s)
        is_clean = not any(connection.is_busy for connection in self._listener.connections)
        self._abort()
        return is_clean

    async def _drain_grpc(self) -> bool:
        return self._grpc_listener is None or await self._grpc_listener.drain(self._config.exit_timeout_s)

    async def close(self) -> None:
        """Unloads the models and lets go of everything."""
        for server in self._sockets:
            server.close()
        self._abort()
        if self._grpc_listener is not None:
            self._grpc_listener.close()
        self._lag.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.runtime.close()

    def _abort(self) -> None:
        self._listener.abort()
        self._metrics_listener.abort()

    async def _open(self, address: Address, listener: Listener, *, is_tls: bool) -> Address:
        server = await self._listen(address, listener, self._tls if is_tls else None, "--http")
        self._sockets.append(server)
        return Address(address.host, server.sockets[0].getsockname()[1])

    async def _listen(
        self,
        address: Address,
        protocol: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
        option: str,
    ) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if context is not None:
            # A client that says nothing, or no goodbye, is held no longer than one that sends half a request.
            seconds = self._config.limits.head_timeout_s
            tls = {"ssl": context, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": seconds}
        try:
            server = await loop.create_server(
                protocol, address.host, address.port, backlog=BACKLOG, reuse_address=True, **tls
            )
        except OSError as error:
            # asyncio wraps the system's words in its own, which say the address again; a name not found has no number.
            reason = os.strerror(error.errno) if error.errno and error.errno in errno.errorcode else error
            raise CannotListen(
                f"cannot listen on {address}: {reason}",
                hint=f"another program may have the port; {option} HOST:0 takes a free one",
            ) from None
        for sock in server.sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._listener.sweep()
        self._metrics_listener.sweep()
        if self._grpc_listener is not None:
            self._grpc_listener.sweep()
        self._huge_pages.look()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop)
