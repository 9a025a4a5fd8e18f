"""How a worker reads what the server answers: whoever waits reads, for the others too.

There is no thread for reading, which would cost two hand-overs an answer: a thread that waits blocks in the socket, an
event loop has it in its selector. What an answer means is up to `subrequest_client`, whose lock this shares.
"""

import asyncio
import socket
import threading
from collections.abc import Callable

from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.subrequest_messages import Failed, Told
from farthing.types.errors import Unavailable


class AnswerReader:
    """Reads one socket."""

    def __init__(
        self,
        sock: socket.socket,
        changed: threading.Condition,
        heard: Callable[[Told | Failed, list[int]], None],
        gone: Callable[[], None],
    ) -> None:
        """`changed` is notified when something was read; `heard`, which takes descriptors out of those that came, and
        `gone` are called with its lock held."""
        self._socket = sock
        self._changed = changed
        self._heard = heard
        self._gone = gone
        self._is_reading = False
        self.is_over = False
        """The server is gone."""
        self._watchers: dict[asyncio.AbstractEventLoop, int] = {}

    def read_until(self, is_done: Callable[[], bool]) -> None:
        """Reads, or lets others read, until something is so. Raises `Unavailable` if the server is gone before."""
        while True:
            with self._changed:
                while not is_done() and not self.is_over and self._is_reading:
                    self._changed.wait()
                if is_done():
                    return
                if self.is_over:
                    raise Unavailable("the server is gone")
                self._is_reading = True
            try:
                self._read(0)
            finally:
                self._stop_reading()

    def _readable(self) -> None:
        """An event loop saw that something can be read."""
        with self._changed:
            if self._is_reading:  # a thread does
                return
            self._is_reading = True
        try:
            while self._read(socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass
        finally:
            self._stop_reading()

    def _stop_reading(self) -> None:
        with self._changed:
            self._is_reading = False
            self._changed.notify_all()

    def _read(self, flags: int) -> bool:
        """Reads a message and hands it over; False: the server is gone."""
        try:
            data, fds = messages.receive(self._socket, flags)
        except BlockingIOError:
            raise
        except OSError:
            data, fds = b"", []
        if not data:
            with self._changed:
                self.is_over = True
                self._gone()
                self._changed.notify_all()
            return False
        with self._changed:
            for answer in messages.decode_answers(data):
                self._heard(answer, fds)
        return True

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """A coroutine of this event loop waits: it reads, too."""
        with self._changed:
            count = self._watchers[loop] = self._watchers.get(loop, 0) + 1
        if count == 1:
            loop.add_reader(self._socket, self._readable)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """It waits no more."""
        with self._changed:
            self._watchers[loop] -= 1
            is_last = not self._watchers[loop]
            if is_last:
                del self._watchers[loop]
        if is_last:
            loop.remove_reader(self._socket)
