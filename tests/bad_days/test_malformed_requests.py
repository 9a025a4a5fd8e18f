"""Ten thousand requests nobody should send: no 5xx that is not declared, no hang, no memory kept."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models import identity, save
from tests.serving import Live, request, serve_process, small_repository

from farthing import __version__
from farthing.config.server import ModelControl
from farthing.protocols.kserve import openapi_document
from farthing.protocols.openai.openapi import with_openai

REQUESTS_AN_EXAMPLE = 50
EXAMPLES = 200
MEMORY_MAX_BYTES = 32 << 20
"""What 10,000 requests may leave behind: caches fill to their bounds, the allocator keeps some."""
ALLOWED = {200, 400, 404, 405, 408, 426, 431, 501}
"""501: shared memory and unknown codings, as the OpenAPI document declares."""

ITEM = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
PIECES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        1e308,
        0.5,
        "",
        "x",
        "y",
        "INPUT0",
        "FP32",
        "INT32",
        "BYTES",
        "FP16",
        "BOOL",
    ),
    *([], {}, [[]], [1, 2], [1, [2]], ["a"], [None], {"a": {}}, ITEM, [ITEM], [ITEM, ITEM], "ä\0", "\ud800", "9" * 400),
    *({"binary_data_size": 8}, {"binary_data_size": -1}, {"shared_memory_region": "r"}, {"classification": 3}),
    *({"binary_data": True}, {"timeout": 10**18}, {"priority": 2**40}, {"sequence_id": "s"}, {"triton_x": 1}),
]
KEYS = ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "timeout", "x"]
MODELS = ["echo", "simple", "text", "mlp", "nobody", "%ff", "..", "a%2Fb"]
HEADERS = [
    ("Inference-Header-Content-Length", ["0", "1", "-1", "12abc", "9" * 30, "80", "", "70"]),
    ("Content-Encoding", ["gzip", "deflate", "br", "", "gzip, gzip"]),
    ("Accept-Encoding", ["gzip", "*;q=x", ",;=,", "identity;q=0"]),
    ("X-Request-Id", ["", "ä", "x" * 500, "a b"]),
    ("traceparent", ["", "00-0-0-00", "x" * 300]),
    ("X-Envoy-Expected-Rq-Timeout-Ms", ["", "-1", "x", "9" * 50]),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("malformed")
    repository = small_repository(folder / "models")
    save(repository / "text", identity("BYTES", ("batch", 1)))
    with serve_process(
        folder, repository, "--model-control-mode", ModelControl.EXPLICIT, "--load-model", "*"
    ) as server:
        yield server


def resident_bytes(live: Live) -> int:
    assert live.process is not None
    return int(Path(f"/proc/{live.process.pid}/statm").read_text().split()[1]) * 4096


def spoiled(value: Any, dice: random.Random) -> Any:
    """The value with something in it replaced, added or taken away."""
    if dice.random() < 0.2:
        return dice.choice(PIECES)
    if isinstance(value, dict) and value:
        key = dice.choice([*value])
        changed = {**value, key: spoiled(value[key], dice)}
        if dice.random() < 0.2:
            changed[dice.choice(KEYS)] = dice.choice(PIECES)
        if dice.random() < 0.2:
            del changed[key]
        return changed
    if isinstance(value, list) and value:
        index = dice.randrange(len(value))
        return [*value[:index], spoiled(value[index], dice), *value[index + dice.randrange(2) :]]
    return dice.choice(PIECES)


def body(dice: random.Random) -> bytes:
    valid = {
        "id": "i",
        "inputs": [ITEM],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"a": 1},
    }
    made = json.dumps(spoiled(valid, dice), ensure_ascii=True).encode()
    if dice.random() < 0.3:  # and in its bytes
        at = dice.randrange(len(made) + 1)
        made = made[:at] + dice.randbytes(dice.randrange(4)) + made[at + dice.randrange(4) :]
    return made + (dice.randbytes(8) if dice.random() < 0.2 else b"")


def malformed(dice: random.Random) -> bytes:
    headers = {name: dice.choice(values) for name, values in HEADERS if dice.random() < 0.15}
    model = dice.choice(MODELS[:4]) if dice.random() < 0.8 else dice.choice(MODELS)
    version = dice.choice(["", "", "", "/versions/1", "/versions/2", "/versions/x", f"/versions/{'1' * 5000}"])
    path = dice.choice(
        [f"/v2/models/{model}{version}/infer"] * 8 + ["/v2/repository/index", f"/v2/repository/models/{model}/load"]
    )
    encoded = {name.replace("-", "_"): value.encode().decode("latin-1") for name, value in headers.items()}
    return request("POST", path, body(dice), **encoded)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 2**64))
def send_many(live: Live, sent: list[int], seed: int) -> None:
    dice = random.Random(seed)
    requests = [malformed(dice) for _ in range(REQUESTS_AN_EXAMPLE)]
    with live.connect() as wire:
        wire.send(b"".join(requests))
        for one in requests:
            reply = wire.read_reply()
            assert reply.status in ALLOWED, (one, reply)
            sent.append(reply.status)
            if reply.status != 200:
                assert reply.error
                assert "Traceback" not in reply.error


def test_ten_thousand_malformed_requests_do_no_harm(live: Live) -> None:
    dice = random.Random(1)
    for _ in range(20):  # fill what has bounds before measuring
        with live.connect() as wire:
            requests = [malformed(dice) for _ in range(REQUESTS_AN_EXAMPLE)]
            wire.send(b"".join(requests))
            for _ in requests:
                wire.read_reply()
    before = resident_bytes(live)
    sent: list[int] = []
    send_many(live, sent)
    assert len(sent) >= 10_000
    assert set(sent) >= {200, 400, 404, 501}  # they are of many kinds
    assert resident_bytes(live) - before < MEMORY_MAX_BYTES
    assert live.infer("echo", [[1, 2]]).status == 200
    assert live.get("/v2/health/ready").status == 200


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    data=st.one_of(st.binary(min_size=1, max_size=200), st.binary(max_size=40).map(b"POST /v2 HTTP/1.1\r\n".__add__))
)
def send_noise(live: Live, data: bytes) -> None:
    import socket

    with live.connect() as wire:
        wire.send(data)
        wire.socket.shutdown(socket.SHUT_WR)
        while wire.socket.recv(4096):
            pass  # whatever it says, it ends


def test_noise_on_the_wire_is_answered_or_ended(live: Live) -> None:
    send_noise(live)
    assert live.infer("echo", [[1, 2]]).status == 200


def document() -> dict[str, Any]:
    """The published document, with models that are there, so that requests get further than the path."""
    known = {"model_name": ["echo", "simple", "text", "nobody"], "model_version": ["1", "2"], "region_name": ["r"]}
    made = openapi_document(__version__)
    for path in made["paths"].values():
        if "parameters" in path:
            path["parameters"] = [
                {**parameter, "schema": {"type": "string", "enum": known[parameter["name"]]}}
                for parameter in path["parameters"]
            ]
    return made


schema = schemathesis.openapi.from_dict(document())


def test_the_document_is_the_one_that_is_published(live: Live) -> None:
    published = live.get("/openapi.json").json
    assert published == json.loads(json.dumps(with_openai(openapi_document(__version__))))


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_requests_made_from_the_published_document_get_declared_answers(case: Any, live: Live) -> None:
    answer = case.call(base_url=live.url, timeout=20)
    assert answer.status_code in ALLOWED, answer.text
    declared = case.operation.definition.raw["responses"]
    assert str(answer.status_code) in declared
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}
