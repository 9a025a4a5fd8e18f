"""gRPC on a socket, by grpcio: what happens to every RPC before its handler and after its answer.

Keys, room, deadline, status. The RPCs themselves are in `server.grpc_service`. grpcio is an extra
(`farthing[grpc]`), so only `Server.listen_grpc` imports this file.

grpcio's asyncio server is used, on the event loop of everything else. A prototype on its thread-pool server was up to
half as fast again, but there each RPC holds a thread from its first byte to its answer: a few clients that send half a
message take all of them, and no more requests than threads can ever share a batch. Figures in
docs/reference/kserve-grpc.md.
"""

import asyncio
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from farthing.config.server import Address, HttpLimits, Tls
from farthing.protocols.kserve_grpc import SERVICE, parse_message, status_detail
from farthing.server.admission import Admission
from farthing.server.auth import Keys
from farthing.server.grpc_service import NAMES_BYTES_MAX, NOT_OFFERED, Call, GrpcService, Rpc
from farthing.telemetry.counters import GrpcCounters
from farthing.types.errors import (
    CannotListen,
    DeadlineExceeded,
    FarthingError,
    Unavailable,
    Unsupported,
)

STREAMS_MAX: Final = 1024
"""RPCs under way on one connection; the client's library holds back further ones."""

FAREWELL_S: Final = 0.2
"""For how long at least new calls are told that the server stops before it closes: then the last answers have left,
and clients go elsewhere by themselves. A call that arrives while grpcio closes is told CANCELLED, and nobody tries
again after that."""

PING_S: Final = 60
"""A connection that says nothing for so long is asked whether anybody is there, and has 20 s to say so."""

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

Answer = Callable[[Rpc, bytes, Any], Awaitable[bytes]]

log = logging.getLogger(__name__)


class GrpcListener:
    """The gRPC side of one server; lives on its event loop."""

    def __init__(
        self,
        service: GrpcService,
        *,
        keys: Keys | None,
        admission: Admission,
        counters: GrpcCounters,
        limits: HttpLimits,
        tls: Tls | None,
    ) -> None:
        self._keys = keys
        self._admission = admission
        self._counters = counters
        self._tls = tls
        self._is_stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._server = grpc.aio.server(maximum_concurrent_rpcs=limits.connections_max, options=_options(limits))
        self._server.add_generic_rpc_handlers((_Handlers(service.rpcs(), self._answer),))

    async def open(self, address: Address) -> Address:
        """Opens the port and answers where it is. Raises `CannotListen`."""
        _probe(address)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), _credentials(self._tls))
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {address}: {error}", hint="--grpc HOST:0 takes a free port") from None
        await self._server.start()
        return Address(address.host, port)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new RPCs and waits for those under way. Answers whether all were answered in time."""
        self._is_stopping = True
        is_clean = True
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            is_clean = False
            log.warning("not every RPC could be answered within %g s", timeout_s)
        await asyncio.sleep(FAREWELL_S)
        await self._server.stop(0)
        return is_clean

    async def close(self) -> None:
        """Ends every connection."""
        self._is_stopping = True
        await self._server.stop(0)

    async def _answer(self, rpc: Rpc, data: bytes, context: Any) -> bytes:
        counters = self._counters
        if self._is_stopping:  # not under way for a moment, so that those who go on asking cannot delay the end
            counters.answered(rpc.kind, grpc.StatusCode.UNAVAILABLE.name)
            await _abort(context, Unavailable("Server is stopping", retry_after_s=1))
        counters.requests_in_flight += 1
        self._empty.clear()
        code = grpc.StatusCode.CANCELLED
        try:
            answer = await self._admitted(rpc, data, context)
            code = grpc.StatusCode.OK
            return answer
        except FarthingError as error:
            code = _CODES[error.grpc_status]
            await _abort(context, error)
            raise AssertionError("abort always raises") from None
        except Exception:
            log.exception("answering %s failed", rpc.path)
            code = grpc.StatusCode.INTERNAL
            await _abort(context, FarthingError("the server failed to answer this request", hint="its log says why"))
            raise AssertionError("abort always raises") from None
        finally:
            counters.answered(rpc.kind, code.name)
            counters.requests_in_flight -= 1
            if not counters.requests_in_flight:
                self._empty.set()

    async def _admitted(self, rpc: Rpc, data: bytes, context: Any) -> bytes:
        tenant, inflight_max = "", 0
        if self._keys is not None:
            key = self._keys.check(rpc.door, _headers(context))
            if key is not None:
                tenant, inflight_max = key.name, key.inflight_max
        timeout_us = 0
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            timeout_us = int(remaining_s * 1e6)
            if timeout_us <= 0:
                raise DeadlineExceeded("the deadline passed before the request was read", hint="allow more time")
        self._admission.take_bytes(len(data))
        try:
            if inflight_max:
                self._admission.enter(tenant, inflight_max)
            try:
                answer = rpc.handler(parse_message(rpc.request(), data), Call(tenant, timeout_us))
                if inspect.isawaitable(answer):
                    answer = await answer
                serialized: bytes = answer.SerializeToString()
                return serialized
            finally:
                if inflight_max:
                    self._admission.leave(tenant)
        finally:
            self._admission.give_bytes(len(data))


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The table of RPCs. Messages are parsed by us, so that one that is none gets an answer that says so."""

    def __init__(self, rpcs: list[Rpc], answer: Answer) -> None:
        self._by_path = {rpc.path: grpc.unary_unary_rpc_method_handler(_bound(answer, rpc)) for rpc in rpcs}
        # On the wire a unary call is a stream of one message, so one handler refuses both kinds.
        refused = grpc.stream_stream_rpc_method_handler(_refuse)
        self._by_path |= {f"/{SERVICE}/{name}": refused for name in NOT_OFFERED}

    def service(self, handler_call_details: Any) -> Any:
        return self._by_path.get(handler_call_details.method)


