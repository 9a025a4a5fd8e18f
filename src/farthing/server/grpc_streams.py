"""`ModelStreamInfer`: requests and answers of one stream, as Triton has it.

A model that answers a request once answers in the order of the requests; a language model's text comes as it is
made, several generations side by side, and so do the answers of a decoupled model. An error is an answer like any
other, with the request's id, and the stream goes on, unless the caller asked otherwise (`triton_grpc_error: true`).
Which bytes mean what belongs to `protocols.kserve_grpc`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from farthing.protocols.grpc_wire import Message
from farthing.protocols.kserve import WireLimits, check_outputs
from farthing.protocols.kserve.generate import GenerateFields
from farthing.protocols.kserve.generation_inputs import asked_generation
from farthing.protocols.kserve_grpc import (
    DecoupledStream,
    GenerateStream,
    decode_infer,
    encode_infer,
    parse_message,
    stream_answer,
    stream_error,
    wants_empty_final,
)
from farthing.runtime.generate import generate_request, prompt_tokens
from farthing.runtime.language_model import Event, LanguageModel
from farthing.runtime.runtime import Runtime
from farthing.runtime.served_streams import Streaming
from farthing.runtime.text_answers import INLINE_CHARACTERS_MAX
from farthing.server.forwarding import HeaderForwarding
from farthing.server.grpc_frames import FrameCall
from farthing.server.grpc_stream_call import StreamCall
from farthing.telemetry.generation_spans import note_generation
from farthing.types.errors import Cancelled, FarthingError, TenantLimited
from farthing.types.generation import Delta, Finished, GenerateRequest
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse
from farthing.types.trace import Trace

REQUESTS_MAX: Final = 256
"""Requests of one stream under way; no further one is read before one is answered."""


class _Request:
    """One request of a stream, until it is answered."""

    __slots__ = ("answer", "bytes", "error", "id", "is_entered", "model", "received_ns", "taken", "trace", "withdraw")

    def __init__(self, size: int) -> None:
        self.bytes = size
        self.id = ""
        self.answer: bytes | None = None
        """Waits for its turn."""
        self.is_entered = False
        self.received_ns = time.monotonic_ns()
        self.model = ""
        self.trace: Trace | None = None
        self.error: FarthingError | None = None
        """What was answered, if it was one; for the trace."""
        self.withdraw: Callable[[], None] | None = None
        self.taken: Callable[[], None] | None = None
        """Tells a model that answers more than once that one of its answers has been dealt with."""


class InferStream:
    """One call of `ModelStreamInfer`."""

    def __init__(
        self,
        runtime: Runtime,
        limits: WireLimits,
        kind: Any,
        call: StreamCall,
        forwarding: HeaderForwarding | None = None,
    ) -> None:
        self._runtime = runtime
        self._forwarding = forwarding
        self._tracing = call.tracing
        self._limits = limits
        self._kind = kind
        self._call = call
        self._in_order: deque[_Request] = deque()
        self._under_way: set[_Request] = set()
        self._fatal: FarthingError | None = None
        self._untaken: list[Callable[[], None]] = []
        call.on_room = self._take_all
        self._frames = FrameCall(runtime, call.plan.frames) if call.plan.frames is not None else None
        """Where requests are frames."""

    async def serve(self) -> None:
        """Reads to the end of the requests and answers them all."""
        call = self._call
        try:
            try:
                while (data := await call.next_bytes()) is not None:
                    await self._take(data)
                    while self._fatal is None and (len(self._under_way) >= REQUESTS_MAX or call.is_backed_up):
                        await call.change()
                    if self._fatal is not None:
                        raise self._fatal
            finally:
                if not call.is_done and self._fatal is None:  # what came is answered, whatever comes next
                    while self._under_way and self._fatal is None:
                        await call.change()
            if self._fatal is not None:
                raise self._fatal
        finally:
            if self._frames is not None:
                self._frames.close()
            for request in list(self._under_way):
                if request.withdraw is not None:
                    request.withdraw()
                self._forget(request)

    async def _take(self, data: Message) -> None:
        request = _Request(len(data))
        self._under_way.add(request)
        try:
            message = parse_message(self._kind, data)
            request.id = message.id
            if self._tracing is not None:
                request.model = message.model_name
                request.trace = self._tracing.of_stream_request(self._call, request.model)
            if self._frames is not None:
                self._in_order.append(request)
                self._take_frame(request, message, self._frames)
                return
            self._call.enter_request()
            request.is_entered = True
            served = self._runtime.resolve(message.model_name, message.model_version)
            asked = decode_infer(message, self._limits, self._runtime.regions)
            if asked.shared_bytes:
                self._call.hold(asked.shared_bytes)
                request.bytes += asked.shared_bytes
            if self._forwarding is not None:
                self._forwarding.forward(self._call.headers, asked)
            asked.tenant = self._call.tenant
            asked.trace = request.trace
            if isinstance(served, LanguageModel):
                await self._generate(request, asked, served, wants_empty_final(message))
                return
            if isinstance(served, Streaming):
                self._stream(request, asked, served, wants_empty_final(message))
                return
            self._in_order.append(request)
            asked.timeout_us = self._call.timeout_left_us(asked.timeout_us)
            rows, signature = served.check(asked)
            if asked.outputs:
                check_outputs(asked, served.spec)
            request.withdraw = served.submit(
                asked, rows, signature, time.monotonic_ns(), partial(self._answered, request, asked, served.spec)
            )
        except FarthingError as error:
            if request not in self._in_order:
                self._in_order.append(request)
            self._failed(request, error)

    def _take_frame(self, request: _Request, message: Any, frames: FrameCall) -> None:
        """A request of a stream of frames."""
        arrival_ns = time.monotonic_ns()

        def tell(answer: bytes | FarthingError) -> None:
            if isinstance(answer, FarthingError):
                self._failed(request, answer)
            else:
                request.answer = answer
                self._send_in_order()

        stream = frames.stream(message)
        if frames.asks_summary(message):
            tell(frames.summary(message, stream))
            return
        try:
            self._call.enter_request()
            request.is_entered = True
            asked = decode_infer(message, self._limits, self._runtime.regions)
            if asked.shared_bytes:
                self._call.hold(asked.shared_bytes)
                request.bytes += asked.shared_bytes
        except TenantLimited:
            stream.refuse(arrival_ns, frames.teller(message.id, None, tell))
            return
        except FarthingError as error:
            stream.fail(error, arrival_ns, frames.teller(message.id, None, tell))
            return
        asked.tenant = self._call.tenant
        stream.offer(asked, arrival_ns, frames.teller(message.id, asked, tell))

    # -- one answer a request ------------------------------------------------------------------------------------

    def _answered(
        self, request: _Request, asked: InferRequest, spec: ModelSpec, answer: InferResponse | FarthingError
    ) -> None:
        if isinstance(answer, FarthingError):
            self._failed(request, answer)
            return
        try:
            request.answer = stream_answer(encode_infer(answer, asked, spec, self._runtime.regions), is_final=True)
        except FarthingError as error:
            self._failed(request, error)
            return
        self._send_in_order()

    def _failed(self, request: _Request, error: FarthingError) -> None:
        request.withdraw = None
        request.error = error
        if self._call.plan.ends_on_error:
            self._end(error)
            return
        request.answer = stream_error(request.id, error)
        self._send_in_order()

    def _send_in_order(self) -> None:
        waiting = self._in_order
        while waiting and waiting[0].answer is not None:
            request = waiting.popleft()
            answer = request.answer
            self._forget(request)
            if answer is not None:
                self._send(answer)

    def _send(self, answer: bytes) -> None:
        try:
            self._call.send(answer)
        except FarthingError as full:
            self._end(full)

    def _end(self, error: FarthingError) -> None:
        self._call.broken = self._fatal = self._fatal or error
        self._call.wake()

    def _forget(self, request: _Request) -> None:
        if request in self._under_way:
            self._under_way.discard(request)
            if request.trace is not None and self._tracing is not None:
                self._tracing.stream_request_ended(
                    self._call, request.trace, request.model, request.received_ns, request.error
                )
            self._call.let_go(request.bytes)
            if request.is_entered:
                self._call.leave_request()
            self._call.wake()

    # -- zero, one or many answers a request ---------------------------------------------------------------------

    def _stream(self, request: _Request, asked: InferRequest, served: Streaming, ends_empty: bool) -> None:
        asked.timeout_us = self._call.timeout_left_us(asked.timeout_us)
        rows, signature = served.check_stream(asked)
        if asked.outputs:
            check_outputs(asked, served.spec)
        answers = DecoupledStream(asked, served.spec, self._runtime.regions, wants_empty_final=ends_empty)
        stream = served.stream(asked, rows, signature, time.monotonic_ns(), partial(self._said, request, answers))
        request.withdraw, request.taken = stream.withdraw, stream.taken

    def _said(self, request: _Request, answers: DecoupledStream, said: StreamedResponse) -> None:
        if request not in self._under_way:
            return
        if said.is_last:
            request.withdraw = None
        try:
            messages = answers.messages(said)
        except FarthingError as error:  # an answer that cannot be written ends its request
            if request.withdraw is not None:
                request.withdraw()
            said = StreamedResponse(error, is_last=True)
            messages = answers.messages(said)
        if said.is_last:
            self._forget(request)
        if isinstance(said.answer, FarthingError) and self._call.plan.ends_on_error:
            self._end(said.answer)
            return
        for message in messages:
            self._send(message)
        if request.taken is not None:
            if self._call.is_backed_up:
                self._untaken.append(request.taken)
            else:
                request.taken()

    def _take_all(self) -> None:
        """The client has read: models that waited for it may go on."""
        untaken, self._untaken = self._untaken, []
        for taken in untaken:
            taken()

    # -- text ----------------------------------------------------------------------------------------------------

    async def _generate(self, request: _Request, asked: InferRequest, model: LanguageModel, ends_empty: bool) -> None:
        fields = asked_generation(asked)
        prepare = partial(self._prepared, asked, fields, model)
        if len(fields.text_input) <= INLINE_CHARACTERS_MAX:
            wanted = prepare()
        else:
            wanted = await asyncio.get_running_loop().run_in_executor(None, prepare)
        stream = GenerateStream(asked, fields, model.spec.name, model.version, wants_empty_final=ends_empty)
        request.withdraw = model.generate(wanted, partial(self._generated, request, stream, wanted))
        for answer in stream.begin():  # before any event, which come in a later turn of the event loop
            self._send(answer)

    def _prepared(self, asked: InferRequest, fields: GenerateFields, model: LanguageModel) -> GenerateRequest:
        call = self._call
        now_ns = time.monotonic_ns()
        timeout_us = call.timeout_left_us(asked.timeout_us)
        return generate_request(
            model,
            prompt_tokens(model, fields.text_input, "text_input"),
            fields,
            id=asked.id,
            tokens_max=fields.tokens_max,
            logprobs=None,
            tenant=asked.tenant,
            arrival_ns=now_ns,
            deadline_ns=now_ns + timeout_us * 1000 if timeout_us else 0,
            field="text_input",
        )

    def _generated(self, request: _Request, stream: GenerateStream, wanted: GenerateRequest, event: Event) -> None:
        if request not in self._under_way:
            return
        if isinstance(event, Delta):
            for answer in stream.delta(event):
                self._send(answer)
            if self._call.is_backed_up:  # whoever makes text does not wait for whoever reads it
                self._end(Cancelled("the client leaves too much of its answers unread", hint="read them as they come"))
        elif isinstance(event, Finished):
            if request.trace is not None:
                note_generation(request.trace, "text_completion", wanted, event, ())
            self._forget(request)
        elif isinstance(event, FarthingError):
            request.error = event
            self._forget(request)
            if self._call.plan.ends_on_error:
                self._end(event)
            else:
                self._send(stream_error(request.id, event))
