"""What a client may send: types, ranges, defaults, and the field that an error names. Ids are of the OpenAI checklist."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.protocols.openai import (
    SamplingDefaults,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
    sampling,
    stops,
    template_messages,
)
from farthing.types.errors import InvalidField, InvalidInput
from farthing.types.forms import ChoiceForm, JsonForm, LarkForm, RegexForm

HELLO = [{"role": "user", "content": "hello"}]
DEFAULTS = SamplingDefaults()
F: Any = {"type": "function", "function": {"name": "f"}}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def json_schema(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def deep(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def chat(**fields: Any) -> Any:
    return parse_chat(json.dumps({"messages": HELLO, **fields}).encode())


def completion(**fields: Any) -> Any:
    return parse_completion(json.dumps({"prompt": "once", **fields}).encode())


def refused(parse: Any, **fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        parse(**fields)
    return caught.value


def test_a_chat_that_says_nothing_gets_openais_defaults() -> None:
    asked = chat()
    parameters = sampling(asked, DEFAULTS, asked.logprobs_top)
    assert (parameters.temperature, parameters.top_p, parameters.top_k, parameters.logprobs) == (1.0, 1.0, 0, None)
    assert (asked.tokens_max, stops(asked), asked.model) == (None, (), None)


def test_a_models_own_defaults_stand_in_for_what_is_not_said() -> None:
    own = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1)
    parameters = sampling(chat(top_k=0), own, None)
    assert (parameters.temperature, parameters.top_p, parameters.top_k) == (0.6, 0.95, 0)
    assert parameters.repetition_penalty == 1.1


# 10.1: null and missing are the same for every optional field
@pytest.mark.parametrize("parse", [chat, completion])
def test_null_is_missing(parse: Any) -> None:
    plain = parse()
    fields = (plain if hasattr(plain, "messages") else plain.body).__struct_fields__
    optional = [name for name in fields if name not in ("messages", "prompt")]
    assert parse(**dict.fromkeys(optional)) == plain


# E-07, C-20: unknown and ignorable fields are accepted
def test_unknown_fields_are_ignored() -> None:
    ignorable = {"verbosity": "low", "service_tier": "auto", "metadata": {"a": "b"}, "store": True, "user": "me"}
    ignorable |= {"prompt_cache_key": "k", "prediction": {"type": "content"}}
    assert chat(**ignorable, nonsense=[1, {"deep": None}]) == chat()
    assert completion(user="me", nonsense=1) == completion()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),  # C-02
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "poem"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages.0.tool_call_id"),  # C-04
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages.0.tool_calls"),
        ({"max_tokens": 0}, "max_tokens"),  # C-06
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),  # C-07
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),  # C-08, 10.2
        ({"n": 129}, "n"),
        ({"n": 1 << 70}, "n"),
        ({"stop": [""]}, "stop.0"),  # C-09
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"presence_penalty": 2.5}, "presence_penalty"),  # C-10
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"7": 101}}, "logit_bias.*"),  # C-11
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),  # C-12
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"seed": 1 << 63}, "seed"),  # C-13, 10.6
        ({"seed": 1 << 90}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),  # C-14
        ({"stream": "yes"}, "stream"),
        ({"tools": []}, "tools"),  # C-15
        ({"tools": [F, {"type": "function", "function": {"name": "a b"}}]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}, "tools.0.function.strict"),
        ({"tools": [F, F]}, "tools.1.function.name"),
        ({"tools": [F], "functions": [{"name": "g"}]}, "functions"),
        ({"tool_choice": "auto"}, "tool_choice"),  # C-16
        ({"tool_choice": "always", "tools": [F]}, "tool_choice"),
        ({"tool_choice": named("g"), "tools": [F]}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function"}, "tools": [F]}, "tool_choice.function"),
        ({"tool_choice": allowed("auto"), "tools": [F]}, "tool_choice.allowed_tools.tools"),
        ({"tool_choice": allowed("none", "f"), "tools": [F]}, "tool_choice.allowed_tools.mode"),
        ({"tool_choice": allowed("auto", "f", "g"), "tools": [F]}, "tool_choice.allowed_tools.tools.1.function.name"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),  # C-17
        ({"functions": []}, "functions"),  # C-21
        ({"function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.name"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", "function_call": {"name": "f"}}]}, "messages.0.function_call"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),  # C-18
        ({"response_format": json_schema(None)}, "response_format.json_schema.schema"),
        ({"response_format": json_schema(deep(200))}, "response_format.json_schema.schema"),  # 10.3
        ({"response_format": json_schema({"x": "y" * 200_000})}, "response_format.json_schema.schema"),
        ({"response_format": json_schema(ENDLESS)}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice.0"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"response_format": {"type": "poem"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),  # C-19
        ({"min_p": 2}, "min_p"),  # C-22
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"eos_token": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert (error.field, error.http_status) == (param, 400)
    assert error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"chat_template": "{{ x }}"}, "chat_template"),  # 10.17
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"grammar": "root ::= [a-z]"}}, "structured_outputs.grammar"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert (error.field, error.code) == (param, "unsupported_parameter")


def test_what_asks_for_nothing_is_not_refused() -> None:
    nothing = {"bad_words": [], "structured_outputs": None, "use_beam_search": False, "prompt_logprobs": None}
    chat(**nothing, response_format={"type": "text"}, modalities=["text"], top_p=1, n=1)
    assert chat(tools=[F], tool_choice="none").tool_use is None
    assert chat(tool_choice="none", parallel_tool_calls=False).tool_use is None
    assert chat(structured_outputs={"json": None}).form is None


# C-15, C-16, C-17
def test_what_may_be_called() -> None:
    strict = {"type": "function", "function": {"name": "g", "strict": True, "parameters": {"type": "object"}}}
    auto = chat(tools=[F, strict]).tool_use
    assert [(tool.name, tool.is_strict, tool.field) for tool in auto.tools] == [
        ("f", False, "tools.0.function"),
        ("g", True, "tools.1.function"),
    ]
    assert (auto.callable_names, auto.is_required, auto.is_named, auto.takes_several) == (
        {"f", "g"},
        False,
        False,
        True,
    )
    assert auto.is_constrained
    assert not chat(tools=[F], tool_choice="auto").tool_use.is_constrained
    assert chat(tools=[F], parallel_tool_calls=False).tool_use.is_constrained
    assert chat(tools=[F, strict], tool_choice="required").tool_use.is_required
    one = chat(tools=[F, strict], tool_choice=named("g")).tool_use
    assert (one.callable_names, one.is_required, one.is_named, len(one.tools)) == ({"g"}, True, True, 2)
    few = chat(tools=[F, strict], tool_choice=allowed("required", "f")).tool_use
    assert (few.callable_names, few.is_required, few.is_named) == ({"f"}, True, False)
    for asked in (chat(tools=[F], parallel_tool_calls=False), chat(tools=[F], tool_choice="required")):
        assert asked.needs_grammar
    assert not chat(tools=[F]).needs_grammar


# C-21
def test_functions_are_tools_in_older_words() -> None:
    old = chat(functions=[{"name": "f"}, {"name": "g"}], function_call={"name": "g"}).tool_use
    assert (old.callable_names, old.is_named, old.takes_several) == ({"g"}, True, False)
    assert chat(functions=[{"name": "f"}], function_call="none").tool_use is None
    assert not chat(functions=[{"name": "f"}]).tool_use.is_required
    told = template_messages(
        chat(
            messages=[
                *HELLO,
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
                {"role": "function", "name": "f", "content": "2"},
            ]
        ).messages
    )
    (call,) = told[1]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}
    assert told[2] == {"role": "tool", "content": "2", "name": "f", "tool_call_id": call["id"]}


# C-18, C-22
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonForm(schema={"type": "object"}, field="response_format")),
        (
            {"response_format": json_schema({"type": "array"})},
            JsonForm(schema={"type": "array"}, field="response_format.json_schema.schema"),
        ),
        (
            {"structured_outputs": {"json": '{"type": "array"}'}},
            JsonForm(schema={"type": "array"}, field="structured_outputs.json"),
        ),
        ({"structured_outputs": {"regex": "a+"}}, RegexForm(pattern="a+", field="structured_outputs.regex")),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            ChoiceForm(choices=("a", "b"), field="structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"grammar": "start: X"}},
            LarkForm(source="start: X", field="structured_outputs.grammar"),
        ),
    ],
)
@pytest.mark.parametrize("parse", [chat, lambda **fields: completion(**fields).body])
def test_the_form_of_an_answer(parse: Any, fields: dict[str, Any], expected: Any) -> None:
    assert parse(**fields).form == expected


REFERENCES = {
    "a tree": {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["kids"],
    },
    "a list": {
        "$ref": "#/$defs/n",
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["next"],
            }
        },
    },
    "not required": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "a long chain": {
        "$ref": "#/$defs/a0",
        "$defs": {**{f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(500)}, "a500": {"type": "integer"}},
    },
    "any type": {"properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    "a strange pointer": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 3}}},
}
NO_END = {
    "an object in itself": ENDLESS,
    "two in each other": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
        },
    },
    "whatever one takes": {"anyOf": [{"$ref": "#"}, {"allOf": [{"type": "string"}, {"$ref": "#"}]}]},
    "what is not described": {"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["x"]},
}


@pytest.mark.parametrize("schema", REFERENCES.values(), ids=REFERENCES.keys())
def test_a_schema_that_refers_to_itself_may_have_an_end(schema: Any) -> None:
    assert chat(response_format=json_schema(schema)).form.schema == schema


@pytest.mark.parametrize("schema", NO_END.values(), ids=NO_END.keys())
def test_a_schema_without_an_end_is_refused(schema: Any) -> None:
    error = refused(chat, response_format=json_schema(schema))
    assert error.field == "response_format.json_schema.schema"
    assert "finite" in error.message


# C-06
def test_the_newer_name_of_the_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).tokens_max == 7
    assert chat(max_tokens=5).tokens_max == 5


# C-09, C-11, C-12, C-13
def test_fields_become_sampling_parameters() -> None:
    asked = chat(stop=["a", "b"], logit_bias={"7": -100, "9": 1.5}, logprobs=True, top_logprobs=3, seed=-1, top_k=-1)
    parameters = sampling(asked, DEFAULTS, asked.logprobs_top)
    assert stops(asked) == ("a", "b")
    assert stops(chat(stop="end")) == ("end",)
    assert parameters.logit_bias == {7: -100.0, 9: 1.5}
    assert (parameters.logprobs, parameters.top_k) == (3, 0)
    assert parameters.seed == (1 << 64) - 1
    assert chat(logprobs=True).logprobs_top == 0


@pytest.mark.parametrize("key", ["x", "-1", "1.0", "", "١", "9" * 30])
def test_a_bias_for_something_that_is_no_token_is_refused(key: str) -> None:
    with pytest.raises(InvalidField) as caught:
        sampling(chat(logit_bias={key: 1}), DEFAULTS, None)
    assert caught.value.field == "logit_bias"


# C-02, C-03, C-05
def test_messages_reach_the_template_as_plain_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    assert template_messages(chat(messages=messages).messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "no"},
    ]


# L-01
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [""]}, "prompt.0"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [[1], "a", 3]}, "prompt.2"),
        ({"prompt": [1, -2]}, "prompt.1"),  # 10.4
        ({"prompt": [1, 1 << 40]}, "prompt.1"),
        ({"prompt": [1, True]}, "prompt.1"),
        ({"prompt": [1, 2.5]}, "prompt.1"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 256, "n": 128}, "n"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),  # L-02
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),  # L-03
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_a_wrong_completion_field_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(completion, **fields).field == param


def test_completions_have_their_own_defaults() -> None:
    assert completion().body.tokens_max == 16  # L-02
    assert completion(max_tokens=0, echo=True).body.tokens_max == 0
    assert completion(best_of=2, n=2).body.n == 2


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidField) as caught:
        parse_completion(b"{}")
    assert caught.value.field == "prompt"


# T-08, 10.5
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff", b"{]", b"[" * 100_000, b'{"a":' * 100_000]
)
@pytest.mark.parametrize("parse", [parse_chat, parse_completion, parse_tokenize, parse_detokenize])
def test_a_body_that_is_no_object_is_the_clients_mistake(parse: Any, body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(body)
    assert caught.value.http_status == 400


# 10.3: depth is refused in bounded time, wherever it is
def test_depth_in_a_field_is_refused() -> None:
    for field in ("nonsense", "tools", "structured_outputs", "messages"):
        body = b'{"messages":[{"role":"user","content":"x"}],"%b":%b}' % (
            field.encode(),
            b"[" * 200_000 + b"]" * 200_000,
        )
        with pytest.raises(InvalidInput):
            parse_chat(body)


def test_what_an_error_repeats_is_bounded() -> None:
    error = refused(chat, messages=[{"role": "x" * 100_000, "content": ""}])
    assert len(error.message) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
CHAT_FIELDS = st.sampled_from(list(chat().__struct_fields__))
COMPLETION_FIELDS = st.sampled_from(list(completion().body.__struct_fields__))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(CHAT_FIELDS, JSON, max_size=4))
def test_any_chat_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    with suppress(InvalidInput):
        asked = chat(**fields)
        sampling(asked, DEFAULTS, asked.logprobs_top)
        template_messages(asked.messages)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(COMPLETION_FIELDS, JSON, max_size=4))
def test_any_completion_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    with suppress(InvalidInput):
        sampling(completion(**fields).body, DEFAULTS, None)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    for parse in (parse_chat, parse_completion, parse_tokenize, parse_detokenize):
        with pytest.raises(InvalidInput):
            parse(body)
