"""T1 to T14: ports, errors, statuses, limits, restrictions, and the end. Sizes and codings have more in test_http1."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from tests.server.checklist.house import HTTP_OF, House, WireName, tensor
from tests.server.test_grpc import grpc_serving
from tests.serving import Gate, eventually, infer_json, request, serving, small_repository

from farthing.cli.serve import GRPC_DEFAULT, HTTP_DEFAULT
from farthing.config.server import HttpLimits
from farthing.protocols.kserve_grpc import message_class
from farthing.server import grpc as grpc_room
from farthing.server import http2 as http2_room
from farthing.types import errors

PAIR = tensor([[1.0, 2.0]])
ECHO = "/v2/models/echo/infer"


def test_t1_ports_are_tritons_and_metrics_are_prometheus_text(house: House) -> None:
    assert [str(one).rpartition(":")[2] for one in (HTTP_DEFAULT, GRPC_DEFAULT)] == ["8000", "8001"]
    metrics = house.live.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert b"nv_inference_request_success" in metrics.body


def test_t2_every_error_is_an_object_with_one_text(house: House) -> None:
    for method, path, body in (
        ("GET", "/nowhere", None),
        ("GET", ECHO, None),
        ("POST", ECHO, b"{"),
        ("GET", "/v2/models/ghost", None),
        ("POST", "/v2/repository/index", {"ready": 1}),
        ("GET", "/v2/cudasharedmemory/status", None),
    ):
        assert house.http(method, path, body).http >= 400  # `http` looks at its form


def test_t3_an_unknown_path(house: House) -> None:
    said = house.http("GET", "/v2/nowhere")
    assert (said.http, said.text.split("\n")[0]) == (404, "Not Found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2"),
        ("POST", "/v2/health/live"),
        ("POST", "/v2/models/echo"),
        ("POST", "/v2/models/echo/config"),
        ("POST", "/v2/models/echo/stats"),
        ("POST", "/v2/systemsharedmemory/status"),
        ("GET", ECHO),
        ("GET", "/v2/models/echo/generate"),
        ("GET", "/v2/repository/index"),
        ("GET", "/v2/repository/models/echo/load"),
        ("GET", "/v2/systemsharedmemory/region/r/register"),
        ("DELETE", "/v2/trace/setting"),
        ("PUT", "/v2/logging"),
    ],
)
def test_t4_a_wrong_method(house: House, method: str, path: str) -> None:
    said = house.http(method, path, b"")
    assert (said.http, said.text.split("\n")[0]) == (405, "Method Not Allowed")
    assert said.headers["allow"]


def test_t5_t6_each_kind_of_error_has_one_status_in_both_protocols() -> None:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.FarthingError):
            code = codes[kind.grpc_status]
            # Ours beside Triton's: who you are, whose share it is, and a deadline have a status of their own.
            is_switch = kind is errors.NotReady  # what --not-ready-status 400 answers with
            if code in HTTP_OF and not is_switch and kind.http_status in HTTP_OF.values():
                assert kind.http_status == HTTP_OF[code], kind


def test_t7_a_body_over_the_limit(tmp_path: Path) -> None:
    limits = HttpLimits(body_bytes_max=4096)
    with grpc_serving(small_repository(tmp_path), limits=limits) as (live, client):
        house = House(live, client)
        long = infer_json([[1.0, 2.0]] * 1000)
        words = "exceeds the maximum allowed"
        house.post_infer("echo", long).must_be("INVALID_ARGUMENT", words)
        packed = gzip.compress(infer_json([[1.0, 2.0]]) + b" " * 8192)
        house.post_infer("echo", packed, {"Content-Encoding": "gzip"}).must_be("INVALID_ARGUMENT", words)
        implied = json.dumps({"inputs": [{**PAIR, "shape": [1 << 20, 2]}]}).encode()
        house.post_infer("echo", implied).must_be("INVALID_ARGUMENT", words)
        message = message_class("ModelInferRequest")(model_name="echo", raw_input_contents=[bytes(2 << 20)])
        assert house.call_infer(message).code == "RESOURCE_EXHAUSTED"
        assert house.post_infer("echo", infer_json([[1.0, 2.0]])).http == 200


def test_t8_deep_brackets_harm_nobody(house: House) -> None:
    deep = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":' + b"[" * 101 + b"]" * 101 + b"}]}"
    house.post_infer("echo", deep).must_be("INVALID_ARGUMENT", "100")
    for body in (b'{"ready":' + b"[" * 250_000, b'{"ready":' + b"[" * 250_000 + b"]" * 250_000 + b"}"):
        said = house.http("POST", "/v2/repository/index", body)
        assert (said.http, "ready" in said.text) == (400, True)
    assert house.http("GET", "/v2/health/live").http == 200


def test_t9_chunks_however_many(house: House) -> None:
    body = infer_json([[1.0, 2.0]])
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = f"POST {ECHO} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with house.live.connect() as wire:
        assert wire.send(head + chunks).read_reply().json["outputs"][0]["data"] == [1.0, 2.0]


def test_t10_codings_of_requests_and_answers(house: House) -> None:
    body = infer_json([[1.0, 2.0]] * 300)
    for coding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        reply = house.live.post(ECHO, packed, {"Content-Encoding": coding, "Accept-Encoding": f"{coding};q=0.9"})
        assert (reply.status, reply.headers["content-encoding"]) == (200, coding)
    plain = house.live.post(ECHO, body, {"Accept-Encoding": "gzip;q=0, deflate;q=0"})
    assert "content-encoding" not in plain.headers
    said = house.post_infer("echo", body, {"Content-Encoding": "br"})
    assert (said.http, said.headers["accept-encoding"]) == (501, "gzip, deflate")


def test_t11_g13_a_version_is_a_whole_number(house: House, wire: WireName) -> None:
    for wrong in ("x", "-1", "1.0"):
        said = house.infer(wire, "echo", PAIR, version=wrong)
        said.must_be("INVALID_ARGUMENT")
    assert house.infer(wire, "twice", PAIR).answer["model_version"] == "2", "the latest"
    assert house.infer(wire, "twice", PAIR, version="1").answer["model_version"] == "1"


def test_t12_restricted_endpoints(tmp_path: Path) -> None:
    folder = small_repository(tmp_path)
    with grpc_serving(folder, restricted=("inference:key=1",), grpc_restricted=("inference:key=2",)) as (live, client):
        house = House(live, client)
        refused = house.infer("http", "echo", PAIR)
        assert (refused.http, refused.text) == (403, "This API is restricted, expecting header 'key'")
        assert house.post_infer("echo", infer_json([[1.0, 2.0]]), {"key": "1"}).http == 200
        refused = house.infer("grpc", "echo", PAIR)
        words = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
        assert (refused.code, refused.text) == ("UNAVAILABLE", words)
        message = message_class("ModelInferRequest")(model_name="ghost")
        allowed = house.call_infer(message, metadata=[("triton-grpc-protocol-key", "2")])
        assert allowed.code == "NOT_FOUND"


def test_t13_headers_reach_the_model_where_they_are_asked_for(house: House) -> None:
    # With a pattern: tests/server/test_forwarding.py. Without one, nothing is forwarded.
    said = house.post_infer("mirror", infer_json([[1.0]]), {"X-Tenant": "shop"})
    assert "parameters" not in said.answer


def test_t14_what_is_under_way_is_answered_at_the_end(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with (
        mock.patch.object(grpc_room, "LINGER_S", 0.1),  # this client stays connected
        mock.patch.object(http2_room, "LINGER_S", 0.1),
        grpc_serving(gate.path, drain_notice_s=0.0) as (live, client),
    ):
        call = client.begin([[1.0]])
        wire: Any = live.connect().send(gate.request(2.0))
        eventually(lambda: live.metric("farthing_http_requests_in_flight") >= 1 and bool(gate.seen()))
        assert live.server is not None
        assert live.loop is not None
        ended = asyncio.run_coroutine_threadsafe(live.server.drain(), live.loop)
        listener = live.server._grpc_listener
        eventually(lambda: listener is not None and listener.calls.is_stopping)
        House(live, client).infer("grpc", "gate", tensor([[3.0]])).must_be("UNAVAILABLE", "Server is stopping")
        gate.open()
        assert call.result()
        assert wire.read_reply().status == 200
        assert ended.result(20)


def test_t14_requests_that_begin_at_the_end_are_refused(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with serving(gate.path, small_repository(tmp_path / "models"), drain_notice_s=0.0) as live:
        assert live.server is not None
        assert live.loop is not None
        wire = live.connect().send(gate.request(1.0) + gate.request(2.0))
        eventually(gate.seen)
        ended = asyncio.run_coroutine_threadsafe(live.server.drain(), live.loop)
        listener = live.server._listener
        eventually(lambda: listener.is_stopping)
        wire.send(request("POST", ECHO, infer_json([[1.0, 2.0]])))
        eventually(lambda: any(len(connection._pending) == 2 for connection in listener.connections))
        gate.open()
        replies = [wire.read_reply() for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 503], "those that began before are answered"
        assert (replies[2].error, replies[2].headers["retry-after"]) == ("Server is stopping", "1")
        assert replies[2].headers["connection"] == "close"
        assert wire.is_ended()
        wire.socket.close()
        assert ended.result(20), "whoever goes on asking does not hold up the end"
