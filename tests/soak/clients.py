"""The clients of the soak: each does one kind of thing again and again until its time is over, and checks every answer.

A client owns its connections and closes them when it ends, so that between rounds the server has none.
"""

import http.client
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tests.runtime.shop import times
from tests.serving import infer_json
from tritonclient.utils import InferenceServerException

HEAVY = 6
"""Models that do not all fit."""

_sequence_ids = itertools.count(1)
_lock = threading.Lock()


class Round:
    """One round: when it ends, where the server is, and what was done."""

    def __init__(self, http_address: tuple[str, int], grpc_address: str, is_over: Callable[[], bool]) -> None:
        self.http_address = http_address
        self.grpc_address = grpc_address
        self.is_over = is_over
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []

    @property
    def netloc(self) -> str:
        return f"{self.http_address[0]}:{self.http_address[1]}"

    def count(self, what: str) -> None:
        with _lock:
            self.done[what] += 1

    def expect(self, what: str, got: object, wanted: object) -> None:
        self.count(what)
        if got != wanted:
            with _lock:
                self.faults.append(f"{what}: got {got!r}, wanted {wanted!r}"[:300])


def _x(value: float, module: Any) -> Any:
    tensor = module.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.full((1, 1), value, np.float32))
    return tensor


def _close(got: Any, wanted: float) -> bool:
    return bool(abs(float(got) - wanted) <= 1e-3 * max(1, abs(wanted)))


def json_over_http(here: Round) -> None:
    """Small models, a Python model and an ensemble, in JSON on one connection."""
    connection = http.client.HTTPConnection(*here.http_address, timeout=60)
    for number in itertools.count():
        if here.is_over():
            break
        model, factor = (("double", 2), ("snake", 3), ("both", 6))[number % 3]
        connection.request("POST", f"/v2/models/{model}/infer", infer_json([[number % 100]]))
        reply = connection.getresponse()
        body = json.loads(reply.read())
        got = body["outputs"][0]["data"] if reply.status == 200 else body
        here.expect(f"json {model}", got, [number % 100 * factor])
    connection.close()


def binary_over_http(here: Round) -> None:
    """Models that make room for one another, in binary."""
    chance = random.Random(1)
    with tritonclient.http.InferenceServerClient(here.netloc, network_timeout=60, connection_timeout=60) as client:
        while not here.is_over():
            place = chance.randrange(HEAVY)
            answer = client.infer(f"heavy{place}", [_x(3, tritonclient.http)]).as_numpy("y")
            here.expect("binary heavy", _close(answer[0, 0], 3 * (place + 1)), True)


def calls_over_grpc(here: Round) -> None:
    """Small models over gRPC, and now and then the endpoints that describe them."""
    with tritonclient.grpc.InferenceServerClient(here.grpc_address) as client:
        for number in itertools.count():
            if here.is_over():
                break
            got = client.infer("double", [_x(number % 50, tritonclient.grpc)]).as_numpy("y")[0, 0]
            here.expect("grpc double", _close(got, number % 50 * 2), True)
            if number % 50 == 0:
                client.get_inference_statistics()
                client.get_model_repository_index()
                here.expect("grpc ready", client.is_model_ready(f"heavy{number % HEAVY}"), True)


def streams_over_grpc(here: Round) -> None:
    """A stream of ten requests, over and over; every other stream is left before it ends."""
    for number in itertools.count():
        if here.is_over():
            break
        answers: list[Any] = []
        is_left = number % 2 == 1
        client = tritonclient.grpc.InferenceServerClient(here.grpc_address)
        client.start_stream(lambda result, error, into=answers: into.append(error or result))
        for value in range(10):
            client.async_stream_infer("double", [_x(value, tritonclient.grpc)])
        client.stop_stream(cancel_requests=is_left)
        client.close()
        if not is_left:
            here.expect("stream", [a.as_numpy("y")[0, 0] for a in answers], [2 * value for value in range(10)])
        here.count("stream left" if is_left else "stream read")


