"""Traces from the wire to the engine, over HTTP and gRPC, as a collector gets them."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.collector import Collector, collecting
from tests.language import write_tiny_model
from tests.models import identity, save
from tests.server.test_grpc import ANY_PORT, Client, infer_message
from tests.server.test_grpc_streams import Talk
from tests.server.test_grpc_text import prompt
from tests.serving import Gate, Live, eventually, infer_json, serving, small_repository

from farthing.config.server import ModelControl
from farthing.protocols.kserve_grpc import message_class
from farthing.telemetry.otel import open_span_sink

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
UNSAMPLED = f"00-{TRACE}-{CALLER}-00"
SERVICE = "inference.GRPCInferenceService"
RUN: dict[str, Any] = {"queue": {}, "batch": {"compute_input": {}, "compute_infer": {}, "compute_output": {}}}
"""What is below a request to a model."""

CHAIN = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "z" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling { step [
  { model_name: "first" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "m" } },
  { model_name: "second" model_version: -1 input_map { key: "x" value: "m" } output_map { key: "y" value: "z" } }
] }
"""


class Traced:
    """A server whose spans go to a collector."""

    def __init__(self, live: Live, client: Client, collector: Collector) -> None:
        self.live = live
        self.client = client
        self.collector = collector

    def spans(self, trace: str, spans: int) -> list[Any]:
        """The spans of one trace, once there are so many, by start."""

        def found() -> list[Any]:
            return [span for span in self.collector.spans() if span.trace_id.hex() == trace]

        eventually(lambda: len(found()) >= spans)
        return found()

    def tree(self, trace: str, spans: int) -> dict[str, Any]:
        """A trace as its names, each with those below it, in the order they began; every span's parent is there."""
        all_spans = self.spans(trace, spans)
        assert len(all_spans) == spans
        ids = {span.span_id for span in all_spans}
        roots = [span for span in all_spans if span.parent_span_id not in ids]

        def below(parent: Any) -> dict[str, Any]:
            children = [span for span in all_spans if span.parent_span_id == parent.span_id]
            for child in children:
                assert parent.start_time_unix_nano <= child.start_time_unix_nano
                assert child.end_time_unix_nano <= parent.end_time_unix_nano
            return {child.name: below(child) for child in sorted(children, key=_begin)}

        return {root.name: below(root) for root in roots}


def _begin(span: Any) -> Any:
    return span.start_time_unix_nano, -span.end_time_unix_nano


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


@contextmanager
def traced(*paths: Path, **settings: Any) -> Iterator[Traced]:
    with collecting() as collector:
        sink = open_span_sink(setting=collector.address, environ={}, version="0")
        assert sink is not None
        sink._delay_s = 0.02  # type: ignore[attr-defined] # nobody looks at these traces meanwhile
        try:
            with serving(*paths, spans=sink, grpc=ANY_PORT, **settings) as live:
                assert live.server is not None
                live.run(live.server.listen_grpc())
                with grpc.insecure_channel(str(live.server.grpc)) as channel:
                    yield Traced(live, Client(channel), collector)
        finally:
            sink.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = small_repository(tmp_path_factory.mktemp("repository"))
    for name in ("first", "second"):
        save(folder / name, identity())
    (folder / "chain").mkdir()
    (folder / "chain" / "config.pbtxt").write_text(CHAIN)
    write_tiny_model(folder / "tiny")
    # A trace that a client began is continued whatever the share of those that begin here.
    with traced(folder, trace_ratio=0.0) as house:
        yield house


def trace_id(number: int) -> str:
    return f"{number:032x}"


def parent(number: int) -> str:
    return f"00-{trace_id(number)}-{CALLER}-01"


def test_a_request_over_http_is_traced_from_the_wire_to_the_engine(house: Traced) -> None:
    headers = {"traceparent": parent(1), "User-Agent": "probe/1"}
    reply = house.live.post("/v2/models/echo/infer", infer_json([[1.0, 2.0]]), headers)
    assert reply.status == 200
    name = "POST /v2/models/{m}/infer"
    tree = house.tree(trace_id(1), 6)
    assert tree == {name: RUN}
    by_name = {span.name: span for span in house.spans(trace_id(1), 6)}
    server = by_name[name]
    assert (server.parent_span_id.hex(), server.kind) == (CALLER, server.SPAN_KIND_SERVER)
    assert reply.headers["traceparent"].split("-")[2] == server.span_id.hex(), "the client was told this id"
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{m}/infer",
        "http.response.status_code": 200,
        "http.request.body.size": len(infer_json([[1.0, 2.0]])),
        "url.path": "/v2/models/echo/infer",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "probe/1",
        "farthing.request.id": reply.headers["x-request-id"],
        "farthing.model.name": "echo",
    }
    assert attributes(by_name["batch"]) == {
        "farthing.model.name": "echo",
        "farthing.model.version": "1",
        "farthing.instance": 0,
        "farthing.batch.requests": 1,
        "farthing.batch.rows": 1,
    }


