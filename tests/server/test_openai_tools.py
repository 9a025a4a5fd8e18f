"""Forms of answers and tools over the wire, on a tiny model that knows nothing and so does only what grammars make it do.

Ids are of the OpenAI checklist. The model's tokens are bytes and its words are noise.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from tests.language import TEMPLATE, VOCABULARY, paced, talking
from tests.server.test_openai import chat, complete, error_of, events, post, text_of
from tests.serving import Live, Reply

from farthing.types.errors import InvalidInput

LONG: dict[str, Any] = {"max_tokens": 300, "ignore_eos": False}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": CITY}}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        "strict": True,
    },
}
TOOLS = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with talking(tmp_path_factory.mktemp("models"), context=4096) as live:
        yield live


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def message_of(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    (choice,) = reply.json["choices"]
    message: dict[str, Any] = choice["message"]
    return message | {"finish_reason": choice["finish_reason"]}


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """R-04: each call has an id of its own, a type, a name and arguments that are JSON."""
    calls = message["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["id"] and call["type"] == "function" for call in calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def put_together(reply: Reply, index: int = 0) -> dict[str, Any]:
    """S-07: the message that a stream's deltas make."""
    message: dict[str, Any] = {"role": None, "content": None, "tool_calls": [], "finish_reason": None}
    for chunk in events(reply):
        (choice,) = chunk["choices"]
        if choice["index"] != index:
            continue
        assert message["finish_reason"] is None, "nothing comes after the last"
        message["finish_reason"] = choice["finish_reason"]
        delta = choice["delta"]
        message["role"] = delta.get("role") or message["role"]
        if delta.get("content"):
            message["content"] = (message["content"] or "") + delta["content"]
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(message["tool_calls"]):
                assert part["id"]
                assert part["type"] == "function"
                assert part["function"]["arguments"] == ""
                message["tool_calls"].append(part)
            else:
                assert set(part) == {"index", "function"}
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


# -- forms -----------------------------------------------------------------------------------------------------------

SCHEMAS = [
    CITY,
    {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 2, "maxItems": 3, "$defs": {"n": {"type": "boolean"}}},
    {"anyOf": [{"const": {"a": [1, None]}}, {"type": "string", "pattern": "^[ab]{2,4}$"}]},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}, "required": ["when"], "additionalProperties": False},
    {"type": "number", "minimum": 2.5, "exclusiveMaximum": 3, "maxLength": 9},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1, "seed": 4}, {"temperature": 2, "top_k": 3}])
def test_c_18_an_answer_fits_its_schema(talk: Live, schema: Any, options: dict[str, Any]) -> None:
    message = message_of(chat(talk, response_format=schema_format(schema), **{**LONG, **options}))
    assert message["finish_reason"] == "stop"
    assert jsonschema_rs.validator_for(schema).is_valid(json.loads(message["content"]))


def test_c_18_json_object_is_an_object(talk: Live) -> None:
    reply = chat(
        talk, response_format={"type": "json_object"}, **LONG, logit_bias={str(ord("}")): 100, str(ord('"')): 30}
    )
    assert isinstance(json.loads(message_of(reply)["content"]), dict)


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        ({"choice": ["yes", "no\n"]}, {"yes", "no\n"}),
        ({"regex": "(ab|c/d){1}"}, {"ab", "c/d"}),
        ({"grammar": 'start: "x" ("y" | "z")'}, {"xy", "xz"}),
        ({"json": {"enum": [1, "é"]}}, {"1", '"é"'}),
        ({"json": '{"const": null}'}, {"null"}),
    ],
)
def test_c_22_structured_outputs(talk: Live, wanted: Any, texts: set[str]) -> None:
    assert message_of(chat(talk, structured_outputs=wanted, **LONG))["content"] in texts
    assert complete(talk, structured_outputs=wanted, **LONG).json["choices"][0]["text"] in texts
    generated = post(talk, "/v2/models/tiny/generate", text_input="a", structured_outputs=wanted, max_tokens=300)
    assert generated.json["text_output"].removeprefix("a") in texts


def test_10_9_a_stream_in_a_form_is_the_whole_answer(talk: Live) -> None:
    options = {"response_format": schema_format(CITY), "n": 3, "temperature": 1, "seed": 6, "logprobs": True, **LONG}
    whole = chat(talk, **options).json
    chunks = events(chat(talk, stream=True, **options))
    for choice in whole["choices"]:
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]
        joined = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert joined.decode() == choice["message"]["content"]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) > 1


@pytest.mark.parametrize("option", [{"min_tokens": 250}, {"ignore_eos": True}])
def test_a_grammar_that_is_complete_ends_an_answer_that_should_be_longer(talk: Live, option: dict[str, Any]) -> None:
    reply = chat(talk, structured_outputs={"regex": "ab{0,40}"}, **{**LONG, **option})
    message = message_of(reply)
    assert (message["content"], message["finish_reason"]) == ("a" + "b" * 40, "stop")
    assert reply.json["usage"]["completion_tokens"] == 41


