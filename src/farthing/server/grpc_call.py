"""One gRPC call: its message put together, its handler asked, its answer or status sent.

A unary call is answered by one call of `reply` or `fail`; no task and no future is made for an inference request. Calls
of many messages are `server.grpc_stream_call`, who may call at all is `server.grpc_calls`, and what the methods do is
`server.grpc_service`.
"""

import asyncio
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from farthing.protocols.frames import frame_options
from farthing.protocols.grpc_wire import (
    CODES,
    PREFIX_BYTES,
    Coding,
    Message,
    MessageReader,
    coding_of,
    framed,
    inflate_message,
    prefixed,
    timeout_us,
    trailers,
)
from farthing.protocols.http2 import Data, ErrorCode, Field, Fields, Head, Stream
from farthing.protocols.kserve_grpc import parse_message, status_detail
from farthing.server.auth import Door
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import (
    GRPC_CANCELLED,
    DeadlineExceeded,
    FarthingError,
    InvalidInput,
    MessageTooLarge,
    RequestTimeout,
    Unsupported,
)
from farthing.types.frames import FrameOptions
from farthing.types.trace import Trace

if TYPE_CHECKING:
    from farthing.server.grpc_calls import GrpcCalls
    from farthing.server.tracing import Tracing

INLINE_CODING_BYTES_MAX: Final = 32 * 1024
"""Messages up to this size are inflated and deflated on the event loop (gzip: up to 0.5 ms), larger ones elsewhere."""

ACCEPTED: Final = (b"grpc-accept-encoding", b"identity,deflate,gzip")
_OPENING: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"), ACCEPTED)
FIRST: Final = Fields(*_OPENING)
"""What every answer begins with."""
FIRST_CODED: Final = {coding: Fields(*_OPENING, (b"grpc-encoding", coding.encode())) for coding in ("gzip", "deflate")}
LAST: Final = [Fields((b"grpc-status", b"%d" % code)) for code in range(len(CODES))]
"""Trailers by status."""
ONLY: Final = [Fields(*_OPENING, (b"grpc-status", b"%d" % code)) for code in range(len(CODES))]
"""Answers that are nothing but trailers, by status."""
_GRPC: Final = re.compile(rb"application/grpc(?:[+;]|$)")
"""Content types that are gRPC's; `application/grpc-web` is another protocol."""
NOT_POST: Final = Fields((b":status", b"405"), (b"allow", b"POST"))
NOT_GRPC: Final = Fields((b":status", b"415"), (b"accept", b"application/grpc"))
"""To clients that do not speak gRPC, in words of theirs."""

FRAME_METADATA: Final = {
    b"farthing-stream-policy": "policy",
    b"farthing-frame-deadline-ms": "deadline_ms",
    b"farthing-frame-queue-max": "queue_max",
}
"""Metadata of a call whose requests are frames, and what WebSocket calls the same."""


class Rpc(msgspec.Struct, frozen=True):
    """One RPC: where it is, the message it takes, who may call it, and who answers."""

    path: str
    request: Callable[[], Any]
    """The class of its message; asked for on the first call, because protobuf is imported with it."""
    handler: Callable[[Any, Any], Any]
    """Answers a message of a `Call`, now or awaited; or None, and calls `Call.reply` or `Call.fail` when it likes."""
    door: Door
    kind: RouteClass
    is_stream: bool = False
    """Whether the handler is a coroutine that takes the class of its messages and a `StreamCall`, and reads and writes
    messages itself."""
    is_watch: bool = False
    """Whether its calls stay open while nothing happens; the server's end does not wait for them."""


class Plan:
    """What a call's head asks for; worked out once for all calls with the same head."""

    __slots__ = ("accepts", "coding", "ends_on_error", "fields", "frames", "not_grpc", "refusal", "rpc", "timeout_us")

    def __init__(self, head: Head, rpcs: dict[bytes, Rpc]) -> None:
        self.rpc = rpcs.get(head.path)
        self.fields = head.fields
        self.timeout_us = -1
        """The deadline; -1 for none."""
        self.coding: Coding = "identity"
        self.accepts: Coding = "identity"
        """What its messages are coded in, and what its answers may be."""
        self.ends_on_error = head.fields.get(b"triton_grpc_error") == b"true"
        """Whether an error within a stream is to end it (Triton's metadata of that name)."""
        self.frames: FrameOptions | None = None
        """How its requests are to be treated, if it is a stream of frames."""
        self.refusal: FarthingError | None = None
        self.not_grpc: Fields | None = None
        fields = head.fields
        if head.method != b"POST":
            self.not_grpc = NOT_POST
        elif not _GRPC.match(fields.get(b"content-type", b"")):
            self.not_grpc = NOT_GRPC
        try:
            self._read(head)
        except FarthingError as error:
            self.refusal = error

    def _read(self, head: Head) -> None:
        fields = head.fields
        if head.is_too_large:
            raise MessageTooLarge("the call's metadata is over the limit", hint="send less metadata")
        if self.rpc is None:
            raise Unsupported(
                f"no method `{head.path[:200].decode('latin-1')}` here", hint="server reflection lists every service"
            )
        frames = {name: fields[key].decode("latin-1") for key, name in FRAME_METADATA.items() if key in fields}
        if frames:
            self.frames = frame_options(frames)
        if b"grpc-timeout" in fields:
            self.timeout_us = timeout_us(fields[b"grpc-timeout"])
        if b"grpc-encoding" in fields:
            self.coding = coding_of(fields[b"grpc-encoding"])
            accepted = fields.get(b"grpc-accept-encoding", b"").decode("latin-1").replace(" ", "").split(",")
            self.accepts = self.coding if self.coding in accepted else "identity"


