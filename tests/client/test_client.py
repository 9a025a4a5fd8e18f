"""The client against a small server of our own, over real sockets (the demo's tests run it against the real one)."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from farthing.client import Client, TimingEntry
from farthing.types import errors

Answer = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Answers with what the test says, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.sockets: set[int] = set()
        self.answer: Callable[[str, bytes], Answer] = lambda path, body: (200, {}, b"{}")
        self.hangs_up = False
        self.hung_up = threading.Semaphore(0)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.hung_up.release()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.command, self.path, headers, body))
        self.server.sockets.add(self.client_address[1])
        status, sent, content = self.server.answer(self.path, body)
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        if "Transfer-Encoding" in sent:
            content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.server.hangs_up

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def says(document: Any, status: int = 200, **headers: str) -> Callable[[str, bytes], Answer]:
    return lambda path, body: (status, headers, json.dumps(document).encode())


def doubled(path: str, body: bytes) -> Answer:
    """Twice the FP32 input, in binary, with the headers a Farthing server sends."""
    end = body.index(b"}]") + body[body.index(b"}]") :].index(b"}}") + 2
    values = np.frombuffer(body[end:], np.float32) * 2
    head = json.dumps(
        {
            "model_name": "double",
            "model_version": "3",
            "id": "r1",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": values.nbytes}}
            ],
        }
    ).encode()
    timing = 'queue;dur=0.25, batch;desc="4 rows, 2 requests", compute;dur=1.5;desc=x, total'
    headers = {"Inference-Header-Content-Length": str(len(head)), "Server-Timing": timing}
    return 200, headers, head + values.tobytes()


def test_inference_in_binary_gives_outputs_version_and_timing(server: Server) -> None:
    server.answer = doubled
    with Client(server.url) as client:
        result = client.infer("a model", {"x": np.array([1, 2], np.float32)}, version="3", timeout_us=7)
    assert result["y"].tolist() == [2, 4]
    assert (result.model_name, result.model_version, result.request_id) == ("double", "3", "r1")
    assert result.timing == {
        "queue": TimingEntry(0.25),
        "batch": TimingEntry(None, "4 rows, 2 requests"),
        "compute": TimingEntry(1.5, "x"),
        "total": TimingEntry(),
    }
    method, path, headers, body = server.asked[0]
    assert (method, path) == ("POST", "/v2/models/a%20model/versions/3/infer")
    head = json.loads(body[: int(headers["inference-header-content-length"])])
    assert head["parameters"] == {"timeout": 7, "binary_data_output": True}


def test_inference_in_json_sends_and_reads_json(server: Server) -> None:
    outputs = [{"name": "y", "datatype": "INT64", "shape": [1, 2], "data": [[3, 4]]}]
    server.answer = says({"model_name": "m", "model_version": "1", "outputs": outputs})
    with Client(server.url) as client:
        assert client.infer_json("m", {"x": [[1, 2]]}, ["y"])["y"].tolist() == [[3, 4]]
    _, _, headers, body = server.asked[0]
    assert "inference-header-content-length" not in headers
    assert json.loads(body)["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]


def test_the_other_questions_go_where_the_protocol_says(server: Server) -> None:
    server.answer = says({"model_stats": []})
    with Client(server.url + "/prefix/") as client:
        assert client.live()
        assert client.ready()
        assert client.ready("m")
        client.server()
        client.metadata("m", "2")
        client.config("m")
        assert client.statistics() == client.statistics("m") == []
        client.models()
        client.load("m")
        client.unload("m")
    assert [(method, path.removeprefix("/prefix/v2")) for method, path, _, _ in server.asked] == [
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/models/m/ready"),
        ("GET", ""),
        ("GET", "/models/m/versions/2"),
        ("GET", "/models/m/config"),
        ("GET", "/models/stats"),
        ("GET", "/models/m/stats"),
        ("POST", "/repository/index"),
        ("POST", "/repository/models/m/load"),
        ("POST", "/repository/models/m/unload"),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (418, errors.InvalidInput),
        (429, errors.TenantLimited),
        (500, errors.EngineFailed),
        (501, errors.Unsupported),
        (502, errors.EngineFailed),
        (503, errors.Unavailable),
        (504, errors.DeadlineExceeded),
    ],
)
def test_a_status_becomes_the_error_it_stands_for(
    server: Server, status: int, kind: type[errors.FarthingError]
) -> None:
    server.answer = says({"error": "what went wrong\nhint: what to do"}, status)
    with Client(server.url) as client, pytest.raises(kind) as caught:
        client.metadata("m")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("what went wrong", "what to do")


def test_overload_says_when_to_come_back(server: Server) -> None:
    server.answer = lambda path, body: (503, {"Retry-After": "2"}, b'{"error": "full"}')
    with Client(server.url) as client, pytest.raises(errors.Overloaded) as caught:
        client.infer("m", {"x": np.zeros(1)})
    assert caught.value.retry_after_s == 2


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b'{"message": "x"}', b"[" * 100_000])
def test_an_error_in_no_known_form_keeps_its_status(server: Server, body: bytes) -> None:
    server.answer = lambda path, _: (502, {}, body)
    with Client(server.url) as client, pytest.raises(errors.EngineFailed, match="status 502"):
        client.metadata("m")


@pytest.mark.parametrize("length", ["-1", "99999", "x", ""])
def test_a_header_length_that_cannot_be_is_the_servers_fault(server: Server, length: str) -> None:
    server.answer = lambda path, body: (200, {"Inference-Header-Content-Length": length}, b'{"outputs": []}')
    with Client(server.url) as client, pytest.raises(errors.EngineFailed, match="15 bytes are JSON"):
        client.infer("m", {"x": np.zeros(1)})


def test_the_key_is_sent_as_a_bearer_token(server: Server) -> None:
    with Client(server.url, api_key="secret") as client:
        client.server()
        client.live()
    assert [headers["authorization"] for _, _, headers, _ in server.asked] == ["Bearer secret"] * 2


def test_one_thread_keeps_its_connection_and_each_has_its_own(server: Server) -> None:
    with Client(server.url) as client:
        for _ in range(3):
            client.server()
        assert len(server.sockets) == 1
        together = threading.Barrier(2)

        def ask() -> None:
            together.wait()
            client.server()

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(ask) for _ in range(2)]:
                done.result()
        assert len(server.sockets) == 3


def test_a_connection_that_was_closed_meanwhile_is_opened_again(server: Server) -> None:
    server.hangs_up = True
    with Client(server.url) as client:
        for _ in range(3):
            assert client.server() == {}
            assert server.hung_up.acquire(timeout=10)  # the idle connection has ended by now
    assert len(server.asked) == 3  # each sent once: nothing was repeated


def test_a_chunked_answer_is_read_whole(server: Server) -> None:
    server.answer = says({"name": "x"}, **{"Transfer-Encoding": "chunked"})
    with Client(server.url) as client:
        assert client.server() == {"name": "x"}
        assert client.server() == {"name": "x"}


def test_nobody_there_is_unavailable_and_not_live() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with Client(f"127.0.0.1:{taken.getsockname()[1]}") as client:
            assert not client.live()
            assert not client.ready()
            with pytest.raises(errors.Unavailable, match="cannot be reached") as caught:
                client.server()
    assert caught.value.hint == "is the server running?"


def test_silence_ends_at_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05) as client,
        pytest.raises(errors.DeadlineExceeded, match=r"did not answer /v2 within 0\.05 s"),
    ):
        client.server()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "://", "http:///path"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidInput, match="not the address of a server"):
        Client(url)