def test_a_call_over_grpc_is_traced_from_the_wire_to_the_engine(house: Traced) -> None:
    metadata = [("traceparent", parent(2))]
    message = infer_message([[1.0, 2.0]]).SerializeToString()
    house.client.raw("ModelInfer")(message, metadata=metadata, timeout=20)
    name = f"{SERVICE}/ModelInfer"
    assert house.tree(trace_id(2), 6) == {name: RUN}
    server = next(span for span in house.spans(trace_id(2), 6) if span.name == name)
    assert (server.parent_span_id.hex(), server.kind) == (CALLER, server.SPAN_KIND_SERVER)
    assert attributes(server) == {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": "OK",
        "farthing.model.name": "echo",
    }


def test_every_call_continues_its_callers_trace_with_its_status(house: Traced) -> None:
    metadata = [("traceparent", parent(3))]
    house.client.raw("ServerLive")(b"", metadata=metadata, timeout=20)
    house.client.fails("ModelInfer", infer_message([[1.0]], "ghost").SerializeToString(), metadata=metadata)
    house.client.fails("NoSuchMethod", metadata=metadata)
    spans = {span.name: span for span in house.spans(trace_id(3), 3)}
    assert {name: attributes(span)["rpc.response.status_code"] for name, span in spans.items()} == {
        f"{SERVICE}/ServerLive": "OK",
        f"{SERVICE}/ModelInfer": "NOT_FOUND",
        "_OTHER": "UNIMPLEMENTED",
    }
    errors = {name: span.status.code == span.status.STATUS_CODE_ERROR for name, span in spans.items()}
    assert errors == {f"{SERVICE}/ServerLive": False, f"{SERVICE}/ModelInfer": False, "_OTHER": True}


def test_each_step_of_an_ensemble_has_its_own_wait_and_run(house: Traced) -> None:
    body = infer_json([[1.0, 2.0]])
    assert house.live.post("/v2/models/chain/infer", body, {"traceparent": parent(4)}).status == 200
    assert house.tree(trace_id(4), 13) == {
        "POST /v2/models/{m}/infer": {"step first": RUN, "step second": RUN},
    }


def test_requests_of_a_stream_are_below_their_call(house: Traced) -> None:
    talk = Talk(house.client, metadata=[("traceparent", parent(5))])
    talk.put(infer_message([[1.0, 2.0]]), infer_message([[1.0]], "ghost")).end()
    assert [bool(answer.error_message) for answer in talk.rest()] == [False, True]
    name = f"{SERVICE}/ModelStreamInfer"
    assert house.tree(trace_id(5), 8) == {name: {f"{name} echo": RUN, f"{name} ghost": {}}}


def test_text_is_traced_by_the_names_of_generative_ai(house: Traced) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}
    body = json.dumps({**chat, "ignore_eos": True, "seed": 7}).encode()
    reply = house.live.post("/v1/chat/completions", body, {"traceparent": parent(6)})
    assert reply.status == 200
    tree = house.tree(trace_id(6), 5)
    assert tree == {"POST /v1/chat/completions": {"chat tiny": {"queue": {}, "prefill": {}, "decode": {}}}}
    span = next(span for span in house.spans(trace_id(6), 5) if span.name == "chat tiny")
    usage = reply.json["usage"]
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "farthing",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": reply.json["id"],
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
    }
    Talk(house.client, metadata=[("traceparent", parent(7))]).put(prompt("hello", max_tokens=3)).end().rest()
    name = f"{SERVICE}/ModelStreamInfer"
    text = {"text_completion tiny": {"queue": {}, "prefill": {}, "decode": {}}}
    assert house.tree(trace_id(7), 6) == {name: {f"{name} tiny": text}}


def test_what_the_caller_does_not_sample_is_not_recorded(house: Traced) -> None:
    house.live.post("/v2/models/echo/infer", infer_json([[1.0, 2.0]]), {"traceparent": UNSAMPLED})
    message = infer_message([[1.0, 2.0]]).SerializeToString()
    house.client.raw("ModelInfer")(message, metadata=[("traceparent", UNSAMPLED)], timeout=20)
    house.live.post("/v2/models/echo/infer", infer_json([[1.0, 2.0]]), {"traceparent": parent(8)})
    house.spans(trace_id(8), 6)
    assert [span for span in house.collector.spans() if span.trace_id.hex() == TRACE] == []