def _bound(answer: Answer, rpc: Rpc) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """`partial(answer, rpc)` as grpcio likes it: it asks at each call whether a handler is a coroutine function."""

    async def handler(data: bytes, context: Any) -> bytes:
        return await answer(rpc, data, context)

    return handler


async def _refuse(requests: Any, context: Any) -> None:
    await _abort(
        context,
        Unsupported(
            "this server does not offer this RPC yet: streams, shared memory, trace and log settings are not served",
            hint="ModelInfer answers inference requests one by one",
        ),
    )


async def _abort(context: Any, error: FarthingError) -> None:
    trailers = []
    if error.retry_after_s is not None:
        trailers.append(("retry-after", str(max(1, round(error.retry_after_s)))))
    await context.abort(_CODES[error.grpc_status], status_detail(error), tuple(trailers))


def _headers(context: Any) -> dict[bytes, bytes]:
    """The call's metadata, as headers; names are in lower case already."""
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in context.invocation_metadata()
    }


def _options(limits: HttpLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body_bytes_max + NAMES_BYTES_MAX),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.head_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.head_bytes_max),
        ("grpc.max_allowed_incoming_connections", limits.connections_max),
        ("grpc.max_connection_idle_ms", int(limits.idle_timeout_s * 1000)),
        ("grpc.max_concurrent_streams", STREAMS_MAX),
        ("grpc.server_handshake_timeout_ms", int(limits.head_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", PING_S * 1000),
        # Otherwise the system would share a port between two servers, and half the requests would go astray.
        ("grpc.so_reuseport", 0),
    ]


def _probe(address: Address) -> None:
    """Raises `CannotListen` with the system's reason, which grpcio's own error does not tell."""
    if not address.port:
        return
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(place)
            sock.listen()
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {address}: {error.strerror or error}",
            hint="another program may have the port; --grpc HOST:0 takes a free one",
        ) from None


def _credentials(tls: Tls) -> Any:
    """The certificate HTTP has too; `server.tls` has checked that its files can be used."""
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=tls.client_ca.read_bytes() if tls.client_ca is not None else None,
        require_client_auth=tls.client_ca is not None,
    )
