"""The system under test over blocking sockets, a thread each: for accuracy, where every answer's outputs are wanted,
for TLS, and where there is no native loop. Some thousands of samples a second; `sut_native` is the fast one.
"""

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import httptools

from farthing.bench import records as noted
from farthing.bench.endpoint import Endpoint
from farthing.bench.grpc_call import RefusedCall, exchange
from farthing.bench.load import Message, Progress
from farthing.bench.records import Records
from farthing.bench.sut import SAMPLE_BYTES, Complete, Notes, Sample, outputs_bytes
from farthing.client.client import HEADER_LENGTH
from farthing.client.tensors import decode_response
from farthing.protocols.kserve_grpc.messages import message_class
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput

READ_BYTES: Final = 1 << 18


class ThreadSut:
    """A thread a connection. With one connection LoadGen's own thread speaks.

    `messages` are those of a `Work`, by sample; `is_kept`: outputs' bytes are wanted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        messages: Sequence[Message],
        complete: Complete,
        *,
        connections: int,
        timeout_s: float,
        is_kept: bool,
    ) -> None:
        self.notes = Notes()
        self._messages, self._complete, self._is_kept = messages, complete, is_kept
        self._open = partial(_GrpcCalls if endpoint.kind == "grpc" else _HttpConnection, endpoint, timeout_s)
        self._count = connections
        self._own = self._open() if connections == 1 else None
        self._queue: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"sut-{number}", daemon=True)
            for number in range(connections if connections > 1 else 0)
        ]
        for thread in self._threads:
            thread.start()

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        for sample in self.notes.samples(ids, indices, self._count):
            if self._own is not None:
                self._ask(self._own, sample)
            else:
                self._queue.put(sample)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._own is not None:
            self._own.close()

    def progress(self) -> Progress:
        return self.notes.progress()

    def records(self, *, is_by_query: bool) -> Records:
        return self.notes.records(is_by_query=is_by_query, has_own_core=True)

    def _serve(self) -> None:
        connection = self._open()
        while (sample := self._queue.get()) is not None:
            self._ask(connection, sample)
        connection.close()

    def _ask(self, connection: "_HttpConnection | _GrpcCalls", sample: Sample) -> None:
        outputs = b""
        try:
            sample.sent_ns = time.monotonic_ns()
            status, said = connection.exchange(self._messages[sample.index])
            if self._is_kept and 200 <= status < 300:
                outputs = connection.outputs()
            self.notes.end(sample, status, said)
        except (OSError, EOFError, httptools.HttpParserError, FarthingError) as error:
            connection.close()
            self.notes.end(sample, _kind(error), str(error).encode())
        finally:
            self._complete(sample.id, outputs)


def _kind(error: Exception) -> int:
    for kind, status in (
        (TimeoutError, noted.TIMEOUT),
        (ConnectionResetError, noted.RESET),
        (EOFError, noted.CLOSED),
        (httptools.HttpParserError, noted.MALFORMED),
        (EngineFailed, noted.MALFORMED),
        (InvalidInput, noted.MALFORMED),
    ):
        if isinstance(error, kind):
            return status
    return noted.CONNECT


class _HttpConnection:
    """One socket that blocks; opened when it is needed, kept while the server keeps it."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._tls = ssl.create_default_context() if endpoint.is_tls else None
        self._socket: socket.socket | None = None
        self._is_done = False
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    def exchange(self, message: Message) -> tuple[int, bytes]:
        """The answer's status and its beginning. Raises `OSError`, `EOFError`."""
        if self._socket is None:
            self._socket = self._opened()
        self._is_done, self.headers, self.body = False, {}, bytearray()
        parser: Any = httptools.HttpResponseParser(self)
        self._socket.sendall(message.data)
        while not self._is_done:
            part = self._socket.recv(READ_BYTES)
            if not part:
                raise EOFError
            parser.feed_data(part)
        if not parser.should_keep_alive():
            self.close()
        return int(parser.get_status_code()), bytes(self.body[:SAMPLE_BYTES])

    def outputs(self) -> bytes:
        """Of the answer that came last. Raises `EngineFailed` for what is none."""
        length = self.headers.get(HEADER_LENGTH.lower())
        return outputs_bytes(decode_response(self.body, int(length) if length else None)[1])

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self._is_done = True

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _opened(self) -> socket.socket:
        made = socket.create_connection((self._endpoint.host, self._endpoint.port), self._timeout_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(made, server_hostname=self._endpoint.host) if self._tls else made


class _GrpcCalls:
    """A connection for each call: slow, and nothing is timed by it that matters."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._answer = b""

    def exchange(self, message: Message) -> tuple[int, bytes]:
        """200, or what stands for the call's own status. Raises `Unavailable`."""
        try:
            self._answer = exchange(self._endpoint, message, self._timeout_s)
        except RefusedCall as refused:
            return noted.GRPC - refused.status, refused.said.encode()[:SAMPLE_BYTES]
        return 200, b""

    def outputs(self) -> bytes:
        """Raw contents, one after the other. Raises `EngineFailed` where the server sent them otherwise."""
        answer = message_class("ModelInferResponse").FromString(self._answer)
        if len(answer.raw_output_contents) != len(answer.outputs):
            raise EngineFailed("the server's outputs are not raw contents, and LoadGen's log wants their bytes")
        return b"".join(answer.raw_output_contents)

    def close(self) -> None:
        """There is nothing to close."""
