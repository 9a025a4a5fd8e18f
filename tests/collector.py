"""A collector of traces for tests: takes what an OTLP/HTTP exporter sends, and reads its protobuf."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """What it was sent, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._received: list[tuple[str, bytes]] = []

    def receive(self, path: str, body: bytes) -> None:
        self._received.append((path, body))

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self._received}

    @property
    def exports(self) -> int:
        return len(self._received)

    def spans(self) -> list[Any]:
        """Every span, as OTLP's message."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [
            span
            for _, body in list(self._received)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.receive(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
