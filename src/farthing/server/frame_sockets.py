"""`/v2/models/{m}[/versions/{v}]/stream`: a stream of frames over WebSocket.

Each message is an inference request, each answered by one message in the same order, whatever became of it. Which bytes
mean what belongs to `protocols.frames`, which frames run to `batching.frames`, sockets to `server.websocket`.
"""

import time
from typing import Any, Final

from farthing.config.server import HttpLimits
from farthing.protocols.frames import (
    END,
    SUMMARY,
    Opening,
    answered_parameters,
    command_of,
    decode_frame,
    dropped_parameters,
    dropped_text,
    failed_parameters,
    failed_text,
    parse_opening,
    prefixed_json,
    summary_text,
)
from farthing.protocols.kserve import WireLimits, encode_error, encode_infer
from farthing.runtime.frame_stream import FrameAnswer, FrameStream
from farthing.runtime.runtime import Runtime
from farthing.server.admission import Admission
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.routes import Route
from farthing.telemetry.counters import HttpCounters, RouteClass
from farthing.types.errors import FarthingError, InvalidInput, TenantLimited
from farthing.types.frames import WAITING_MAX, DropReason
from farthing.types.requests import InferRequest, InferResponse

UNDER_WAY_MAX: Final = WAITING_MAX
"""Frames of one stream that are not answered; no further one is read before one is."""

NORMAL, GOING_AWAY = 1000, 1001
"""Close codes (RFC 6455, 7.4.1)."""


class FrameSockets:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime, limits: HttpLimits, admission: Admission, counters: HttpCounters) -> None:
        self._runtime = runtime
        self._limits = limits
        self._admission = admission
        self._counters = counters

    def routes(self) -> list[Route]:
        """The lines of the table."""
        return [
            Route(b"GET", f"{model}/stream", self.open, Door.INFERENCE, RouteClass.INFER)
            for model in ("/v2/models/{m}", "/v2/models/{m}/versions/{v}")
        ]

    def open(self, exchange: Exchange, model: str, version: str = "") -> None:
        """`GET /v2/models/{m}[/versions/{v}]/stream`, upgraded."""
        if exchange.wish is None or exchange.method != b"GET":
            error = InvalidInput("frames are streamed over WebSocket", hint="open this address with a WebSocket client")
            exchange.respond(426, encode_error(error), headers=b"Upgrade: websocket\r\n")
            return
        from farthing.server.websocket import WebSocket, accept  # a library that few servers need

        opening = parse_opening(exchange.query)
        answer = accept(exchange)
        stream = FrameStream(self._runtime, model, version, opening.options)
        socket = WebSocket(
            self._limits,
            self._admission,
            self._counters,
            message_bytes_max=self._limits.body_bytes_max,
        )
        socket.session = _Session(self._runtime, self._admission, opening, stream, socket, exchange, model, version)
        if not exchange.switch(answer, socket):
            socket.session.gone()


class _Session:
    """One stream."""

    def __init__(
        self,
        runtime: Runtime,
        admission: Admission,
        opening: Opening,
        stream: FrameStream,
        socket: Any,
        exchange: Exchange,
        model: str,
        version: str,
    ) -> None:
        self._runtime = runtime
        self._admission = admission
        self._opening = opening
        self._stream = stream
        self._socket = socket
        self._tenant = exchange.tenant
        self._tenant_max = exchange.tenant_inflight_max
        self._model = model
        self._version = version
        self._limits = WireLimits(body_bytes_max=socket.message_bytes_max)
        self._entered = 0
        """Frames that count as the tenant's."""
        self._close_code = 0
        """Of the goodbye that follows the last answer."""
        self.held_bytes = 0

    @property
    def has_room(self) -> bool:
        return self._stream.under_way < UNDER_WAY_MAX and not self._close_code

    @property
    def is_busy(self) -> bool:
        return self._stream.under_way > 0

    def message(self, data: bytes, *, is_text: bool) -> None:
        """A frame, or a command."""
        if is_text:
            try:
                command = command_of(data)
            except InvalidInput as error:
                self._socket.send_text(encode_error(error))
                return
            if command == SUMMARY:
                self._socket.send_text(summary_text(self._stream.summary()))
                return
            if command == END:
                self._finish(NORMAL)
                return
        arrival_ns = time.monotonic_ns()
        size = len(data)
        self.held_bytes += size
        request: InferRequest | None = None
        is_entered = False

        def tell(answer: FrameAnswer) -> None:
            self.held_bytes -= size
            if is_entered:
                self._entered -= 1
                self._admission.leave(self._tenant)
            self._answer(request, answer)

        try:
            request = decode_frame(
                data,
                self._opening,
                is_text=is_text,
                model_name=self._model,
                model_version=self._version,
                spec=lambda: self._stream.spec,
                limits=self._limits,
                regions=self._runtime.regions,
            )
            request.tenant = self._tenant
            size += request.shared_bytes
            self.held_bytes += request.shared_bytes
            if self._tenant_max:
                self._admission.enter(self._tenant, self._tenant_max)
                self._entered += 1
                is_entered = True
        except TenantLimited:
            self._stream.refuse(arrival_ns, tell)
        except FarthingError as error:
            self._stream.fail(error, arrival_ns, tell)
        else:
            self._stream.offer(request, arrival_ns, tell)

    def drain(self) -> None:
        """The server ends: what came is answered, then goodbye."""
        self._finish(GOING_AWAY)

    def gone(self) -> None:
        """The client left."""
        self._stream.close()
        self.held_bytes = 0
        for _ in range(self._entered):
            self._admission.leave(self._tenant)
        self._entered = 0

    def _finish(self, code: int) -> None:
        self._close_code = self._close_code or code
        if not self._stream.under_way:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._socket.send_text(summary_text(self._stream.summary()))
        self._socket.close(self._close_code, "the server is stopping" if self._close_code == GOING_AWAY else "")

    def _answer(self, request: InferRequest | None, answer: FrameAnswer) -> None:
        outcome = answer.outcome
        if isinstance(outcome, InferResponse):
            assert request is not None
            try:
                self._send(request, outcome, answer)
            except FarthingError as error:
                outcome = error
        request_id = request.id if request is not None else ""
        if isinstance(outcome, DropReason):
            parameters = dropped_parameters(answer.number, outcome, answer.latency_ns)
            self._socket.send_text(dropped_text(answer.spec, request_id, parameters))
        elif isinstance(outcome, FarthingError):
            self._socket.send_text(failed_text(request_id, failed_parameters(answer.number), outcome))
        if self._close_code and not self._stream.under_way:
            self._say_goodbye()
        else:
            self._socket.go_on()

    def _send(self, request: InferRequest, response: InferResponse, answer: FrameAnswer) -> None:
        said = answered_parameters(answer.number, response.timing, answer.latency_ns, is_on_time=answer.is_on_time)
        response.parameters = {**response.parameters, **said}
        body, header_length = encode_infer(response, request, answer.spec, self._runtime.regions)
        parts = [body] if isinstance(body, bytes) else body
        if header_length is None:
            self._socket.send_text(b"".join(parts))
        else:
            self._socket.send_binary(b"".join((prefixed_json(header_length), *parts)))