def test_a_form_cut_short_ends_with_length(talk: Live) -> None:
    message = message_of(chat(talk, response_format=schema_format(CITY), max_tokens=5))
    assert message["finish_reason"] == "length"
    assert len(message["content"]) == 5


def test_a_stop_string_ends_a_form_too(talk: Live) -> None:
    message = message_of(chat(talk, structured_outputs={"regex": "abc{3}"}, stop="bc", **LONG))
    assert (message["content"], message["finish_reason"]) == ("a", "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": schema_format({"type": "array", "contains": {}})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"type": "poem"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"type": "string", "pattern": "("})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"$ref": "http://x/y"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"multipleOf": 1000000007, "type": "integer"})}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: nobody"}}, "structured_outputs.grammar"),
        ({"tools": [CLOCK, {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object", "contains": {}}}}]}, "tools.1.function.parameters"),
        ({"tools": [WEATHER, {"type": "function", "function": {"name": "f", "parameters": {"type": "poem"}}}], "tool_choice": "required"}, "tools.1.function.parameters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_10_3_what_cannot_be_compiled_is_refused_by_name(talk: Live, fields: Any, param: str, stream: bool) -> None:
    reply = chat(talk, stream=stream, **fields)
    assert reply.status == 400
    assert error_of(reply)["param"] == param


def test_hostile_schemas_hold_nobody_up(talk: Live) -> None:
    hostile = {"allOf": [{"anyOf": [{"properties": {f"a{n}": {}}}, {"properties": {f"b{n}": {}}}]} for n in range(24)]}
    for pattern in ("((a{100}){100}){1000}", "(.{0,1000}x){1000}"):
        assert chat(talk, structured_outputs={"regex": pattern}).status in (200, 400)
    assert chat(talk, response_format=schema_format(hostile)).status == 400
    assert chat(talk).status == 200


def test_10_12_a_grammar_that_fails_in_a_stream_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing.llm import grammar

    masks = grammar._State.masks
    made = []

    def failing(*args: Any) -> Any:
        made.append(args)
        if len(made) > 5:
            raise InvalidInput("the grammar cannot be followed any further")
        return masks(*args)

    monkeypatch.setattr(grammar._State, "masks", failing)
    with paced(tmp_path) as (live, _):
        chunks = events(chat(live, stream=True, response_format=schema_format(CITY), **LONG))
        assert text_of([chunk for chunk in chunks if "choices" in chunk])
        assert chunks[-1]["error"]["type"] == "invalid_request_error"
        assert chat(live, response_format=schema_format(CITY), **LONG).status == 400
        assert chat(live).status == 200, "nobody else is hurt"


# -- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_c_16_a_required_call_is_made_and_fits(talk: Live, seed: int) -> None:
    reply = chat(
        talk, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **{**LONG, "temperature": 1}, seed=seed
    )
    message = message_of(reply)
    ((name, arguments),) = calls_of(message)
    assert (message["content"], message["finish_reason"]) == (None, "tool_calls")
    parameters = {"weather": CITY, "clock": CLOCK["function"]["parameters"]}  # type: ignore[index]
    assert jsonschema_rs.validator_for(parameters[name]).is_valid(arguments)


def test_c_16_a_named_call_ends_with_stop(talk: Live) -> None:
    message = message_of(chat(talk, tools=TOOLS, tool_choice=NAMED, **LONG))
    ((name, _),) = calls_of(message)
    assert (name, message["finish_reason"]) == ("weather", "stop")


def test_c_16_allowed_tools_are_those_that_can_be_called(talk: Live) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]},
    }
    message = message_of(chat(talk, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **LONG))
    assert calls_of(message) == [("clock", {})]
    assert message["finish_reason"] == "tool_calls"


def test_c_16_tools_that_may_not_be_called_are_not_told_of(talk: Live) -> None:
    plain, none = chat(talk), chat(talk, tools=TOOLS, tool_choice="none")
    assert none.json["choices"] == plain.json["choices"]
    assert "tool_calls" not in none.json["choices"][0]["message"]
    told = chat(talk, tools=TOOLS, max_tokens=1).json["usage"]["prompt_tokens"]
    asked = {"messages": [{"role": "user", "content": "hello"}], "tools": TOOLS}
    assert post(talk, "/tokenize", **asked).json["count"] == told
    assert told > plain.json["usage"]["prompt_tokens"] + 300, "the template knows no tools: they are in words"


def test_a_model_that_calls_nothing_answers(talk: Live) -> None:
    message = message_of(chat(talk, tools=TOOLS, max_tokens=10))
    assert message["content"]
    assert "tool_calls" not in message


# S-07, 10.9
@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": "required"},
        {"tool_choice": NAMED},
        {"tool_choice": "required", "temperature": 1, "seed": 3, "n": 3},
        {"tool_choice": "required", "max_tokens": 60},
        {"response_format": schema_format(CITY), "temperature": 1, "seed": 2},
        {"logit_bias": {str(ord("<")): 4, str(ord("t")): 3}, "temperature": 1, "seed": 5},
        {"tool_choice": NAMED, "logprobs": True, "stream_options": {"include_usage": False}},
    ],
)
def test_s_07_a_stream_calls_what_the_whole_answer_calls(talk: Live, options: dict[str, Any]) -> None:
    options = {"tools": TOOLS, **LONG, "max_tokens": 150, **options}
    streamed = chat(talk, stream=True, **options)
    options.pop("stream_options", None)
    for choice in chat(talk, **options).json["choices"]:
        message = choice["message"]
        got = put_together(streamed, choice["index"])
        assert (got["content"], got["finish_reason"]) == (message["content"] or None, choice["finish_reason"])
        called = [call["function"] for call in message.get("tool_calls", ())]
        assert [call["function"] for call in got["tool_calls"]] == called
        assert [call["index"] for call in got["tool_calls"]] == list(range(len(called)))
        assert "<tool_call>" not in (message["content"] or "") or choice["finish_reason"] == "length"


