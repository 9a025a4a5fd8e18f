"""OpenAI's endpoints over the wire, on a tiny model with real files. Ids are of the OpenAI checklist."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.language import CONTEXT, END, VOCABULARY, paced, talking
from tests.serving import Live, Reply, eventually, request

from farthing.config.server import HttpLimits
from farthing.protocols.kserve import openapi_document
from farthing.protocols.openai.openapi import with_openai
from farthing.protocols.sse import Reader
from farthing.server.auth import Door, new_key
from farthing.server.generate_extension import GenerateExtension
from farthing.server.openai import OpenAi

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with talking(tmp_path_factory.mktemp("models")) as live:
        yield live


def post(live: Live, path: str, headers: dict[str, str] | None = None, **body: Any) -> Reply:
    return live.post(path, json.dumps(body).encode(), headers)


def chat(live: Live, text: str = "hello", **body: Any) -> Reply:
    return post(live, CHAT, messages=[{"role": "user", "content": text}], **{**GREEDY, **body})


def complete(live: Live, prompt: Any = "hello", **body: Any) -> Reply:
    return post(live, COMPLETIONS, prompt=prompt, **{**GREEDY, **body})


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events of a whole stream, which must end with `[DONE]`."""
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    *data, done = Reader().feed(reply.body)
    assert done == b"[DONE]"
    return [json.loads(one) for one in data]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    pieces = [
        choice.get("text", choice.get("delta", {}).get("content")) or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    ]
    return "".join(pieces)


# -- models ----------------------------------------------------------------------------------------------------------


def test_mo_01_models_that_generate_text_are_listed(talk: Live) -> None:
    listed = talk.get("/v1/models").json
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "farthing")
    assert (type(model["created"]), model["max_model_len"]) == (int, CONTEXT)
    assert talk.get("/v1/models/tiny").json == model


@pytest.mark.parametrize("name", ["none", "org/none", "org%2Fnone", "x" * 300])
def test_mo_02_an_unknown_model_is_not_found(talk: Live, name: str) -> None:
    for reply in (talk.get(f"/v1/models/{name}"), chat(talk, model=name.replace("%2F", "/"))):
        assert reply.status == 404
        assert reply.json["error"]["code"] == "model_not_found"
        assert reply.json["error"]["type"] == "not_found_error"
        assert reply.json["error"]["param"] == "model"


def test_a_model_that_does_not_generate_text_is_said_to(talk: Live) -> None:
    error = chat(talk, model="mlp").json["error"]
    assert (error["param"], error["type"]) == ("model", "invalid_request_error")
    assert "does not generate text" in error["message"]


def test_c_01_without_a_name_the_only_model_answers(talk: Live) -> None:
    assert chat(talk).json["model"] == "tiny"
    assert chat(talk, model="tiny").json["model"] == "tiny"


def test_a_language_model_is_one_of_the_models(talk: Live) -> None:
    assert talk.get("/v2/health/ready").status == 200
    assert talk.get("/v2/models/tiny/ready").status == 200
    assert talk.get("/v2/models/tiny").json["platform"] == "farthing_llm"
    assert talk.get("/v2/models/tiny/config").json["backend"] == "llm"
    assert {"name": "tiny", "version": "1", "state": "READY"} in talk.post("/v2/repository/index").json
    refused = talk.infer("tiny", ["hi"], name="text_input", datatype="BYTES")
    assert refused.status == 400
    assert "generate" in refused.error


# -- answers ---------------------------------------------------------------------------------------------------------


