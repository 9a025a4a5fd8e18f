"""Sockets to one server, kept open between requests, one for each thread that uses them.

A connection that the server has closed while it was idle is noticed before it is used again, so a request is sent
once and never repeated behind the caller's back: repeating an inference is not always harmless.
"""

import http.client
import select
import ssl
import threading
import weakref
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from farthing.types.errors import DeadlineExceeded, InvalidInput, Unavailable

REPLY_BYTES_MAX: Final = 1 << 31
"""A reply larger than this is refused rather than read into memory."""


class Reply(msgspec.Struct, frozen=True):
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytearray


class Connections:
    """All connections of one client. Safe to use from many threads."""

    def __init__(self, url: str, timeout_s: float, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidInput(f"`{url}` is not the address of a server", hint="write http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._mine = threading.local()
        self._all: weakref.WeakSet[http.client.HTTPConnection] = weakref.WeakSet()
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Sends one request and reads its answer whole.

        Raises `Unavailable` if there is no server or it hangs up, `DeadlineExceeded` if it takes too long.
        """
        connection = self._connection()
        try:
            connection.request(method, self._prefix + path, body=body, headers=dict(headers))
            response = connection.getresponse()
            reply = Reply(
                response.status, {name.lower(): value for name, value in response.getheaders()}, _read(response)
            )
        except BaseException as error:
            connection.close()  # half a conversation: the next request begins a new one
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"{self.url} did not answer {path} within {self._timeout_s:g} s") from error
            if isinstance(error, OSError | http.client.HTTPException):
                reason = str(error) or type(error).__name__
                raise Unavailable(f"{self.url} cannot be reached: {reason}", hint="is the server running?") from error
            raise
        if response.will_close:
            connection.close()
        return reply

    def close(self) -> None:
        """Closes every connection, of all threads. Requests may follow; they open new ones."""
        with self._lock:
            connections = list(self._all)
        for connection in connections:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._open()
            self._mine.connection = connection
            with self._lock:
                self._all.add(connection)
        elif connection.sock is not None and _is_readable(connection):
            connection.close()  # an idle connection with something to read is one the other side has ended
        return connection

    def _open(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)


def _is_readable(connection: http.client.HTTPConnection) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([connection.sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _read(response: http.client.HTTPResponse) -> bytearray:
    length = response.length
    if length is not None and length > REPLY_BYTES_MAX:
        raise http.client.HTTPException(f"the answer is {length:,} bytes, over the limit of {REPLY_BYTES_MAX:,}")
    if length is None:  # chunked, or ended by closing
        body = bytearray()
        while chunk := response.read(1 << 20):
            body += chunk
            if len(body) > REPLY_BYTES_MAX:
                raise http.client.HTTPException(f"the answer is over the limit of {REPLY_BYTES_MAX:,} bytes")
        return body
    # Straight into memory that is ours to write to, so that outputs are ordinary arrays without a copy.
    body = bytearray(length)
    view, filled = memoryview(body), 0
    while filled < length:
        count = response.readinto(view[filled:])
        if not count:
            raise http.client.IncompleteRead(bytes(view[:filled]), length - filled)
        filled += count
    return body
