"""Clients of HTTP/2 that are not gRPC's: curl, nghttp and h2load, where they are installed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.test_grpc import Client, grpc_serving, infer_message
from tests.serving import Live, small_repository

from farthing.protocols.grpc_wire import prefixed
from farthing.protocols.kserve_grpc import message_class

INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    with grpc_serving(small_repository(tmp_path_factory.mktemp("repository"))) as pair:
        yield pair


@pytest.fixture
def body(tmp_path: Path) -> Path:
    file = tmp_path / "body"
    file.write_bytes(prefixed(infer_message([[1.0, 2.0]]).SerializeToString()))
    return file


def run(tool: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, timeout=60, check=False)


def url(both: tuple[Live, Client], path: str = INFER) -> str:
    server = both[0].server
    assert server is not None
    return f"http://{server.grpc}{path}"


def test_curl_gets_head_message_and_trailers(both: tuple[Live, Client], body: Path, tmp_path: Path) -> None:
    out, heads = tmp_path / "out", tmp_path / "heads"
    posted = ("--http2-prior-knowledge", "--data-binary", f"@{body}", "-sS", "-o", str(out), "-D", str(heads))
    done = run("curl", *posted, *GRPC, url(both))
    assert done.returncode == 0, done.stderr
    told = heads.read_text().lower()
    assert told.startswith("http/2 200")
    assert "grpc-status: 0" in told
    answer = message_class("ModelInferResponse").FromString(out.read_bytes()[5:])
    assert answer.raw_output_contents[0] == infer_message([[1.0, 2.0]]).raw_input_contents[0]


def test_curl_is_told_in_http_what_is_not_grpc(both: tuple[Live, Client]) -> None:
    done = run("curl", "--http2-prior-knowledge", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url(both))
    assert done.stdout == b"405"
    done = run("curl", "--http1.1", "-sS", url(both, "/v2"))
    assert b"gRPC over HTTP/2" in done.stdout


def test_nghttp_is_served(both: tuple[Live, Client], body: Path) -> None:
    done = run("nghttp", "-v", "-d", str(body), *GRPC, "-H", ":method: POST", url(both))
    assert done.returncode == 0, done.stderr
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode("latin-1"))
    assert "grpc-status: 0" in said
    assert "recv GOAWAY" not in said


@pytest.mark.parametrize(("clients", "streams"), [(1, 1), (4, 32), (16, 4)])
def test_h2load_has_every_request_answered(both: tuple[Live, Client], body: Path, clients: int, streams: int) -> None:
    live, client = both
    requests = 640

    def counted() -> int:
        [told] = live.get("/v2/models/echo/stats").json["model_stats"]
        found: int = told["inference_stats"]["success"]["count"]
        return found

    before = counted()
    done = run("h2load", "-n", str(requests), "-c", str(clients), "-m", str(streams), "-d", str(body), *GRPC, url(both))
    assert done.returncode == 0, done.stderr
    assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout.decode()
    assert counted() - before == requests
    assert json.loads(live.get("/v2/health/live").body)["live"]
    assert client.ask("ServerLive").live
