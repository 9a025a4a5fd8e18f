"""A real server for tests: in a thread with its own event loop, or as the `farthing serve` process; and raw sockets.

Clients here block, the server does not know they are tests. Every wait ends: sockets and `eventually` give up.
"""

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import msgspec
import numpy as np
import uvloop
from tests.models import identity, save, tiny_mlp, two_inputs_add_sub

from farthing.config.server import Address, ServerConfig
from farthing.engines.registry import default_filenames
from farthing.repository import Repository
from farthing.server import server as server_room
from farthing.server.server import Server
from farthing.telemetry.traces import SpanSink

WAIT_S = 20.0
"""Nothing here takes a second on a quiet machine; this ends a test that hangs."""

SWEEP_S = 0.02
"""How often test servers look at connections out of time, so that limits of milliseconds can be tested."""

Value = TypeVar("Value")


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        message = self.json["error"]
        assert isinstance(message, str)
        return message


class Wire:
    """A client's side of one connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(WAIT_S)
        self._unread = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "Wire":
        self.socket.sendall(data)
        return self

    def read_reply(self, *, is_head: bool = False) -> Reply:
        """The next answer, interim ones (1xx) too. Fails if the connection ends within it."""
        while b"\r\n\r\n" not in self._unread:
            self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for header in lines:
            name, colon, value = header.partition(":")
            assert colon, header
            assert name.lower() not in headers, f"{name} stands twice"
            headers[name.lower()] = value.strip()
        size = 0 if is_head or status.startswith("1") else int(headers["content-length"])
        while len(self._unread) < size:
            self._more()
        body, self._unread = self._unread[:size], self._unread[size:]
        return Reply(int(status), headers, body)

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, f"the connection ended after {self._unread!r}"
        self._unread += data

    def is_ended(self) -> bool:
        """Waits for the server to end the connection; False if it says something more instead."""
        try:
            return not self._unread and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """One request and its answer on this connection."""
        return self.send(request(method, path, body, **headers)).read_reply(is_head=method == "HEAD")


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request's bytes; underscores in header names stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def infer_json(values: Sequence[Any], *, name: str = "x", datatype: str = "FP32", **more: Any) -> bytes:
    """The JSON of a request with one input, whose shape is that of `values`."""
    shape = list(np.shape(values))
    return json.dumps(
        {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": values}], **more}
    ).encode()


@dataclass
class Live:
    """A running server."""

    address: tuple[str, int]
    server: Server | None = None
    loop: asyncio.AbstractEventLoop | None = None
    tls: ssl.SSLContext | None = None
    process: "subprocess.Popen[bytes] | None" = None
    log: Path | None = None
    _wires: list[Wire] = field(default_factory=list)

    @property
    def netloc(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.netloc}"

    def connect(self, *, receive_buffer: int = 0) -> Wire:
        """A new connection; closed with the server at the latest."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(WAIT_S)
        sock.connect(self.address)
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_hostname="localhost")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(sock)
        self._wires.append(wire)
        return wire

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        wait_s: float = WAIT_S,
    ) -> Reply:
        """One request on a connection of its own, by the standard library's client."""
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        arguments: dict[str, Any] = {"context": self.tls} if self.tls else {}
        connection = kind("localhost" if self.tls else self.address[0], self.address[1], timeout=wait_s, **arguments)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(
        self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, wait_s: float = WAIT_S
    ) -> Reply:
        return self.ask("POST", path, body, headers, wait_s)

    def infer(self, model: str, values: Sequence[Any], **more: Any) -> Reply:
        """Asks a model in JSON."""
        return self.post(f"/v2/models/{model}/infer", infer_json(values, **more))

    def metric(self, name: str, **labels: str) -> float:
        """One sample of `/metrics`; 0 if it is not there yet."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def on_loop(self, function: Callable[..., Value], *args: Any) -> Value:
        """Calls a function where the server lives."""

        async def call() -> Value:
            return function(*args)

        return self.run(call())

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Runs a coroutine where the server lives."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def close_wires(self) -> None:
        for wire in self._wires:
            wire.socket.close()


@contextmanager
def serving(
    *paths: Path,
    client_tls: ssl.SSLContext | None = None,
    load: bool = True,
    spans: SpanSink | None = None,
    trace_ratio: float = 1.0,
    has_namespaces: bool = False,
    **settings: Any,
) -> Iterator[Live]:
    """A server in this process with these models; `settings` are of `ServerConfig`."""
    config = msgspec.structs.replace(
        ServerConfig(http=Address("127.0.0.1", 0), drain_notice_s=0.02, exit_timeout_s=5.0), **settings
    )
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)

    async def start() -> Server:
        server = Server(
            config,
            Repository(paths, default_filenames=default_filenames(), has_namespaces=has_namespaces),
            spans=spans,
            trace_ratio=trace_ratio,
        )
        await server.listen()
        if load:
            await server.load()
        return server

    async def end(server: Server) -> None:
        await server.close()
        await asyncio.sleep(0)

    with mock.patch.object(server_room, "SWEEP_S", SWEEP_S):
        thread.start()
        try:
            server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
            assert server.http is not None
            live = Live(("127.0.0.1", server.http.port), server, loop, client_tls)
            try:
                yield live
            finally:
                live.close_wires()
                asyncio.run_coroutine_threadsafe(end(server), loop).result(60)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(WAIT_S)
            loop.close()


@contextmanager
def serve_process(folder: Path, *arguments: str | Path, grpc: Sequence[str] = ("--no-grpc",)) -> Iterator[Live]:
    """`farthing serve` as a process of its own; its words are in `log`, its addresses in `ready.json`, in the folder.

    `grpc` are its options about that; empty leaves it to the defaults.
    """
    ready, log = folder / "ready.json", folder / "serve.log"
    start = "from farthing.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve", *map(str, arguments)]
    command += [*grpc, "--http", "127.0.0.1:0", "--ready-file", str(ready), "--log-format", "text"]
    with log.open("wb") as words:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words)
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, within_s=60)
        assert process.poll() is None, log.read_text()
        host, _, port = json.loads(ready.read_text())["http"].rpartition(":")
        yield Live((host, int(port)), process=process, log=log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def eventually(fact: Callable[[], Any], within_s: float = WAIT_S) -> None:
    """Waits for what another thread or process does; fails if it never comes true."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


