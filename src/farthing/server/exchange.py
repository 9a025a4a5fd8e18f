"""One HTTP request and the place for its answer: what handlers see of a connection.

Parsing requests and writing answers belong to `server.http1`, answering to `server.app` and its handlers.
"""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

from farthing.protocols import openai
from farthing.protocols.kserve import encode_error
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import FarthingError, MethodNotAllowed
from farthing.types.trace import Trace

JSON: Final = b"application/json"
OPENAI_PATHS: Final = (b"/v1/", b"/tokenize", b"/detokenize")
"""Where errors are OpenAI's objects."""


class Sender(Protocol):
    """The connection a request came on."""

    def send(
        self, exchange: "Exchange", status: int, body: bytes | list[Any], content_type: bytes, headers: bytes
    ) -> None:
        """Writes the answer and goes on to the next request."""

    def begin(self, exchange: "Exchange", content_type: bytes, headers: bytes) -> None:
        """Writes the head of an answer whose body comes in parts."""

    def write(self, exchange: "Exchange", data: bytes) -> None:
        """Writes a part of it."""

    def end(self, exchange: "Exchange") -> None:
        """Ends it and goes on to the next request."""

    def is_backed_up(self) -> bool:
        """Whether the client should read what it was sent before it is sent more."""

    def abort(self) -> None:
        """Ends the connection without a word."""

    def count_body(self, exchange: "Exchange", size: int) -> None:
        """Counts more bytes that the request holds until it is answered."""

    def switch(self, exchange: "Exchange", answer: bytes, successor: "Successor") -> bool:
        """Sends the answer and gives the socket to another protocol. Whether the client is still there."""


class SwitchedFrom(Protocol):
    """The connection, as a protocol that took over its socket needs it."""

    @property
    def now_s(self) -> float:
        """Coarse time."""

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Successor(Protocol):
    """A protocol that takes over a connection's socket."""

    @property
    def is_busy(self) -> bool:
        """It owes its client an answer."""

    def begin(self, connection: SwitchedFrom, transport: asyncio.Transport) -> None:
        """The socket is its own from now on."""

    def data_received(self, data: bytes) -> None: ...

    def check_time(self, now_s: float) -> None:
        """Ends the connection if the client is out of time; called about once a second."""

    def drain(self) -> None:
        """Finishes what is under way, and ends the connection."""


class App(Protocol):
    """What a server does with requests."""

    def handle(self, exchange: "Exchange") -> None:
        """Answers the exchange, now or later: one call of `respond` or `fail`, or `begin`, `write`s and `end`."""


