"""One gRPC call of many messages, either way: what its coroutine reads from and writes to.

The client sends ahead as far as the stream's window allows, and is given more only when its messages are read; what it
leaves unread counts against admission, and no more of its messages are read meanwhile. So neither side can make the
other keep much.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from farthing.protocols.grpc_wire import PREFIX_BYTES, Message, MessageReader, framed, inflate_message
from farthing.protocols.http2 import Data
from farthing.protocols.kserve_grpc import parse_message
from farthing.server.grpc_call import FIRST, FIRST_CODED, INLINE_CODING_BYTES_MAX, LAST, Call
from farthing.types.errors import FarthingError, InvalidInput, Unavailable


class StreamCall(Call):
    """A call whose handler is a coroutine."""

    __slots__ = ("_change", "_fed", "_has_ended_in", "_inflight_max", "_taken", "_waiting_bytes", "broken", "on_room")

    def start(self) -> None:
        self._reader = MessageReader(self._calls.message_bytes_max)
        self._change = asyncio.Event()
        self._fed = self._taken = 0
        self._has_ended_in = False
        self._waiting_bytes = 0
        """Sent, and held back by windows or the socket."""
        self.broken: FarthingError | None = None
        """Why its coroutine should not wait for more messages; set it, then `wake`."""
        self.on_room: Callable[[], None] | None = None
        """Called when the client has read all it was sent."""
        self._calls.streams.add(self)
        self.run(self._serve())

    async def _serve(self) -> None:
        await self.rpc.handler(self.rpc.request(), self)
        self.finish()

    def over(self) -> None:
        self._calls.streams.discard(self)
        super().over()

    def enter(self, tenant: str, inflight_max: int) -> None:
        """Only notes whose it is: what counts as under way is each request in it."""
        self.tenant = tenant
        self._inflight_max = inflight_max

    def enter_request(self) -> None:
        """Counts one request of the stream as its tenant's. Raises `TenantLimited`."""
        if self.tenant and self._inflight_max:
            self._calls.admission.enter(self.tenant, self._inflight_max)

    def leave_request(self) -> None:
        """It is answered."""
        if self.tenant and self._inflight_max:
            self._calls.admission.leave(self.tenant)

    def wake(self) -> None:
        """Something its coroutine may wait for has changed."""
        self._change.set()

    async def change(self) -> None:
        """Waits until something has changed: more came, the client read, a request was answered, the server stops."""
        self._change.clear()
        await self._change.wait()

    def timeout_left_us(self, asked_us: int) -> int:
        """How long a request that begins now may take: what it asks for, or what is left of the call's deadline."""
        if self.plan.timeout_us < 0:
            return asked_us
        left_us = max(1, self.plan.timeout_us - (time.monotonic_ns() - self.received_ns) // 1000)
        return min(asked_us, left_us) if asked_us else left_us

    @property
    def is_stopping(self) -> bool:
        """Whether the server wants the stream to end."""
        return self._calls.is_stopping

    # -- in ------------------------------------------------------------------------------------------------------

    def data(self, data: Data, is_last: bool) -> None:
        self.hold(len(data))
        assert self._reader is not None
        self._reader.feed(data)
        self._fed += len(data)
        self._has_ended_in = is_last
        self.wake()

    async def next(self) -> Any | None:
        """The next message; None at the end. Raises what is wrong with it."""
        data = await self.next_bytes()
        if data is None:
            return None
        self.let_go(len(data))
        return parse_message(self.rpc.request(), data)

    async def next_bytes(self) -> Message | None:
        """The next message as it came, inflated; None at the end. It stays counted until its length is `let_go`.

        Raises `Unavailable` when the server stops, once all that came whole has been read.
        """
        reader = self._reader
        assert reader is not None
        while (found := reader.next()) is None:
            if self._has_ended_in:
                if reader.unread_bytes:
                    raise InvalidInput("the stream's last message is cut off")
                return None
            if self.broken is not None:
                raise self.broken
            if self.is_stopping:
                raise Unavailable("Server is stopping", retry_after_s=1)
            # Only now may the client send more: what it sent makes no message yet.
            self.stream.connection.take(self.stream, self._fed - self._taken)
            self._taken = self._fed
            await self.change()
        message, is_coded = found
        self.let_go(PREFIX_BYTES)
        if not is_coded:
            return message
        args = (message, self.plan.coding, self._calls.message_bytes_max)
        if len(message) <= INLINE_CODING_BYTES_MAX:
            inflated = inflate_message(*args)
        else:
            inflated = await asyncio.get_running_loop().run_in_executor(None, inflate_message, *args)
        self.hold(len(inflated))
        self.let_go(len(message))
        return inflated

    # -- out -----------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Sends a message, now or when the client reads. Raises `Overloaded` when there is no room to keep it."""
        stream = self.stream
        if self.is_done or stream.is_closed:
            return
        connection, accepts = stream.connection, self.plan.accepts
        data = framed(message, accepts)
        if not connection.fits(stream, len(data)):
            self.hold(len(data))
            self._waiting_bytes += len(data)
        connection.begin(stream, FIRST if accepts == "identity" else FIRST_CODED[accepts])
        connection.write(stream, data)

    def drained(self) -> None:
        """The client has read all it was sent."""
        self.let_go(self._waiting_bytes)
        self._waiting_bytes = 0
        if self.on_room is not None:
            self.on_room()
        self.wake()

    @property
    def is_backed_up(self) -> bool:
        """Whether the client should read what it was sent before more is done for it."""
        return self.stream.unsent_bytes > self._calls.limits.stream_unread_bytes_max

    def finish(self) -> None:
        """Ends the call well."""
        if self.is_done:
            return
        self.is_done = True
        self.on_gone = None
        self.code = 0
        accepts = self.plan.accepts
        stream = self.stream
        stream.connection.begin(stream, FIRST if accepts == "identity" else FIRST_CODED[accepts])
        stream.connection.end(stream, LAST[0])