GATE = """
    import time
    from pathlib import Path

    from farthing import Tensor

    FOLDER = Path(__file__).parent

    class Gate:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 4

        def infer(self, inputs):
            with (FOLDER / "seen").open("a") as seen:
                seen.write("".join(f"{value:g} " for value in inputs["x"][:, 0]))
            while not (FOLDER / "open").exists():
                time.sleep(0.002)
            return {"y": inputs["x"]}
"""


class Gate:
    """A Python model that notes every value it sees and answers once it is opened."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        from textwrap import dedent

        self.path = folder / f"{name}.py"
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text(dedent(GATE))

    def open(self) -> None:
        (self.path.parent / "open").touch()

    def shut(self) -> None:
        (self.path.parent / "open").unlink(missing_ok=True)
        (self.path.parent / "seen").unlink(missing_ok=True)

    def seen(self) -> list[float]:
        """Values of all rows that reached the model."""
        file = self.path.parent / "seen"
        return [float(value) for value in file.read_text().split()] if file.exists() else []

    def request(self, value: float, **headers: str) -> bytes:
        return request("POST", f"/v2/models/{self.name}/infer", infer_json([[value]]), **headers)


def small_repository(folder: Path) -> Path:
    """Three ONNX models: `mlp` (x [-1,32] -> y [-1,8]), `simple` (Triton's add and subtract) and `echo` (x [-1,2])."""
    for name, data in {"mlp": tiny_mlp(), "simple": two_inputs_add_sub(), "echo": identity()}.items():
        save(folder / name, data)
    return folder