class Exchange:
    """One request and the place for its answer."""

    __slots__ = (
        "begin_trace",
        "body",
        "body_bytes",
        "connection",
        "headers",
        "is_done",
        "is_paced",
        "is_streaming",
        "keep_alive",
        "method",
        "on_end",
        "on_gone",
        "on_room",
        "path",
        "probe",
        "query",
        "received_ns",
        "refusal",
        "reply_headers",
        "request_id",
        "route",
        "tenant",
        "tenant_inflight_max",
        "trace",
        "wish",
    )

    def __init__(self, connection: Sender, method: bytes, path: bytes, headers: Mapping[bytes, bytes]) -> None:
        self.connection = connection
        self.method = method
        self.path = path
        self.query = b""
        self.headers = headers
        """Names in lower case; repeated ones joined by a comma."""
        self.body: bytes | memoryview = b""
        self.body_bytes = 0
        """Bytes of the body as it came; they count against admission until the answer is out."""
        self.keep_alive = True
        self.received_ns = 0
        self.on_gone: Callable[[], None] | None = None
        """Called once if the client leaves before it was answered."""
        self.on_room: Callable[[], None] | None = None
        """Called when the client has read most of what it was sent, after `is_backed_up` was true."""
        self.is_paced = False
        """Whoever makes the parts looks at `is_backed_up`, and waits for `on_room`: nobody is cut off for much at once,
        only for reading nothing."""
        self.reply_headers = b""
        """Complete header lines every answer to this request carries."""
        self.on_end: Callable[[int], None] | None = None
        """Called once with the status answered, or 0 if the client left."""
        self.request_id = ""
        self.route = RouteClass.OTHER
        self.tenant = ""
        self.trace: Trace | None = None
        """Where to note what happens to it, if it is traced."""
        self.begin_trace: Callable[[str], Trace | None] | None = None
        """Asked for one once its handler knows the model, where the path does not say."""
        self.tenant_inflight_max = 0
        """Requests its tenant may have under way; 0 for any number."""
        self.refusal: FarthingError | None = None
        """Why this was never a request at all."""
        self.wish: Mapping[bytes, bytes] | None = None
        """The headers of a request that wants to speak WebSocket from here on."""
        self.is_done = False
        self.is_streaming = False
        """The head of a streamed answer is out, its end is not."""

    def respond(
        self,
        status: int,
        body: bytes | list[Any] = b"",
        *,
        content_type: bytes = JSON,
        headers: bytes = b"",
    ) -> None:
        """Sends the answer. `headers` are complete lines ending in CRLF; a list of buffers is sent as it is."""
        if self.is_done:
            return
        self.is_done = True
        self.on_gone = None
        self.connection.send(self, status, body, content_type, headers)

    def begin(self, *, content_type: bytes, headers: bytes = b"", probe: bytes = b"") -> None:
        """Starts an answer (200) that comes in parts. `probe` is a part without meaning, sent to a client that may
        have gone, to find out."""
        if self.is_done or self.is_streaming:
            return
        self.is_streaming = True
        self.probe = probe
        self.connection.begin(self, content_type, headers)

    def write(self, data: bytes) -> None:
        """Sends a part. A client that does not read what it is sent is cut off (`gone`), and nobody waits for it."""
        if self.is_streaming:
            self.connection.write(self, data)

    @property
    def is_backed_up(self) -> bool:
        """Whether the client should read what it was sent before it is sent more."""
        return self.connection.is_backed_up()

    def end(self) -> None:
        """Ends an answer that came in parts."""
        if self.is_streaming:
            self.is_done = True
            self.is_streaming = False
            self.on_gone = None
            self.connection.end(self)

    def switch(self, answer: bytes, successor: Successor) -> bool:
        """Grants the client its wish: sends a whole answer (101) and leaves the socket to the successor.

        Whether the client is still there. Raises `InvalidInput` if it sent more than this request.
        """
        if self.is_done or not self.connection.switch(self, answer, successor):
            return False
        self.is_done = True
        self.on_gone = None
        return True

    def fail(self, error: FarthingError) -> None:
        """Sends an error with its status, in the manner of the path. In the middle of a stream, only breaks it off."""
        if self.is_streaming:
            self.connection.abort()
            return
        headers = b""
        if error.retry_after_s is not None:
            headers = b"Retry-After: %d\r\n" % max(1, round(error.retry_after_s))
        if error.http_status == HTTPStatus.UNAUTHORIZED:
            headers += b"WWW-Authenticate: Bearer\r\n"
        if isinstance(error, MethodNotAllowed):
            headers += b"Allow: " + ", ".join(error.allowed).encode() + b"\r\n"
        if self.path.startswith(OPENAI_PATHS):
            self.respond(openai.status_of(error), openai.encode_error(error), headers=headers)
        else:
            self.respond(error.http_status, encode_error(error), headers=headers)

    def replace_body(self, body: bytes) -> None:
        """Puts the inflated body in the place of the coded one. Raises `Overloaded` when that is more than fits."""
        self.connection.count_body(self, len(body))
        self.body = body

    def gone(self) -> None:
        """The client left."""
        if not self.is_done:
            self.is_done = True
            self.is_streaming = False
            if self.on_gone is not None:
                self.on_gone()
                self.on_gone = None
            if self.on_end is not None:
                self.on_end(0)