TEACHING = {
    "llama3": '{% if tools %}{"name": n, "parameters": p}{{ tools | tojson }} ipython{% endif %}' + TEMPLATE,
    "mistral": "{% if tools %}{{ tools | tojson }}[TOOL_CALLS]{% endif %}" + TEMPLATE,
    "mistral's control token": "{% if tools %}{{ tools | tojson }}[TOOL_CALLS]{% endif %}" + TEMPLATE,
}


@pytest.mark.parametrize("style", TEACHING)
def test_calls_in_the_ways_that_templates_teach(tmp_path: Path, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "control" in style:
        monkeypatch.setattr("tests.language.SPECIAL", ("<|end|>", "<|turn|>", "[TOOL_CALLS]"))
    once = {"tools": TOOLS, "temperature": 1, "parallel_tool_calls": False, **LONG}
    with talking(tmp_path, context=4096, template=TEACHING[style]) as live:
        for choice in ("required", NAMED):
            message = message_of(chat(live, tool_choice=choice, seed=2, **once))
            ((name, arguments),) = calls_of(message)
            assert message["content"] is None
            assert len(message["tool_calls"][0]["id"]) == (9 if "mistral" in style else 29)
            got = put_together(chat(live, tool_choice=choice, seed=2, stream=True, **once))
            assert calls_of(got) == [(name, arguments)]
            assert got["finish_reason"] == message["finish_reason"]
        pushed = {str(number): 100 for number in ([258] if "control" in style else b"[TOOL_CALLS]{")}
        for seed in range(3):  # it may call, and does or does not
            message = message_of(chat(live, seed=seed, logit_bias=pushed, **{**once, "max_tokens": 60}))
            assert "[TOOL_CALLS]" not in (message["content"] or "") or message["finish_reason"] == "length"
            assert all(name in ("weather", "clock") for name, _ in calls_of({"tool_calls": [], **message}))


def test_a_call_cut_short_is_text(talk: Live) -> None:
    message = message_of(chat(talk, tools=TOOLS, tool_choice=NAMED, max_tokens=30, ignore_eos=False))
    assert message["finish_reason"] == "length"
    assert message["content"] == '<tool_call>\n{"name": "weather",'[:30]
    assert "tool_calls" not in message


# C-04, C-05
def test_a_conversation_with_calls_and_results_goes_on(talk: Live) -> None:
    messages = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "<|end|>sunny"}]},
    ]  # fmt: skip
    ids = post(talk, "/tokenize", messages=messages).json["tokens"]
    text = post(talk, "/detokenize", tokens=ids).json["prompt"]
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert "<|turn|>user\n<tool_response>\n<|end|>sunny\n</tool_response>" in text
    assert ids.count(256) == 3, "what looks like a control token in a result is text (10.13)"
    assert post(talk, "/v1/chat/completions", messages=messages, tools=TOOLS, max_tokens=3).status == 200


# C-21
@pytest.mark.parametrize("stream", [False, True])
def test_functions_are_called_in_their_own_words(talk: Live, stream: bool) -> None:
    options = {"functions": [tool["function"] for tool in TOOLS], "function_call": {"name": "weather"}, **LONG}
    if not stream:
        message = message_of(chat(talk, **options))
        call = message["function_call"]
        assert "tool_calls" not in message
        assert message["finish_reason"] == "stop"
    else:
        call = {"name": "", "arguments": ""}
        for chunk in events(chat(talk, stream=True, **options)):
            part = chunk["choices"][0]["delta"].get("function_call", {})
            call = {key: call[key] + part.get(key, "") for key in call}
    assert call["name"] == "weather"
    assert jsonschema_rs.validator_for(CITY).is_valid(json.loads(call["arguments"]))


def test_after_all_this_nothing_is_held(talk: Live) -> None:
    assert talk.metric("vllm:num_requests_running") == 0
    assert talk.metric("vllm:kv_cache_usage_perc") == 0
    assert VOCABULARY
