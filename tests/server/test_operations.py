"""Live, ready, metrics, the OpenAPI document, request ids, traces and the access log."""

import json
import logging
from pathlib import Path

import pytest
import schemathesis
from prometheus_client.parser import text_string_to_metric_families
from tests.models import save
from tests.serving import Gate, Live, eventually, infer_json, serving, small_repository


def test_live_and_ready_say_so_and_carry_no_false(live: Live) -> None:
    assert live.get("/v2/health/live").json == {"live": True}
    assert live.get("/v2/health/ready").json == {"ready": True}


def test_while_models_are_being_loaded_the_server_lives_and_is_not_ready(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path), load=False) as live:
        assert live.get("/v2/health/live").status == 200
        reply = live.get("/v2/health/ready")
        assert reply.status == 503
        assert "models are being loaded" in reply.error
        assert live.server is not None
        live.run(live.server.load())
        assert live.get("/v2/health/ready").status == 200


def test_readiness_can_be_about_the_server_alone(tmp_path: Path) -> None:
    save(tmp_path / "broken", b"no model")
    with serving(tmp_path, strict_readiness=False) as live:
        assert live.get("/v2/health/ready").status == 200
        assert live.get("/v2/models/broken/ready").status == 503


def test_a_hung_model_turns_liveness_red_within_its_time_while_others_answer(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "hung")
    with serving(gate.path, small_repository(tmp_path / "models"), hang_timeout_s=0.2) as live:
        assert live.get("/v2/health/live").status == 200
        waiting = live.connect().send(gate.request(1))
        eventually(lambda: live.get("/v2/health/live").status == 503, within_s=2)
        assert "model `gate` version 1 has been running one batch for " in live.get("/v2/health/live").error
        assert live.infer("echo", [[1, 2]]).status == 200
        gate.open()
        assert waiting.read_reply().status == 200
        eventually(lambda: live.get("/v2/health/live").status == 200, within_s=2)


def test_metrics_are_prometheus_text_with_tritons_names(live: Live) -> None:
    assert live.infer("echo", [[1, 2]]).status == 200
    reply = live.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    assert {"nv_inference_request_success", "nv_inference_queue_duration_us", "farthing_http_requests"} <= set(families)
    assert live.metric("nv_inference_count", model="echo") >= 1
    # the scrape itself is under way while it is counted
    assert live.metric("farthing_http_requests_in_flight") == 1


def test_a_port_for_metrics_has_nothing_else(tmp_path: Path) -> None:
    from farthing.config.server import Address

    with serving(small_repository(tmp_path), metrics=Address("127.0.0.1", 0)) as live:
        assert live.server is not None
        assert live.server.metrics is not None
        other = Live(("127.0.0.1", live.server.metrics.port))
        assert b"nv_inference_count" in other.get("/metrics").body
        for path in ("/v2", "/v2/models/echo/infer", "/openapi.json"):
            assert other.post(path, infer_json([[1, 2]])).status == 404


def test_the_document_is_valid_openapi_and_every_path_in_it_is_there(live: Live) -> None:
    reply = live.get("/openapi.json")
    document = json.loads(reply.body)
    schemathesis.openapi.from_dict(document).validate()
    for path, operations in document["paths"].items():
        for method in {"get", "post"} & operations.keys():
            real = path.format(model_name="nobody", model_version="1", region_name="none")
            answer = live.ask(method.upper(), real)
            assert "Not Found" not in answer.body.decode(), path
            assert answer.status != 405, path


# -- ids and traces --------------------------------------------------------------------------------------------------


def test_a_request_id_is_given_back_or_made(live: Live) -> None:
    assert live.get("/v2", {"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    made = {live.get("/v2").headers["x-request-id"] for _ in range(10)}
    assert len(made) == 10


@pytest.mark.parametrize("given", ["", "a b", "x" * 10_000, 'a"b', "a\tb", "ä"])
def test_a_request_id_that_could_harm_a_log_is_not_taken(live: Live, given: str) -> None:
    with live.connect() as wire:
        raw = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-Request-Id: " + given.encode() + b"\r\n\r\n"
        reply = wire.send(raw).read_reply()
        assert reply.status == 200
        answered = reply.headers["x-request-id"]
        assert answered.isascii()
        assert answered.isprintable()
        assert " " not in answered
        assert 0 < len(answered) <= 256


def test_a_trace_is_continued_with_a_span_of_ours(live: Live) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answered = live.get("/v2", {"traceparent": f"00-{trace}-{parent}-01"}).headers["traceparent"]
    version, same, span, flags = answered.split("-")
    assert (version, same, flags) == ("00", trace, "01")
    assert span != parent
    for wrong in ("", "00-0-0-01", f"00-{'0' * 32}-{parent}-01", f"ff-{trace}-{parent}-01", "x" * 1000):
        assert "traceparent" not in live.get("/v2", {"traceparent": wrong}).headers


def test_the_access_log_has_a_line_a_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="farthing.access"),
        serving(small_repository(tmp_path), access_log=True) as live,
    ):
        live.post("/v2/models/echo/infer", infer_json([[1, 2]]), {"X-Request-Id": "mine"})
        live.infer("echo", [[1]])
    first, second = [record for record in caplog.records if record.name == "farthing.access"]
    assert first.getMessage() == "POST /v2/models/echo/infer 200"
    assert first.request_id == "mine"  # type: ignore[attr-defined]
    assert second.getMessage() == "POST /v2/models/echo/infer 400"