def test_members_of_one_batch_are_linked(tmp_path: Path) -> None:
    save(tmp_path / "patient", identity())
    (tmp_path / "patient" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 3 ] max_queue_delay_microseconds: 20000000 }"
    )
    with traced(tmp_path / "patient") as house:
        numbers = (1, 2, 3)
        calls = [
            house.client.begin([[1.0, float(n)]], "patient", metadata=[("traceparent", parent(n))]) for n in numbers
        ]
        for call in calls:
            call.result()
        runs = [next(span for span in house.spans(trace_id(n), 6) if span.name == "batch") for n in numbers]
    assert {attributes(run)["farthing.batch.requests"] for run in runs} == {3}
    leaders = [run for run in runs if len(run.links) == 2]
    assert len(leaders) == 1
    others = [run for run in runs if run is not leaders[0]]
    assert {link.span_id for link in leaders[0].links} == {run.span_id for run in others}
    for run in others:
        assert [(link.trace_id, link.span_id) for link in run.links] == [(leaders[0].trace_id, leaders[0].span_id)]


def test_a_wait_in_vain_is_an_error_of_its_span(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with traced(gate.path) as house:
        first = house.client.begin([[1.0]], metadata=[("traceparent", parent(1))])
        eventually((gate.path.parent / "seen").exists)
        body = infer_json([[2.0]], parameters={"timeout": 20_000})
        assert house.live.post("/v2/models/gate/infer", body, {"traceparent": parent(2)}).status == 503
        gate.open()
        first.result()
        spans = house.spans(trace_id(2), 2)
    assert [(span.name, attributes(span)["error.type"]) for span in spans] == [
        ("POST /v2/models/{m}/infer", "503"),
        ("queue", "DeadlineExceeded"),
    ]


def test_trace_settings_say_which_requests_begin_a_trace_over_both_protocols(tmp_path: Path) -> None:
    folder = small_repository(tmp_path)
    settings = {"model_control": ModelControl.EXPLICIT, "load_models": ("echo", "mlp"), "trace_ratio": 0.0}
    with traced(folder, **settings) as house:
        live, client = house.live, house.client

        def set_traces(path: str, **wanted: Any) -> None:
            assert live.post(path, json.dumps(wanted).encode(), {"Content-Type": "application/json"}).status == 200

        def servers() -> list[str]:
            return [span.name for span in house.collector.spans() if span.kind == span.SPAN_KIND_SERVER]

        def ask(times: int) -> None:
            for _ in range(times):
                assert live.post("/v2/models/echo/infer", infer_json([[1.0, 2.0]])).status == 200
                client.raw("ModelInfer")(infer_message([[1.0, 2.0]]).SerializeToString(), timeout=20)

        ask(3)
        set_traces("/v2/trace/setting", trace_level=["TIMESTAMPS"], trace_rate="2", trace_count="-1")
        ask(3)  # of six requests, every second
        eventually(lambda: len(servers()) == 3)
        assert live.get("/v2").status == 200, "only inference begins a trace"
        told = client.ask("TraceSetting", model_name="echo", settings={"trace_level": {"value": ["OFF"]}})
        assert list(told.settings["trace_level"].value) == ["OFF"]
        ask(2)
        told = client.ask("TraceSetting", model_name="echo", settings={"trace_rate": {"value": ["1"]}})
        set_traces("/v2/models/echo/trace/setting", trace_level=None, trace_count="5")
        ask(4)
        eventually(lambda: len(servers()) == 8)
        assert live.get("/v2/models/echo/trace/setting").json["trace_count"] == "0"
        assert client.ask("TraceSetting").settings["trace_rate"].value == ["2"]
        asked = message_class("TraceSettingRequest")(model_name="ghost").SerializeToString()
        assert client.fails("TraceSetting", asked)[0] is grpc.StatusCode.NOT_FOUND
        time.sleep(0.1)  # what should not come would have come by then
        assert len(servers()) == 8
        before = house.collector.exports
        set_traces("/v2/models/echo/trace/setting", trace_count=None, log_frequency="2")
        sink = live.server._tracing._sink  # type: ignore[union-attr] # to wait for as long as an operator would
        sink._delay_s = 30.0  # type: ignore[attr-defined]
        ask(2)
        eventually(lambda: house.collector.exports == before + 2)
