"""The KServe endpoints over the wire: what each answers, and that whatever a client did wrong is 4xx."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.models import identity, save
from tests.serving import Live, eventually, infer_json, serving, small_repository

from farthing.config.server import HttpLimits, ModelControl

ECHO = "/v2/models/echo/infer"
BOMB = gzip.compress(bytes(80 << 20), 1)
"""80 MiB of zeros: 350 KiB on the wire, over the limit when inflated."""


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose models clients control; only `echo` is loaded at start."""
    repository = small_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, model_control=ModelControl.EXPLICIT, load_models=("echo",)) as server:
        yield server


def binary(values: Any, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request for `echo` with its tensor as bytes, and the headers that go with it."""
    tensor = np.asarray(values, np.float32)
    item = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    text = json.dumps({"inputs": [item], **more}).encode()
    return text + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


# -- inference -------------------------------------------------------------------------------------------------------


def test_json_in_json_out(live: Live) -> None:
    reply = live.infer("echo", [[1, 2], [3, 4]], id="mine")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {
        "model_name": "echo",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}],
    }


def test_binary_in_binary_out(live: Live) -> None:
    body, headers = binary([[1, 2]], parameters={"binary_data_output": True})
    reply = live.post(ECHO, body, headers)
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(reply.body[length:], np.float32).tolist() == [1, 2]


def test_a_raw_body_is_the_only_input(tmp_path: Path) -> None:
    save(tmp_path / "text", identity("BYTES", ("batch", 1)))
    with serving(tmp_path) as live:
        reply = live.post("/v2/models/text/infer", b"bare bytes", {"Inference-Header-Content-Length": "0"})
        assert reply.status == 200
        length = int(reply.headers["inference-header-content-length"])
        assert reply.body[length:] == b"\x0a\0\0\0bare bytes"


def test_zero_rows_are_answered_with_zero_rows(live: Live) -> None:
    for values in ([], np.empty((0, 2))):
        body = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 2], "data": list(values)}]}
        ).encode()
        reply = live.post(ECHO, body)
        assert (reply.status, reply.json["outputs"][0]) == (
            200,
            {"name": "y", "datatype": "FP32", "shape": [0, 2], "data": []},
        )


def test_every_answer_says_where_its_time_went(live: Live) -> None:
    parts = live.infer("echo", [[1, 2]] * 3).headers["server-timing"].split(", ")
    assert [part.split(";")[0] for part in parts] == ["queue", "batch", "compute"]
    assert parts[1].endswith('desc="3 rows of 1 requests"')
    assert all(0 <= float(part.split("dur=")[1].split(";")[0]) < 10_000 for part in parts)


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/health/live", "/v2/models/echo", "/v2/models/echo/stats", "/metrics", "/nowhere", "/v2/models/no"],
)
def test_whatever_rode_in_no_batch_says_how_long_it_took(live: Live, path: str) -> None:
    name, duration = live.get(path).headers["server-timing"].split(";dur=")
    assert name == "total"
    assert 0 <= float(duration) < 10_000


def test_a_refused_inference_says_how_long_that_took(live: Live) -> None:
    reply = live.post(ECHO, item(shape=[7, 7]))
    assert reply.status == 400
    assert reply.headers["server-timing"].startswith("total;dur=")


def test_a_version_may_be_named(live: Live) -> None:
    assert live.post("/v2/models/echo/versions/1/infer", infer_json([[1, 2]])).json["model_version"] == "1"


ITEM: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def item(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**ITEM, **changes}]}).encode()


WRONG = {
    "V5 not JSON": (b"{", "failed to parse the request JSON buffer"),
    "V5 empty": (b"", "failed to parse the request JSON buffer"),
    "V5 not UTF-8": (b'{"id":"\xff"}', "failed to parse"),
    "V6 shape of strings": (item(shape=["1", "2"]), r"inputs[0].shape[0]"),
    "V6 id a number": (json.dumps({"id": 1, "inputs": [ITEM]}).encode(), "`id`"),
    "V6 inputs no array": (b'{"inputs": {}}', "`inputs`"),
    "V6 no inputs": (b"{}", "inputs"),
    "V7 negative dimension": (item(shape=[-1, 2]), "shape[0]"),
    "V9 shape beyond 64 bits": (item(shape=[2**62, 2**62]), "shape"),
    "V10 shape beyond the limit": (item(shape=[2**40, 2], data=[]), "exceed"),
    "V11 too few elements": (item(data=[1]), "inputs[0].data: 1 elements do not fill shape [1, 2]"),
    "V11 too many elements": (item(data=[1, 2, 3]), "inputs[0].data: 3 elements do not fill shape [1, 2]"),
    "V11 ragged": (item(shape=[2, 2], data=[[1, 2], [3]]), "different lengths"),
    "V12 an input too few": (
        json.dumps({"inputs": []}).encode(),
        "expected 1 inputs but got 0 inputs for model 'echo'",
    ),
    "V13 unknown input": (item(name="z"), "unexpected inference input 'z'"),
    "V14 unknown output": (
        json.dumps({"inputs": [ITEM], "outputs": [{"name": "z"}]}).encode(),
        "unexpected inference output",
    ),
    "V15 an input twice": (json.dumps({"inputs": [ITEM, ITEM]}).encode(), "already exists in request"),
    "V15 an output twice": (
        json.dumps({"inputs": [ITEM], "outputs": [{"name": "y"}] * 2}).encode(),
        "already exists in request",
    ),
    "V16 another datatype": (item(datatype="INT32"), "data-type is 'INT32', but model 'echo' expects 'FP32'"),
    "V16 no datatype at all": (item(datatype="FP31"), "FP31"),
    "V17 another shape": (item(shape=[1, 3], data=[1, 2, 3]), "unexpected shape for input 'x'"),
    "V17 another rank": (item(shape=[2]), "unexpected shape for input 'x'"),
    "V19 too many rows": (infer_json([[1, 2]] * 1025), "batch-size must be <= 1024"),
    "V22 no values": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}]}', "exactly one of"),
    "V22 values of null": (item(data=None), "inputs[0].data"),
    "V24 FP16 in JSON": (item(datatype="FP16"), "FP16"),
    "V25 reserved parameter": (
        json.dumps({"inputs": [ITEM], "parameters": {"triton_x": 1}}).encode(),
        "triton_x",
    ),
    "nested parameter": (json.dumps({"inputs": [ITEM], "parameters": {"a": {}}}).encode(), "parameters"),
    "null parameter": (json.dumps({"inputs": [ITEM], "parameters": {"a": None}}).encode(), "parameters"),
    "negative timeout": (json.dumps({"inputs": [ITEM], "parameters": {"timeout": -1}}).encode(), "timeout"),
    "words among numbers": (item(data=[1, "2"]), "data"),
    "T8 nested deeper than 100": (item(data="#").replace(b'"#"', b"[" * 101 + b"1" + b"]" * 101), "100"),
    "T8 nested 250,000 deep": (item(data="#").replace(b'"#"', b"[" * 250_000 + b"]" * 250_000), ""),
    "classification of 0 classes": (
        json.dumps({"inputs": [ITEM], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}).encode(),
        "classification",
    ),
    "classification beyond its limit": (
        json.dumps({"inputs": [ITEM], "outputs": [{"name": "y", "parameters": {"classification": 10**6}}]}).encode(),
        "classification",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_the_client_did_wrong_is_400_and_says_what(live: Live, what: str) -> None:
    body, part = WRONG[what]
    reply = live.post(ECHO, body)
    assert reply.status == 400, reply.body
    assert part in reply.error
    assert "Traceback" not in reply.error


@pytest.mark.parametrize(
    ("length", "cut", "part"),
    [
        ("-1", 0, ""),
        ("12abc", 0, "12abc"),
        ("99999999999", 0, ""),
        ("1000", 0, ""),
        ("5, 5", 0, ""),
        (None, 0, ""),
        ("right", -1, "expecting 1 additional bytes"),
        ("right", 1, "unexpected additional input data"),
    ],
)
def test_a_binary_body_that_does_not_add_up_is_400(live: Live, length: str | None, cut: int, part: str) -> None:
    body, headers = binary([[1, 2]])
    if length is None:
        headers = {}
    elif length != "right":
        headers["Inference-Header-Content-Length"] = length
    body = body[:cut] if cut < 0 else body + b"x" * cut
    reply = live.post(ECHO, body, headers)
    assert reply.status == 400
    assert part in reply.error


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "", "1" + "0" * 400, "\u00b2"])
def test_a_deadline_header_that_is_no_number_is_400(live: Live, value: str) -> None:
    reply = live.post(ECHO, infer_json([[1, 2]]), {"X-Envoy-Expected-Rq-Timeout-Ms": value})
    assert reply.status == 400
    assert "is not a number of milliseconds" in reply.error


def test_a_timeout_as_long_as_it_can_be_said_harms_nobody(live: Live) -> None:
    assert live.infer("echo", [[1, 2]], parameters={"timeout": 2**63 - 1}).status == 200
    headers = {"X-Envoy-Expected-Rq-Timeout-Ms": "9" * 12}
    assert live.post(ECHO, infer_json([[1, 2]]), headers).status == 200


def test_models_and_versions_that_are_not_there_are_404(live: Live) -> None:
    for path, part in (
        ("/v2/models/nobody", "Request for unknown model: 'nobody' is not found"),
        ("/v2/models/echo/versions/9", "version 9 is not found; versions found: 1"),
    ):
        for method, end in (("POST", "/infer"), ("GET", ""), ("GET", "/ready"), ("GET", "/config"), ("GET", "/stats")):
            reply = live.ask(method, path + end, infer_json([[1, 2]]) if end == "/infer" else b"")
            assert reply.status == 404, path + end
            assert part in reply.error


@pytest.mark.parametrize("version", ["x", "-1", "1.0", "1" * 19, "1" * 5000, "%C2%B2", "%31%20"])
def test_a_version_that_is_no_number_is_400(live: Live, version: str) -> None:
    for end in ("", "/ready", "/config", "/stats"):
        reply = live.get(f"/v2/models/echo/versions/{version}{end}")
        assert reply.status == 400, end
        assert "is not a whole number" in reply.error


# -- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
@pytest.mark.parametrize("rows", [1, 1000])
def test_requests_may_be_compressed(live: Live, encoding: str, rows: int) -> None:
    """Small ones on the event loop, large ones on a thread."""
    body, headers = binary([[i, -i] for i in range(rows)], id="z" * 100)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)(body)
    reply = live.post(ECHO, packed, {**headers, "Content-Encoding": encoding})
    assert reply.status == 200, reply.body
    assert reply.json["outputs"][0]["data"][2:4] == ([1.0, -1.0] if rows > 1 else [])


@pytest.mark.parametrize(
    ("accept", "rows", "encoding"),
    [
        ("gzip", 1000, "gzip"),
        ("deflate", 1000, "deflate"),
        ("gzip;q=0.1, deflate;q=0.9", 1000, "deflate"),
        ("br, *;q=0.1", 1000, "gzip"),
        ("gzip;q=0", 1000, None),
        ("br", 1000, None),
        ("gzip", 1, None),
        ("gzip, identity;q=0", 1, "gzip"),
    ],
)
def test_answers_are_compressed_as_the_client_wishes(live: Live, accept: str, rows: int, encoding: str | None) -> None:
    body, headers = binary([[1, 2]] * rows, parameters={"binary_data_output": True})
    reply = live.post(ECHO, body, {**headers, "Accept-Encoding": accept})
    assert reply.headers.get("content-encoding") == encoding
    assert reply.headers["vary"] == "Accept-Encoding"
    plain = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(encoding or "", bytes)(reply.body)
    length = int(reply.headers["inference-header-content-length"])
    assert np.frombuffer(plain[length:], np.float32).tolist() == [1, 2] * rows


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x"])
def test_an_unknown_coding_is_501_and_says_which_are_known(live: Live, encoding: str) -> None:
    reply = live.post(ECHO, b"x", {"Content-Encoding": encoding})
    assert (reply.status, reply.headers["accept-encoding"]) == (501, "gzip, deflate")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"no gzip", "not valid gzip"),
        (gzip.compress(infer_json([[1, 2]]))[:-9], "ends early"),
        (gzip.compress(infer_json([[1, 2]])) + b"more", "bytes follow it"),
        (b"", "ends early"),
        (BOMB, "exceeds the maximum allowed"),
    ],
    ids=["none", "cut", "more", "empty", "bomb"],  # the bytes tell the time they were packed
)
def test_a_broken_or_explosive_body_is_400(live: Live, body: bytes, part: str) -> None:
    reply = live.post(ECHO, body, {"Content-Encoding": "gzip"})
    assert reply.status == 400
    assert part in reply.error


def test_a_body_over_the_limit_is_400_in_whatever_way_it_says_so(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path), limits=HttpLimits(body_bytes_max=1000)) as live:
        whole = infer_json([[1, 2]]).ljust(1000)
        assert live.post(ECHO, whole).status == 200
        for body, headers in (
            (whole + b" ", {}),
            (gzip.compress(whole + b" "), {"Content-Encoding": "gzip"}),
            (item(shape=[1000, 2], data=[]), {}),
        ):
            reply = live.post(ECHO, body, headers)
            assert reply.status == 400
            assert "exceed" in reply.error
        assert live.post(ECHO, gzip.compress(whole), {"Content-Encoding": "gzip"}).status == 200


# -- metadata --------------------------------------------------------------------------------------------------------


def test_the_server_names_only_extensions_that_work(live: Live) -> None:
    found = live.get("/v2").json
    assert found["name"] == "farthing"
    assert {"statistics", "sequence", "trace", "logging"} <= set(found["extensions"])
    assert "system_shared_memory" not in found["extensions"], "it is closed"


def test_models_are_listed_and_described(live: Live) -> None:
    assert live.get("/v2/models").json == {"models": ["echo", "mlp", "simple"]}
    for path in ("/v2/models/echo", "/v2/models/echo/versions/1"):
        assert live.get(path).json == {
            "name": "echo",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        }
        assert live.get(f"{path}/ready").json == {"name": "echo", "ready": True}
        config = live.get(f"{path}/config").json
        assert (config["name"], config["max_batch_size"]) == ("echo", 1024)
        assert config["input"][0] | {"name": "x", "data_type": "TYPE_FP32", "dims": [2]} == config["input"][0]


def test_statistics_count_what_was_asked(live: Live) -> None:
    def stats() -> dict[str, Any]:
        (one,) = live.get("/v2/models/mlp/stats").json["model_stats"]
        assert live.get("/v2/models/mlp/versions/1/stats").json["model_stats"] == [one]
        return dict(one)

    before = stats()
    assert live.infer("mlp", [[0.5] * 32] * 3).status == 200
    assert live.infer("mlp", [[0.5] * 31]).status == 400
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    for outcome in ("success", "fail", "queue", "compute_infer"):
        assert after["inference_stats"][outcome]["count"] - before["inference_stats"][outcome]["count"] == 1
    assert {one["name"] for one in live.get("/v2/models/stats").json["model_stats"]} == {"echo", "mlp", "simple"}


# -- the repository --------------------------------------------------------------------------------------------------


def states(live: Live, body: bytes = b"") -> dict[str, str | None]:
    return {line["name"]: line.get("state") for line in live.post("/v2/repository/index", body).json}


def test_models_come_and_go_as_clients_say(control: Live) -> None:
    assert states(control) == {"echo": "READY", "mlp": None, "simple": None}
    assert states(control, b'{"ready": true}') == {"echo": "READY"}
    assert control.infer("mlp", [[0.5] * 32]).status == 404
    assert control.post("/v2/repository/models/mlp/load").status == 200
    assert control.infer("mlp", [[0.5] * 32]).status == 200
    reply = control.post("/v2/repository/models/mlp/unload", b'{"parameters": {"unload_dependents": false}}')
    assert (reply.status, reply.body) == (200, b"")
    eventually(lambda: states(control)["mlp"] == "UNAVAILABLE")
    assert control.infer("mlp", [[0.5] * 32]).status == 404
    assert control.post("/v2/repository/models/mlp/unload").status == 200
    assert control.post("/v2/repository/models/nobody/unload").status == 200
    assert control.get("/v2/health/ready").status == 200  # what was unloaded on purpose is not missing


def test_a_load_may_bring_a_configuration(control: Live) -> None:
    config = json.dumps({"max_batch_size": 2})
    body = json.dumps({"parameters": {"config": config}}).encode()
    assert control.post("/v2/repository/models/echo/load", body).status == 200
    assert "batch-size must be <= 2" in control.infer("echo", [[1, 2]] * 3).error
    assert control.post("/v2/repository/models/echo/load").status == 200
    assert control.infer("echo", [[1, 2]] * 3).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("models/nobody/load", b"", 404, "no model `nobody`"),
        ("models/%2E%2E/load", b"", 400, ""),
        ("models/a%2Fb/load", b"", 400, ""),
        ("models/%20/load", b"", 400, ""),
        ("models/echo/load", b"[]", 400, "failed to parse"),
        ("models/echo/load", b'{"parameters": {"x": 1}}', 400, "no such parameter"),
        ("models/echo/load", b'{"parameters": {"config": 1}}', 400, "config"),
        ("models/echo/load", b'{"parameters": {"config": "[]"}}', 400, "config"),
        ("models/echo/load", b'{"parameters": {"config": "{\\"max_batch_sise\\": 1}"}}', 400, "max_batch_sise"),
        ("models/echo/load", b'{"parameters": {"config": "{\\"max_batch_size\\": -1}"}}', 400, "max_batch_size"),
        ("models/echo/load", b'{"parameters": {"config": "{}", "file:1/model.onnx": "eA=="}}', 403, "closed"),
        ("models/echo/load", b'{"parameters": {"file:1/model.onnx": "eA=="}}', 400, "configuration"),
        ("models/echo/unload", b'{"parameters": {"unload_dependents": "yes"}}', 400, "unload_dependents"),
        ("index", b'{"ready": "yes"}', 400, "ready"),
        ("index", b'{"ready": ' + b"[" * 250_000, 400, "ready"),
        ("named/index", b"", 501, "repository"),
        ("named/models/echo/load", b"", 501, "repository"),
    ],
)
def test_what_the_repository_refuses(control: Live, path: str, body: bytes, status: int, part: str) -> None:
    reply = control.post(f"/v2/repository/{path}", body)
    assert reply.status == status, reply.body
    assert part in reply.error
    assert control.infer("echo", [[1, 2]]).status == 200


def test_without_explicit_control_models_stay_as_they_are(live: Live) -> None:
    for verb in ("load", "unload"):
        reply = live.post(f"/v2/repository/models/echo/{verb}")
        assert reply.status == 503
        assert "not allowed if polling is enabled" in reply.error
    assert live.infer("echo", [[1, 2]]).status == 200


def test_a_model_that_cannot_be_loaded_says_why_and_the_others_serve(tmp_path: Path) -> None:
    repository = small_repository(tmp_path)
    save(repository / "broken", b"no model")
    (repository / "listless").mkdir()
    with serving(repository) as live:
        assert live.infer("echo", [[1, 2]]).status == 200
        lines = {line["name"]: line for line in live.post("/v2/repository/index").json}
        assert lines["broken"]["state"] == "UNAVAILABLE"
        assert "model.onnx" in lines["broken"]["reason"]
        reply = live.infer("broken", [[1, 2]])
        assert reply.status == 503
        assert "not at ready state" in reply.error
        assert live.get("/v2/models/broken/ready").status == 503
        ready = live.get("/v2/health/ready")
        assert ready.status == 503
    with serving(repository / "broken", not_ready_status=400) as live:
        assert live.get("/v2/health/ready").status == 400
        assert live.get("/v2/models/broken/ready").status == 400
        assert live.get("/v2/health/live").status == 200


def test_a_python_models_own_words_reach_the_client(tmp_path: Path) -> None:
    file = tmp_path / "picky.py"
    file.write_text(
        dedent("""
        from farthing import Tensor

        class Picky:
            inputs = [Tensor("x", "FP32", [-1, 1])]
            outputs = [Tensor("y", "FP32", [-1, 1])]

            def infer(self, inputs):
                raise ValueError("not before breakfast")
        """)
    )
    with serving(file) as live:
        reply = live.infer("picky", [[1]])
        assert reply.status == 500
        assert "not before breakfast" in reply.error
        assert "Traceback" not in reply.error