def sequences(here: Round) -> None:
    """Sequences that add up; one in four never ends, and the server must."""
    with tritonclient.http.InferenceServerClient(here.netloc, network_timeout=60, connection_timeout=60) as client:
        while not here.is_over():
            number = next(_sequence_ids)
            for step in range(1, 5):
                is_end = step == 4 and number % 4 != 0
                answer = client.infer(
                    "sum",
                    [_x(step, tritonclient.http)],
                    sequence_id=number,
                    sequence_start=step == 1,
                    sequence_end=is_end,
                )
                here.expect("sequence", answer.as_numpy("y")[0, 0], step * (step + 1) / 2)


def text(here: Round) -> None:
    """Chat, whole and streamed; a third of the streams is left in the middle."""
    for number in itertools.count():
        if here.is_over():
            break
        connection = http.client.HTTPConnection(*here.http_address, timeout=60)
        body = {"model": "says", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "seed": 1}
        streamed = number % 3 > 0
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": streamed}))
        reply = connection.getresponse()
        here.expect("chat", reply.status, 200)
        if number % 3 == 1:
            reply.read(100)
        else:
            reply.read()
        connection.close()


BAD = (
    (b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"inputs\"", 400),
    (b"GET /v2/models/nobody HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"PUT /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
)  # fmt: skip


def bad_requests(here: Round) -> None:
    """What cannot be understood, over both wires."""
    with tritonclient.grpc.InferenceServerClient(here.grpc_address) as client:
        for number in itertools.count():
            if here.is_over():
                break
            request, status = BAD[number % len(BAD)]
            with socket.create_connection(here.http_address, 60) as sock:
                try:
                    sock.sendall(request)
                    reply = sock.recv(1 << 16)
                except ConnectionError:
                    reply = b""  # cut off while it was still sending, as may be
                if reply:
                    here.expect("bad request", int(reply.split()[1]), status)
            try:
                client.infer("double", [_x(1, tritonclient.grpc)] * 2)
            except InferenceServerException as error:
                here.expect("bad call", error.status(), "StatusCode.ALREADY_EXISTS")


def vanishing(here: Round) -> None:
    """Clients that leave at any byte of a request, or with their answer unread."""
    chance = random.Random(2)
    body = infer_json([[1.0]])
    requests = [
        b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (name, len(body)) + body
        for name in (b"double", b"snake", b"both", b"heavy0")
    ]
    grpc_host, _, grpc_port = here.grpc_address.rpartition(":")
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    while not here.is_over():
        with socket.create_connection(here.http_address, 60) as sock:
            request = chance.choice(requests)
            sock.sendall(request[: chance.randrange(1, len(request) + 1)])
        with socket.create_connection((grpc_host, int(grpc_port)), 60) as sock:
            sock.sendall((hello + bytes(chance.randrange(256) for _ in range(20)))[: chance.randrange(1, 60)])
        here.count("vanished")
        time.sleep(0.005)  # alone they would take all the time there is


def control(here: Round) -> None:
    """Loads, reloads and unloads, with files brought too; what is asked meanwhile goes on being right."""
    with (
        tritonclient.http.InferenceServerClient(here.netloc, network_timeout=60, connection_timeout=60) as client,
        tritonclient.grpc.InferenceServerClient(here.grpc_address) as other,
    ):
        for number in itertools.count():
            if here.is_over():
                break
            client.load_model("double")
            other.load_model("brought", config="{}", files={"file:1/model.onnx": times(number % 7)})
            got = other.infer("brought", [_x(1, tritonclient.grpc)]).as_numpy("y")[0, 0]
            here.expect("brought", got, number % 7)
            client.unload_model("brought")
            if number % 5 == 0:
                client.load_model("snake")
            here.count("loads")


CLIENTS = (
    json_over_http,
    binary_over_http,
    calls_over_grpc,
    streams_over_grpc,
    sequences,
    text,
    bad_requests,
    vanishing,
    control,
)