def test_r_01_a_chat_is_answered(talk: Live) -> None:
    answer = chat(talk).json
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["system_fingerprint"].startswith("fp_")
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["message"]["refusal"] is None
    assert (choice["logprobs"], choice["finish_reason"]) == (None, "length")
    usage = answer["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_l_05_a_completion_is_answered(talk: Live) -> None:
    answer = complete(talk).json
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert set(choice) >= {"text", "index", "logprobs", "finish_reason"}
    assert answer["usage"]["prompt_tokens"] == len("hello")


def test_r_06_a_prompt_seen_before_is_found_in_the_cache(talk: Live) -> None:
    prompt = "The same beginning, longer than one block of keys and values. " * 2
    complete(talk, prompt)
    details = complete(talk, prompt).json["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= 96
    salted = complete(talk, prompt, cache_salt="mine").json["usage"]["prompt_tokens_details"]  # 10.15
    assert salted["cached_tokens"] == 0


def test_r_07_logprobs_cover_the_text(talk: Live) -> None:
    answer = chat(talk, logprobs=True, top_logprobs=3).json
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    joined = b"".join(bytes(token["bytes"]) for token in content)
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0
    assert chat(talk, logprobs=True).json["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_l_04_echo_gives_what_lm_eval_reads(talk: Live) -> None:
    """lm-eval's own request, and its way of telling whether a continuation is the greedy one."""
    ids = list(b"the context and the continuation")
    answer = complete(talk, ids, max_tokens=1, logprobs=1, echo=True, seed=1234).json
    (choice,) = answer["choices"]
    assert choice["text"].startswith("the context and the continuation")
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == list(range(len(ids) + 1))
    for token, logprob, top in list(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == logprob <= max(top.values())


def test_l_04_echo_alone_scores_a_text(talk: Live) -> None:
    (choice,) = complete(talk, "score me", max_tokens=0, logprobs=1, echo=True).json["choices"]
    assert choice["text"] == "score me"
    assert len(choice["logprobs"]["token_logprobs"]) == 8
    assert choice["finish_reason"] == "length"


def test_l_01_many_prompts_and_choices_come_in_order(talk: Live) -> None:
    answer = complete(talk, ["a", "b", "c"], n=2, echo=True, max_tokens=3).json
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"][0] for choice in answer["choices"]] == list("aabbcc")
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 18
    alone = complete(talk, "b", max_tokens=3, echo=True).json
    assert answer["choices"][2]["text"] == alone["choices"][0]["text"]


@pytest.mark.parametrize(
    ("prompt", "param"), [([[1, VOCABULARY]], "prompt"), ([VOCABULARY], "prompt"), (["a", [1, 1 << 30]][1:], "prompt")]
)
def test_10_4_ids_outside_the_vocabulary_are_refused(talk: Live, prompt: Any, param: str) -> None:
    reply = complete(talk, prompt)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


def test_c_08_n_choices_and_one_prompt(talk: Live) -> None:
    answer = chat(talk, n=3, temperature=1, seed=7).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 36
    assert answer["usage"]["prompt_tokens"] == chat(talk).json["usage"]["prompt_tokens"]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1


def test_c_09_a_stop_string_ends_the_text_before_it(talk: Live) -> None:
    text = chat(talk).json["choices"][0]["message"]["content"]
    stop = text[5:7]
    answer = chat(talk, stop=[stop, "never said"]).json["choices"][0]
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", stop)
    kept = chat(talk, stop=stop, include_stop_str_in_output=True).json["choices"][0]
    assert kept["message"]["content"] == text[: text.index(stop) + len(stop)]


def test_10_8_a_stop_string_that_is_the_whole_output(talk: Live) -> None:
    first = complete(talk, "ab", max_tokens=1).json["choices"][0]["text"]
    choice = complete(talk, "ab", stop=first).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


def test_c_09_a_stop_token_ends_the_text_too(talk: Live) -> None:
    plain = chat(talk, logprobs=True).json["choices"][0]
    (token,) = plain["logprobs"]["content"][1]["bytes"]
    choice = chat(talk, stop_token_ids=[token]).json["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)


def test_c_11_a_bias_decides(talk: Live) -> None:
    biased = complete(talk, "ab", logit_bias={str(ord("z")): 100}, max_tokens=4).json
    assert biased["choices"][0]["text"] == "zzzz"
    refused = complete(talk, "ab", logit_bias={str(VOCABULARY): 1})
    assert (refused.status, refused.json["error"]["param"]) == (400, "logit_bias")


def test_c_13_a_seed_repeats_itself(talk: Live) -> None:
    texts = [chat(talk, temperature=1, seed=11).json["choices"][0]["message"]["content"] for _ in range(3)]
    assert len(set(texts)) == 1
    assert chat(talk, temperature=1, seed=12).json["choices"][0]["message"]["content"] != texts[0]


def test_end_of_text_ends(talk: Live) -> None:
    ended = complete(talk, "ab", logit_bias={str(END): 100}, ignore_eos=False).json["choices"][0]
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")
    held = complete(talk, "ab", logit_bias={str(END): 100}, ignore_eos=False, min_tokens=3, logprobs=0).json
    assert held["usage"]["completion_tokens"] >= 3


# C-06, 10.7
def test_a_limit_beyond_the_context_is_clamped(talk: Live) -> None:
    answer = complete(talk, "a" * (CONTEXT - 5), max_tokens=1 << 30).json
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    answer = chat(talk, "a" * (CONTEXT - 100), max_tokens=None).json
    assert answer["usage"]["total_tokens"] == CONTEXT


@pytest.mark.parametrize("prompt", ["a" * CONTEXT, "a" * 10_000, "a" * 3_000_000, [1] * CONTEXT, [[1] * 5000]])
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(talk: Live, prompt: Any) -> None:
    reply = complete(talk, prompt)
    assert reply.status == 400
    assert reply.json["error"]["code"] == "context_length_exceeded"
    assert str(CONTEXT) in reply.json["error"]["message"]
    if isinstance(prompt, str):
        assert chat(talk, prompt).json["error"]["code"] == "context_length_exceeded"


def test_10_13_control_tokens_in_a_users_text_are_text(talk: Live) -> None:
    plain = post(talk, "/tokenize", messages=[{"role": "user", "content": "x"}]).json["tokens"]
    sly = post(talk, "/tokenize", messages=[{"role": "user", "content": "x<|end|><|turn|>"}]).json["tokens"]
    assert sly.count(END) == plain.count(END)
    assert len(sly) == len(plain) + len("<|end|><|turn|>")


def test_continue_final_message_goes_on_with_it(talk: Live) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I was say"}]
    opened = post(talk, CHAT, messages=messages, continue_final_message=True, **GREEDY).json
    same = complete(
        talk, list(b"") or post(talk, "/tokenize", messages=messages, add_generation_prompt=False).json["tokens"][:-2]
    )
    assert opened["choices"][0]["message"]["content"] == same.json["choices"][0]["text"]


def test_b_02_text_becomes_tokens_and_back(talk: Live) -> None:
    answer = post(talk, "/tokenize", prompt="hällo", return_token_strs=True).json
    assert (answer["count"], answer["max_model_len"], len(answer["token_strs"])) == (6, CONTEXT, 6)
    assert post(talk, "/detokenize", tokens=answer["tokens"]).json == {"prompt": "hällo"}
    assert post(talk, "/detokenize", tokens=[VOCABULARY]).status == 400


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"n": 3, "temperature": 1, "seed": 5}, {"logprobs": True, "top_logprobs": 2}])
def test_10_9_a_chat_stream_says_what_the_whole_answer_says(talk: Live, options: dict[str, Any]) -> None:
    whole = chat(talk, **options).json
    chunks = events(chat(talk, stream=True, **options))
    for choice in whole["choices"]:
        index = choice["index"]
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert text_of(chunks, index) == choice["message"]["content"]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}  # S-03
        assert all("role" not in one["delta"] for one in own[1:])
        assert own[-1]["delta"] == {}  # S-05
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(one["finish_reason"] is None for one in own[:-1])
        if choice["logprobs"]:  # S-09
            tokens = [token for one in own if one["logprobs"] for token in one["logprobs"]["content"]]
            assert tokens == choice["logprobs"]["content"]
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {  # S-02
        (chunks[0]["id"], chunks[0]["created"], "tiny", "chat.completion.chunk")
    }
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("options", [{}, {"n": 2, "echo": True}, {"logprobs": 2, "echo": True}])
def test_a_completion_stream_says_what_the_whole_answer_says(talk: Live, options: dict[str, Any]) -> None:
    prompts = ["one", "another"]
    whole = complete(talk, prompts, **options).json
    chunks = events(complete(talk, prompts, stream=True, **options))
    for choice in whole["choices"]:
        assert text_of(chunks, choice["index"]) == choice["text"]
        if choice["logprobs"]:
            own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [x for one in own if one["logprobs"] for x in one["logprobs"][key]] == choice["logprobs"][key]


def test_s_06_usage_comes_last_and_only_if_asked_for(talk: Live) -> None:
    chunks = events(chat(talk, stream=True, n=2, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert all(len(chunk["choices"]) == 1 for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 24
    counting = events(chat(talk, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in counting]
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_s_01_a_stream_is_framed_as_clients_expect(talk: Live) -> None:
    reply = chat(talk, stream=True)
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in reply.headers
    assert all(line.startswith(b"data: ") for line in reply.body.split(b"\n") if line)
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_a_stream_on_http_1_0_ends_with_its_connection(talk: Live) -> None:
    body = json.dumps({"prompt": "a", "stream": True, **GREEDY}).encode()
    with talk.connect() as wire:
        wire.send(request("POST", COMPLETIONS, body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data = b""
        while more := wire.socket.recv(1 << 16):
            data += more
    assert b"chunked" not in data
    assert data.endswith(b"data: [DONE]\n\n")


def test_connections_are_kept_between_streams(talk: Live) -> None:
    body = json.dumps({"prompt": "a", "stream": True, **GREEDY}).encode()
    with talk.connect() as wire:
        for _ in range(3):
            wire.send(request("POST", COMPLETIONS, body))
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += wire.socket.recv(1 << 16)
        assert wire.ask("GET", "/v1/models").status == 200


# -- trouble ---------------------------------------------------------------------------------------------------------


def error_of(reply: Reply) -> dict[str, Any]:
    """E-01: four keys, the message a text."""
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"[]", 400),  # T-08
        ("POST", CHAT, b"{}", 400),
        ("POST", CHAT, b"", 400),
        ("GET", CHAT, b"", 405),
        ("DELETE", "/v1/models/tiny", b"", 405),
        ("GET", "/v1/nothing", b"", 404),  # T-01
        ("POST", "/v1/embeddings", b"{}", 404),
        ("POST", "/tokenize", b"{}", 400),
        ("POST", "/detokenize", b"[]", 400),
        ("GET", "/v1/models/%ff", b"", 400),
    ],
)
def test_e_02_every_error_under_v1_is_an_object(talk: Live, method: str, path: str, body: bytes, status: int) -> None:
    reply = talk.ask(method, path, body)
    assert reply.status == status
    error = error_of(reply)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_a_compressed_body_is_refused_by_name(talk: Live) -> None:
    reply = talk.post(CHAT, b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert reply.status == 400
    assert "gzip" in error_of(reply)["message"]


def test_t_08_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    with talking(tmp_path, limits=HttpLimits(body_bytes_max=1000)) as live, live.connect() as wire:
        reply = wire.ask("POST", CHAT, b"x" * 2000)
        assert reply.status == 413
        error_of(reply)


def test_t_02_keys_are_asked_for_in_openais_words(tmp_path: Path) -> None:
    key, entry = new_key("shop", ("inference",))  # type: ignore[arg-type]
    keys = tmp_path / "keys.toml"
    keys.write_text(entry)
    with talking(tmp_path / "models", keys=keys) as live:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for reply in (live.get("/v1/models", headers), live.post(CHAT, b"{}", headers)):
                assert reply.status == 401
                error = error_of(reply)
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert live.get("/v1/models", {"Authorization": f"bearer {key}"}).status == 200
        assert chat_with(live, {"Authorization": f"Bearer {key}"}).status == 200


def chat_with(live: Live, headers: dict[str, str]) -> Reply:
    return post(live, CHAT, headers, messages=[{"role": "user", "content": "hi"}], **GREEDY)


def test_t_07_a_key_over_its_share_is_429_until_its_stream_ends(tmp_path: Path) -> None:
    key, entry = new_key("shop", ("inference",))  # type: ignore[arg-type]
    keys = tmp_path / "keys.toml"
    keys.write_text(entry + "inflight_max = 1\n")
    mine = {"Authorization": f"Bearer {key}"}
    with paced(tmp_path / "models", keys=keys) as (live, runner), live.connect() as wire:
        runner.gate.clear()
        body = json.dumps({"prompt": "a", "stream": True, **GREEDY}).encode()
        wire.send(request("POST", COMPLETIONS, body, **mine))
        eventually(lambda: chat_with(live, mine).status == 429)
        refused = chat_with(live, mine)
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"]
        runner.gate.set()
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += wire.socket.recv(1 << 16)
        assert chat_with(live, mine).status == 200


def test_text_generation_can_be_restricted_with_inference(tmp_path: Path) -> None:
    with talking(tmp_path, restricted=("inference:x-secret=open",)) as live:
        assert chat(live).status == 403
        assert error_of(chat(live))["type"] == "permission_error"
        assert chat_with(live, {"X-Secret": "open"}).status == 200


def test_t_03_every_path_that_runs_a_model_is_guarded(talk: Live) -> None:
    assert talk.server is not None
    routes = [*OpenAi(talk.server.runtime).routes(), *GenerateExtension(talk.server.runtime, 1 << 20).routes()]
    assert {route.door for route in routes} == {Door.INFERENCE}


def test_t_05_request_ids_and_foreign_headers(talk: Live) -> None:
    headers = {
        "X-Request-Id": "mine-1",
        "OpenAI-Organization": "o",
        "X-Stainless-Lang": "python",
        "Idempotency-Key": "k",
    }
    reply = chat_with(talk, headers)
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json["id"] == "chatcmpl-mine-1"


def test_e_06_errors_name_no_files(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.gguf").write_bytes(b"GGUF nonsense")
    with talking(tmp_path) as live:
        reply = chat(live, model="broken")
        assert reply.status == 503
        assert str(tmp_path) not in error_of(reply)["message"]
        assert chat(live, model="tiny").status == 200


def test_e_05_a_failure_before_the_first_token_has_its_status(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner):
        runner.fails_after = 0
        for stream in (False, True):
            reply = chat(live, stream=stream)
            assert reply.status == 500
            assert error_of(reply)["type"] == "server_error"
            assert "fire" not in reply.body.decode()  # E-06


def test_e_05_a_failure_in_a_stream_is_an_event(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner):
        runner.fails_after = 4
        chunks = events(chat(live, stream=True))
        assert text_of([chunk for chunk in chunks if "choices" in chunk])
        assert chunks[-1]["error"]["type"] == "server_error"
        assert live.metric("vllm:request_success", finished_reason="abort") == 1


# T-06, 10.16
@pytest.mark.parametrize("stream", [True, False])
def test_t_06_a_client_that_leaves_frees_what_it_held(tmp_path: Path, stream: bool) -> None:
    with paced(tmp_path) as (live, runner):
        runner.step_s = 0.02
        body = json.dumps({"prompt": "a" * 100, "max_tokens": 400, "ignore_eos": True, "stream": stream}).encode()
        with live.connect() as wire:
            wire.send(request("POST", COMPLETIONS, body))
            eventually(lambda: live.metric("vllm:num_requests_running") == 1)
            if stream:
                wire.socket.recv(100)
            assert live.metric("vllm:kv_cache_usage_perc") > 0
        eventually(lambda: live.metric("vllm:num_requests_running") == 0, within_s=2)
        assert live.metric("vllm:kv_cache_usage_perc") == 0
        assert live.metric("vllm:generation_tokens") < 400
        assert live.metric("nv_inference_request_failure", model="tiny", reason="CANCELED") == 1
        assert live.metric("farthing_http_requests_in_flight") == 1  # that of the metrics


def test_s_12_a_reader_that_stops_reading_is_cut_off(tmp_path: Path) -> None:
    limits = HttpLimits(stream_unread_bytes_max=8192)
    with talking(tmp_path, limits=limits) as live:
        asked = {"prompt": ["a"] * 64, "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 20}
        with live.connect(receive_buffer=2048) as wire:
            wire.send(request("POST", COMPLETIONS, json.dumps(asked).encode()))
            eventually(lambda: live.metric("farthing_http_rejected_total", reason="slow") == 1)
            eventually(lambda: live.metric("vllm:num_requests_running") == 0)
        assert chat(live).status == 200


def test_s_10_a_stream_that_waits_sends_pings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.server.generation.HEAD_AFTER_S", 0.05)
    monkeypatch.setattr("farthing.server.generation.PING_S", 0.05)
    with paced(tmp_path) as (live, runner), live.connect() as wire:
        runner.gate.clear()
        body = json.dumps({"prompt": "a", "stream": True, **GREEDY}).encode()
        wire.send(request("POST", COMPLETIONS, body))
        data = b""
        while data.count(b": ping\n\n") < 3:
            data += wire.socket.recv(1 << 16)
        assert data.startswith(b"HTTP/1.1 200 OK")
        runner.gate.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += wire.socket.recv(1 << 16)
        assert b"data: [DONE]" in data


def test_t_07_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    from farthing.config.server import AdmissionLimits

    with paced(tmp_path, admission=AdmissionLimits(queue_requests_max=2)) as (live, runner):
        runner.gate.clear()
        body = json.dumps({"prompt": "a", "n": 2, **GREEDY}).encode()
        wires = [live.connect() for _ in range(70)]
        for wire in wires:
            wire.send(request("POST", COMPLETIONS, body))
        eventually(lambda: live.metric("farthing_http_requests_total", route="generate", status="503") > 0)
        reply = live.post(COMPLETIONS, body)
        assert reply.status == 503
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        assert error_of(reply)["code"] == "server_overloaded"
        runner.gate.set()
        statuses = [wire.read_reply().status for wire in wires]
        assert set(statuses) == {200, 503}


def test_a_model_that_hangs_is_not_alive(tmp_path: Path) -> None:
    with paced(tmp_path, hang_timeout_s=0.2) as (live, runner), live.connect() as wire:
        assert live.get("/v2/health/live").status == 200
        runner.gate.clear()
        wire.send(request("POST", COMPLETIONS, json.dumps({"prompt": "a", **GREEDY}).encode()))
        eventually(lambda: live.get("/v2/health/live").status == 503, within_s=5)
        runner.gate.set()
        assert wire.read_reply().status == 200
        assert live.get("/v2/health/live").status == 200


def test_a_deadline_that_passes_in_the_queue_is_told(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner), live.connect() as wire:
        runner.step_s = 0.05
        body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True}).encode()
        wire.send(request("POST", COMPLETIONS, body, x_envoy_expected_rq_timeout_ms="100"))
        assert wire.read_reply().status == 503
        wire.send(request("POST", COMPLETIONS, body, x_envoy_expected_rq_timeout_ms="soon"))
        assert wire.read_reply().status == 400


def test_a_templates_own_variables_are_handed_on(talk: Live) -> None:
    assert chat(talk, chat_template_kwargs={"enable_thinking": False}).status == 200


def test_long_bodies_are_read_aside_and_answered_alike(talk: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "long " * 80
    short = [
        chat(talk, text).json["choices"],
        complete(talk, text).json["choices"],
        events(chat(talk, text, stream=True)),
    ]
    monkeypatch.setattr("farthing.server.preparation.INLINE_BYTES_MAX", 0)
    aside = [
        chat(talk, text).json["choices"],
        complete(talk, text).json["choices"],
        events(chat(talk, text, stream=True)),
    ]
    assert aside[:2] == short[:2]
    assert text_of(aside[2]) == text_of(short[2])
    assert chat(talk, temperature=9).status == 400
    assert chat(talk, model="none").status == 404
    assert chat(talk, "x" * 5000).json["error"]["code"] == "context_length_exceeded"


def test_t_14_a_drain_lets_streams_finish(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner), live.connect() as wire:
        assert live.server is not None
        assert live.loop is not None
        runner.step_s = 0.02
        body = json.dumps({"prompt": "a", "max_tokens": 20, "ignore_eos": True, "stream": True}).encode()
        wire.send(request("POST", COMPLETIONS, body))
        data = wire.socket.recv(1 << 16)
        import asyncio

        draining = asyncio.run_coroutine_threadsafe(live.server.drain(), live.loop)
        while more := wire.socket.recv(1 << 16):
            data += more
        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert draining.result(10) is True


# -- fuzz ------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(-3, 3) | st.text(max_size=6) | st.just("tiny"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options", "seed",
     "logit_bias", "logprobs", "top_logprobs", "echo", "min_tokens", "stop_token_ids", "top_k", "min_p", "priority",
     "repetition_penalty", "presence_penalty", "text_input", "parameters", "tokens", "continue_final_message", "response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls",
     "functions", "function_call"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(NAMES, VALUES, max_size=5),
    path=st.sampled_from(
        [CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/v2/models/tiny/generate", "/v2/models/tiny/generate_stream"]
    ),
)
def test_whatever_is_sent_nothing_breaks(talk: Live, body: dict[str, Any], path: str) -> None:
    body = {"max_tokens": 2, "messages": [{"role": "user", "content": "x"}], "prompt": "x", "text_input": "x", **body}
    if isinstance(body.get("max_tokens"), int | None):
        body["max_tokens"] = min(body["max_tokens"] or 2, 3)
    reply = post(talk, path, **body)
    assert reply.status in (200, 400, 404)


def document() -> Any:
    """The published document, for short answers of models that are there or not."""
    made = json.loads(json.dumps(with_openai(openapi_document("0"))))
    made["paths"] = {
        path: operations
        for path, operations in made["paths"].items()
        if "generate" in path or "/v1" in path or "token" in path
    }
    for path in made["paths"].values():
        for parameter in path.get("parameters", ()):
            parameter["schema"] = {"type": "string", "enum": ["tiny", "mlp", "nobody"]}
    for name in ("ChatBody", "CompletionBody", "GenerateFields"):
        fields = made["components"]["schemas"][name]["properties"]
        fields |= {"max_tokens": {"enum": [1, 2]}, "n": {"enum": [1, 2]}, "max_completion_tokens": {"enum": [1, None]}}
        fields["model"] = {"enum": ["tiny", "mlp", None]}
        made["components"]["schemas"][name]["required"].append("max_tokens")
    return made


DOCUMENT = document()
published = schemathesis.openapi.from_dict(DOCUMENT)


@published.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_requests_made_from_the_published_document_get_declared_answers(case: Any, talk: Live) -> None:
    answer = case.call(base_url=talk.url, timeout=20)
    declared = case.operation.definition.raw["responses"]
    assert answer.status_code in {200, 400, 404, 405}, answer.text
    assert str(answer.status_code) in declared
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}
    elif "json" in answer.headers["content-type"]:
        schema = declared["200"]["content"]["application/json"]["schema"] | {"components": DOCUMENT["components"]}
        assert jsonschema_rs.validator_for(schema).is_valid(answer.json())


def test_after_all_this_nothing_is_held(talk: Live) -> None:
    assert talk.metric("vllm:num_requests_running") == 0
    assert talk.metric("vllm:kv_cache_usage_perc") == 0
    assert talk.metric("farthing_http_requests_in_flight") == 1
    with socket.create_connection(talk.address) as sock:
        assert sock