class Call:
    """One call under way, from its head until its answer has left."""

    __slots__ = (
        "_calls",
        "_held_since_s",
        "_is_over",
        "_reader",
        "_sent_before",
        "_tenant_entered",
        "bytes",
        "code",
        "has_context",
        "is_done",
        "model",
        "on_gone",
        "plan",
        "received_ns",
        "rpc",
        "stream",
        "tenant",
        "timeout_us",
        "trace",
    )

    def __init__(self, calls: "GrpcCalls", stream: Stream, plan: Plan, rpc: Rpc) -> None:
        self._calls = calls
        self.stream = stream
        self.plan = plan
        self.rpc = rpc
        self.received_ns = time.monotonic_ns()
        self.tenant = ""
        self.timeout_us = max(0, plan.timeout_us)
        """How long its caller waits; 0 for as long as it takes."""
        self.bytes = 0
        """What it holds; counts against admission until it is over."""
        self.code = GRPC_CANCELLED
        """How it ended; before that, how it ends if its caller leaves."""
        self.is_done = False
        self.on_gone: Callable[[], object] | None = None
        """Called once if the caller leaves, or runs out of time, before it was answered."""
        self.trace: Trace | None = None
        """Where to note what happens to it, if it is traced."""
        self.has_context = False
        """Whether its caller has a trace, sampled or not: then it begins none of its own."""
        self.model = ""
        """Whom it asks; told for the trace's sake."""
        self._reader: MessageReader | None = None
        self._tenant_entered = False
        self._is_over = False
        self._held_since_s = 0.0
        """Since when its caller reads too little of the answer; 0 while nothing waits."""
        self._sent_before = 0

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Its metadata; names in lower case."""
        return self.plan.fields

    @property
    def tracing(self) -> "Tracing | None":
        """Where traces go; None where they go nowhere."""
        return self._calls.tracing

    # -- the request ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """It may begin. One with a single message waits for that."""

    def data(self, data: Data, is_last: bool) -> None:
        """More of the request's body. Raises what is wrong with it."""
        size = len(data) - PREFIX_BYTES
        if is_last and self._reader is None and size >= 0 and not data[0] and int.from_bytes(data[1:5], "big") == size:
            self.hold(size)
            self.begin(data[PREFIX_BYTES:])
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self._calls.message_bytes_max)
        self.hold(len(data))
        reader.feed(data)
        self.stream.connection.take(self.stream, len(data))
        if not is_last:
            reader.check()
            return
        found = reader.next()
        if found is None and reader.unread_bytes:
            raise InvalidInput("the call's only message is cut off", hint="send as many bytes as its prefix says")
        if found is None or reader.unread_bytes:
            raise Unsupported("this method takes exactly one message", hint="call ModelStreamInfer to send several")
        self._reader = None
        message, is_coded = found
        if is_coded:
            self._inflate(message)
        else:
            self.begin(message)

    def _inflate(self, message: Message) -> None:
        args = (message, self.plan.coding, self._calls.message_bytes_max)
        if len(message) <= INLINE_CODING_BYTES_MAX:
            self._begin_inflated(inflate_message(*args))
            return
        future = asyncio.get_running_loop().run_in_executor(None, inflate_message, *args)

        def inflated(done: "asyncio.Future[bytes]") -> None:
            if not self.is_done:
                self._calls.guard(self, lambda: self._begin_inflated(done.result()))

        future.add_done_callback(inflated)

    def _begin_inflated(self, message: Message) -> None:
        self.hold(len(message))
        self.begin(message)

    def begin(self, data: Message) -> None:
        """The whole message is here: its handler answers it."""
        rpc = self.rpc
        answer = rpc.handler(parse_message(rpc.request(), data), self)
        if answer is None:
            return
        if inspect.isawaitable(answer):
            self._await(answer)
        else:
            self.reply(answer.SerializeToString())

    def _await(self, answer: Awaitable[Any]) -> None:
        async def finish() -> None:
            message = await answer
            self.reply(message.SerializeToString())

        self.run(finish())

    def run(self, coroutine: Any) -> None:
        """Lets a coroutine answer; it is cancelled when the caller leaves."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.on_gone = task.cancel
        task.add_done_callback(self._ran)

    def _ran(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._calls.guard(self, task.result)

    # -- room ----------------------------------------------------------------------------------------------------

    def let_go(self, size: int) -> None:
        """So much of what it held is kept no longer. (Once it is over, all of it has been let go.)"""
        if self._is_over:
            return
        self._calls.admission.give_bytes(size)
        self.bytes -= size

    def hold(self, size: int) -> None:
        """Counts bytes that are kept until the call is over. Raises `Overloaded` when that is more than fits."""
        if self._is_over:
            return
        self._calls.admission.take_bytes(size)
        self.bytes += size

    def enter(self, tenant: str, inflight_max: int) -> None:
        """Counts it as its tenant's. Raises `TenantLimited`."""
        self.tenant = tenant
        if inflight_max:
            self._calls.admission.enter(tenant, inflight_max)
            self._tenant_entered = True

    # -- the answer ----------------------------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """Sends the answer."""
        if self.is_done:
            return
        coding = self.plan.accepts
        if coding != "identity" and len(message) > INLINE_CODING_BYTES_MAX:
            self.run(self._reply_coded(message))
            return
        self._send(prefixed(message) if coding == "identity" else framed(message, coding))

    async def _reply_coded(self, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._send(await loop.run_in_executor(None, framed, message, self.plan.accepts))

    def _send(self, body: bytes) -> None:
        stream = self.stream
        if self.is_done:
            return
        connection = stream.connection
        if not connection.fits(stream, len(body)):
            try:
                self.hold(len(body))  # it may wait here for a reader for some time
            except FarthingError as full:
                self.fail(full)
                return
        self.is_done = True
        self.on_gone = None
        self.code = 0
        accepts = self.plan.accepts
        connection.respond(stream, FIRST if accepts == "identity" else FIRST_CODED[accepts], body, LAST[0])

    def fail(self, error: FarthingError) -> None:
        """Ends the call with an error's status."""
        if self.is_done:
            return
        self.is_done = True
        self.on_gone = None
        self.code = code = error.grpc_status
        stream = self.stream
        fields = LAST if stream.has_sent_head else ONLY
        others: tuple[Field, ...] = trailers(error, status_detail(error))
        stream.connection.end(stream, fields[code], *others)

    def give_up(self, error: FarthingError) -> None:
        """Ends the call for a reason that is not its handler's; that is told by `on_gone`."""
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()
        self.fail(error)

    def over(self) -> None:
        """The stream is closed: the answer has left, or nobody wants one."""
        calls = self._calls
        if not self.is_done or not self.stream.has_ended_out:
            self.is_done = True
            if self.on_gone is not None:
                self.on_gone()
                self.on_gone = None
        self._is_over = True
        calls.admission.give_bytes(self.bytes)
        if self._tenant_entered:
            calls.admission.leave(self.tenant)
        if self.trace is not None and calls.tracing is not None:
            calls.tracing.call_ended(self, self.trace)
        calls.counters.answered(self.rpc.kind, CODES[self.code])

    def check_time(self, now_s: float) -> None:
        """Ends it if its deadline has passed, or its caller takes too long to send or to read."""
        if not self.is_done:
            waited_s = (time.monotonic_ns() - self.received_ns) / 1e9
            if self.plan.timeout_us >= 0 and waited_s * 1e6 > self.plan.timeout_us:
                self.give_up(DeadlineExceeded("the deadline passed before there was an answer", hint="allow more time"))
                return
            limits = self._calls.limits
            allowed_s = limits.body_timeout_s + self.bytes / limits.body_bytes_per_s_min
            if not self.rpc.is_stream and not self.stream.has_ended_in and waited_s > allowed_s:
                self.give_up(RequestTimeout("the call's message did not arrive in time", hint="send it in one go"))
                return
        self._check_reading(now_s)

    def _check_reading(self, now_s: float) -> None:
        """Resets a stream whose own window the client keeps shut; one that it opens at a bearable pace has time."""
        stream, limits = self.stream, self._calls.limits
        if stream.is_closed or not stream.unsent_bytes:
            self._held_since_s = 0.0
            return
        wanted = limits.body_bytes_per_s_min * limits.write_timeout_s
        if not self._held_since_s or stream.sent_bytes - self._sent_before >= wanted:
            self._held_since_s, self._sent_before = now_s, stream.sent_bytes
        if now_s - self._held_since_s >= limits.write_timeout_s:
            stream.connection.cancel(stream, ErrorCode.CANCEL)
