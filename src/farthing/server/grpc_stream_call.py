"""One gRPC call of many messages, either way: what its coroutine reads from and writes to.

The client sends ahead as far as the stream's window allows, and is given more only when its messages are read; the
coroutine waits when the client does not read its answers. So neither side can make the other keep much.
"""

import asyncio
from typing import Any

from farthing.protocols.grpc_wire import PREFIX_BYTES, Message, MessageReader, framed, inflate_message
from farthing.protocols.http2 import Data
from farthing.protocols.kserve_grpc import parse_message
from farthing.server.grpc_call import FIRST, FIRST_CODED, INLINE_CODING_BYTES_MAX, LAST, Call
from farthing.types.errors import Cancelled, InvalidInput, Unavailable


class StreamCall(Call):
    """A call whose handler is a coroutine."""

    __slots__ = ("_change", "_fed", "_has_ended_in", "_taken")

    def start(self) -> None:
        self._reader = MessageReader(self._calls.message_bytes_max)
        self._change = asyncio.Event()
        """Set when more came, or room did."""
        self._fed = self._taken = 0
        self._has_ended_in = False
        self._calls.streams.add(self)
        self.run(self._serve())

    def over(self) -> None:
        self._calls.streams.discard(self)
        super().over()

    def wake(self) -> None:
        """Something changed that its coroutine may wait for: the server stops, or the client reads again."""
        self._change.set()

    async def _serve(self) -> None:
        await self.rpc.handler(self.rpc.request(), self)
        self.finish()

    # -- in ------------------------------------------------------------------------------------------------------

    def data(self, data: Data, is_last: bool) -> None:
        self.hold(len(data))
        assert self._reader is not None
        self._reader.feed(data)
        self._fed += len(data)
        self._has_ended_in = is_last
        self._change.set()

    async def next(self) -> Any | None:
        """The next message; None at the end. Raises what is wrong with it."""
        data = await self.next_bytes()
        return None if data is None else parse_message(self.rpc.request(), data)

    async def next_bytes(self) -> Message | None:
        reader = self._reader
        assert reader is not None
        while True:
            found = reader.next()
            if found is not None:
                break
            if self._has_ended_in:
                if reader.unread_bytes:
                    raise InvalidInput("the stream's last message is cut off")
                return None
            if self._calls.is_stopping:
                raise Unavailable("Server is stopping", retry_after_s=1)
            # Only now may the client send more: what it sent makes no message yet.
            self.stream.connection.take(self.stream, self._fed - self._taken)
            self._taken = self._fed
            self._change.clear()
            await self._change.wait()
        message, is_coded = found
        self.let_go(len(message) + PREFIX_BYTES)
        if not is_coded:
            return message
        args = (message, self.plan.coding, self._calls.message_bytes_max)
        if len(message) <= INLINE_CODING_BYTES_MAX:
            return inflate_message(*args)
        return await asyncio.get_running_loop().run_in_executor(None, inflate_message, *args)

    def let_go(self, size: int) -> None:
        """So much of what came is no longer kept."""
        self._calls.admission.give_bytes(size)
        self.bytes -= size

    # -- out -----------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Sends a message. Raises `Cancelled` when the client has left too much unread."""
        stream = self.stream
        if self.is_done or stream.is_closed:
            return
        connection, accepts = stream.connection, self.plan.accepts
        if stream.unsent_bytes > self._calls.limits.stream_unread_bytes_max:
            raise Cancelled("the client leaves too much of its answers unread", hint="read them as they come")
        connection.begin(stream, FIRST if accepts == "identity" else FIRST_CODED[accepts])
        connection.write(stream, framed(message, accepts))

    @property
    def is_backed_up(self) -> bool:
        """Whether the client should read what it was sent before it is sent more."""
        return self.stream.unsent_bytes > self._calls.limits.stream_unread_bytes_max // 2

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
