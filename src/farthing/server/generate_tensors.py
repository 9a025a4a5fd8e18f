"""Triton's generate extension on models of tensors, decoupled or not: exchange to runtime and back.

What stands in the JSON belongs to `protocols.kserve.generate_tensors`; language models to `generate_extension`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from farthing.protocols import sse
from farthing.protocols.kserve import WireLimits, encode_error
from farthing.protocols.kserve.generate_tensors import generate_answer, generate_request, parse_members
from farthing.runtime.served import Served
from farthing.runtime.served_streams import Stream, check_any, stream_of
from farthing.server.exchange import Exchange
from farthing.server.generation import HEAD_AFTER_S, PING_S
from farthing.server.kserve import TIMEOUT_HEADER, timeout_us
from farthing.server.preparation import INLINE_BYTES_MAX
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.requests import InferResponse, StreamedResponse


class _Answer:
    """What both have in common: one request to one model, whose parts come one by one."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._stream: Stream | None = None

    def start(self, served: Served, members: dict[str, Any], version: str, limits: WireLimits) -> None:
        """Asks the model. Raises that the request is wrong or cannot be taken."""
        exchange = self._exchange
        request = generate_request(members, served.spec_now(), model_version=version, limits=limits)
        request.tenant = exchange.tenant
        if (said := exchange.headers.get(TIMEOUT_HEADER)) is not None:
            asked_us = timeout_us(said)
            if asked_us and (not request.timeout_us or asked_us < request.timeout_us):
                request.timeout_us = asked_us
        rows, signature = check_any(served, request)
        exchange.on_gone = self.gone
        self._stream = stream_of(served, request, rows, signature, exchange.received_ns, self.hear)

    def gone(self) -> None:
        """The client left, or has had enough."""
        if self._stream is not None:
            self._stream.withdraw()

    def hear(self, said: StreamedResponse) -> None:
        """The model says something."""
        raise NotImplementedError

    def taken(self) -> None:
        """It has been dealt with."""
        if self._stream is not None:
            self._stream.taken()


class OneAnswer(_Answer):
    """Exactly one response, else an error."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._response: InferResponse | None = None

    def hear(self, said: StreamedResponse) -> None:
        answer = said.answer
        if isinstance(answer, InferResponse) and self._response is not None:
            self._refuse("more than one")
        elif isinstance(answer, FarthingError):
            self._fail(answer)
        else:
            if isinstance(answer, InferResponse):
                self._response = answer
            if not said.is_last:
                self.taken()
            elif self._response is None:
                self._refuse("none")
            else:
                try:
                    self._exchange.respond(200, generate_answer(self._response))
                except FarthingError as error:
                    self._fail(error)

    def _refuse(self, found: str) -> None:
        self._fail(
            EngineFailed(
                "generate expects model to produce exactly 1 response, use generate stream for model that generates "
                f"various number of responses; it gave {found}",
                hint="POST the same to generate_stream",
            )
        )

    def _fail(self, error: FarthingError) -> None:
        self.gone()
        self._exchange.fail(error)


class ManyAnswers(_Answer):
    """Server-sent events, one a response."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        exchange.is_paced = True
        exchange.on_room = self._take_all
        self._untaken = 0
        self._written_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, served: Served, members: dict[str, Any], version: str, limits: WireLimits) -> None:
        super().start(served, members, version, limits)
        if not self._exchange.is_done:
            self._timer = asyncio.get_running_loop().call_later(HEAD_AFTER_S, self._ping)

    def gone(self) -> None:
        self._stop_pinging()
        super().gone()

    def hear(self, said: StreamedResponse) -> None:
        answer = said.answer
        is_last = said.is_last
        if isinstance(answer, InferResponse):
            try:
                self._write(sse.event(generate_answer(answer)))
            except FarthingError as error:  # it cannot be written, and no other can be hoped for
                super().gone()
                answer, is_last = error, True
        if isinstance(answer, FarthingError):
            if not self._exchange.is_streaming and is_last:
                self._stop_pinging()
                self._exchange.fail(answer)
                return
            self._write(sse.event(encode_error(answer)))
        if is_last:
            self._stop_pinging()
            self._write(b"")  # the head, if there was nothing else
            self._exchange.end()
        elif self._exchange.is_backed_up:
            self._untaken += 1
        else:
            self.taken()

    def _take_all(self) -> None:
        """The client has read: the model may go on."""
        while self._untaken and not self._exchange.is_backed_up:
            self._untaken -= 1
            self.taken()

    def _write(self, data: bytes) -> None:
        exchange = self._exchange
        if not exchange.is_streaming:
            exchange.begin(content_type=sse.CONTENT_TYPE, headers=sse.HEADERS, probe=sse.PING)
        self._written_s = time.monotonic()
        exchange.write(data)

    def _stop_pinging(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ping(self) -> None:
        silent_s = time.monotonic() - self._written_s
        if not self._exchange.is_streaming or silent_s >= PING_S:
            if not self._exchange.is_backed_up:
                self._write(sse.PING)
            silent_s = 0.0
        self._timer = asyncio.get_running_loop().call_later(PING_S - silent_s, self._ping)


def generate_tensors(
    exchange: Exchange, served: Served, version: str, limits: WireLimits, answer: Callable[[Exchange], _Answer]
) -> Awaitable[None] | None:
    """Answers a request to any model but a language model, as `OneAnswer` or `ManyAnswers`."""
    coding = exchange.headers.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise InvalidInput(
            f"a body in Content-Encoding {coding[:32].decode('latin-1')} is not read here: send it plain"
        )
    if exchange.body_bytes <= INLINE_BYTES_MAX:
        answer(exchange).start(served, parse_members(exchange.body), version, limits)
        return None

    async def later() -> None:
        members = await asyncio.get_running_loop().run_in_executor(None, partial(parse_members, exchange.body))
        if not exchange.is_done:  # else the client left meanwhile
            answer(exchange).start(served, members, version, limits)

    return later()
