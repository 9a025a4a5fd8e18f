"""Forms and calls as grammars: what they let through, in each style, and what the reader then hears."""

import json
from typing import Any

import pytest
from tests.language import TURN
from tests.llm.test_grammar import COMPILER, takes

from farthing.llm.grammar_text import calls_grammar, form_grammar
from farthing.llm.tool_reader import ToolReader
from farthing.llm.tool_styles import STYLES, ToolStyle
from farthing.llm.tool_styles.hermes import HERMES
from farthing.llm.tool_styles.llama3 import LLAMA3
from farthing.llm.tool_styles.mistral import MISTRAL
from farthing.types.forms import ChoiceForm, Form, JsonForm, LarkForm, RegexForm
from farthing.types.tools import Tool, ToolUse

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"enum": ["Paris", "Rom\n"]}},
}
GET = Tool(name="get", parameters=CITY, is_strict=True, field="tools.0.function")
GET_TIME = Tool(name="get_time", field="tools.1.function")
ODD = Tool(
    name="odd",
    parameters={"type": "object", "contains": 3, "properties": {"n": {"type": "integer"}}, "required": ["n"]},
)


def use(*tools: Tool, only: Any = None, **given: Any) -> ToolUse:
    return ToolUse(tools=tools, callable_names=frozenset(only or [tool.name for tool in tools]), **given)


def form(wanted: Form) -> str:
    return form_grammar(wanted).text


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"a/b\/c", ["a/b/c"], ["a", "ab"]),
        ("one\ntwo", ["one\ntwo"], ["one two"]),
        ("\\\n", ["\n"], ["\\\n"]),
        (r"\\/", ["\\/"], ["/"]),
        (r"[0-9]{2}|x", ["12", "x"], ["1", "123"]),
        (r"(?i)yes", ["YES", "yes"], ["no"]),
        ('"é"', ['"é"'], ["é"]),
    ],
)
def test_a_regular_expression_matches_the_whole(pattern: str, right: list[str], wrong: list[str]) -> None:
    source = form(RegexForm(pattern=pattern, field="f"))
    assert all(takes(text, source) for text in right)
    assert not any(takes(text, source) for text in wrong)


def test_a_choice_is_one_of_its_texts() -> None:
    choices = ("a", "a b", 'say "x"\n', "日本/\\", "%json {}", "<|end|>")
    source = form(ChoiceForm(choices=choices, field="f"))
    assert all(takes(text, source) for text in choices)
    assert not takes("ab", source)


def test_json_of_a_schema() -> None:
    source = form(JsonForm(schema=CITY, field="f"))
    for text in ('{"city":"Paris"}', '{ "city": "Rom\\n" }', '{\n  "city" : "Paris"\n}'):
        assert takes(text, source), text
    for text in (
        '{"city":"Oslo"}',
        "{}",
        '{"city":"Paris","x":1}',
        '{"city":"Paris"} ',
        "{" + " " * 65 + '"city":"Paris"}',
    ):
        assert not takes(text, source), text


def test_a_schema_cannot_change_how_it_is_read() -> None:
    sly = {"type": "array", "contains": {}, "x-guidance": {"lenient": True}}
    with pytest.raises(Exception, match="contains"):
        COMPILER.compile(form(JsonForm(schema=sly, field="f")))


def test_a_grammar_is_taken_as_it_is() -> None:
    source = form(LarkForm(source='start: "a" b\nb: "b"+', field="f"))
    assert takes("abb", source)


def written(style: ToolStyle, *calls: tuple[str, Any]) -> str:
    bodies = [json.dumps({"name": name, style.arguments: arguments}) for name, arguments in calls]
    if style.is_list:
        return f"{style.begin}[{style.between.join(bodies)}]{style.end}"
    return style.between.join(f"{style.begin}{style.before}{body}{style.after}{style.end}" for body in bodies)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_call_that_is_required_is_all_there_is(style: ToolStyle) -> None:
    source = calls_grammar(use(GET, GET_TIME, is_required=True), style, None, None).text
    one, two = ("get", {"city": "Paris"}), ("get_time", {"x": [1]})
    assert takes(written(style, one), source)
    assert takes(written(style, two), source)
    assert takes(written(style, one, two), source) == style.takes_several
    assert not takes(written(style, ("get", {"city": "Oslo"})), source)
    assert not takes(written(style, ("nobody", {})), source)
    assert not takes("text", source)
    assert not takes("", source)
    alone = calls_grammar(use(GET, GET_TIME, is_required=True, takes_several=False), style, None, None).text
    assert takes(written(style, two), alone)
    assert not takes(written(style, two, two), alone)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_only_those_allowed_can_be_called(style: ToolStyle) -> None:
    source = calls_grammar(use(GET, GET_TIME, only=["get_time"], is_required=True), style, None, None).text
    assert takes(written(style, ("get_time", {})), source)
    assert not takes(written(style, ("get", {"city": "Paris"})), source)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_text_is_free_until_a_call_begins(style: ToolStyle) -> None:
    source = calls_grammar(use(GET, GET_TIME), style, None, None).text
    right, wrong = written(style, ("get", {"city": "Paris"})), written(style, ("get", {"city": "Oslo"}))
    assert takes("", source)
    assert takes("Some words, and {braces}.\n", source)
    assert takes(right, source)
    assert not takes(wrong, source)
    if style.begin:
        assert takes(f"Let me see.\n{right}", source)
        assert not takes(f"Let me see.\n{wrong}", source)
        assert not takes(f"Let me see.\n{style.begin}", source)
        assert not takes(f"{style.begin}nonsense", source)
        alone = calls_grammar(use(GET, takes_several=False), style, None, None).text
        assert takes(f"words {right}", alone)
        assert not takes(f"words {right}\n{right}", alone)
        assert not takes(f"words {right} words", alone)
        assert takes("words", alone)


def test_calls_between_words_in_hermes_style() -> None:
    source = calls_grammar(use(GET, GET_TIME), HERMES, None, None).text
    right = written(HERMES, ("get", {"city": "Paris"}))
    assert takes(f"a {right} b {right}\n{right}", source)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_call_or_an_answer_in_a_form(style: ToolStyle) -> None:
    source = calls_grammar(use(GET), style, None, JsonForm(schema={"type": "object"}, field="f")).text
    assert takes('{"any": 1}', source)
    assert takes(written(style, ("get", {"city": "Paris"})), source)
    assert not takes("text", source)


def test_a_mark_that_is_a_control_token_is_that_token() -> None:
    for required in (True, False):
        source = calls_grammar(use(GET, is_required=required), MISTRAL, TURN, None).text
        state = COMPILER.compile(source).start()
        if not required:
            for token in b"words":
                state.accept(token)
        body = written(MISTRAL, ("get", {"city": "Paris"})).removeprefix("[TOOL_CALLS]")
        for token in (TURN, *body.encode()):
            (mask,) = state.masks((), ())
            assert mask[token >> 5] >> (token & 31) & 1, (required, token)
            state.accept(token)


def test_keywords_that_are_not_understood_bind_strict_tools_only() -> None:
    source = calls_grammar(use(ODD, is_required=True), LLAMA3, None, None).text
    assert takes('{"name": "odd", "parameters": {"n":1}}', source)
    assert not takes('{"name": "odd", "parameters": {"n":"1"}}', source)
    strict = Tool(name="odd", parameters=ODD.parameters, is_strict=True, field="tools.3.function")
    written_ = calls_grammar(use(GET, strict), LLAMA3, None, None)
    assert [part.field for part in written_.parts] == ["tools.0.function.parameters", "tools.3.function.parameters"]
    with pytest.raises(Exception, match="contains"):
        COMPILER.compile(written_.text)
    COMPILER.compile(written_.parts[0].text)
    with pytest.raises(Exception, match="contains"):
        COMPILER.compile(written_.parts[1].text)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_what_a_grammar_makes_a_model_write_is_heard_as_calls(style: ToolStyle) -> None:
    source = calls_grammar(use(GET, GET_TIME, is_required=True), style, None, None).text
    text = written(style, ("get", {"city": "Rom\n"}))
    assert takes(text, source)
    (call,) = ToolReader(style, {"get"}).add(text).calls
    assert json.loads(call.arguments) == {"city": "Rom\n"}


def test_a_hundred_tools_are_compiled() -> None:
    parameters = {
        "type": "object",
        "properties": {
            f"p{n}": {"type": kind} for n, kind in enumerate(["string", "integer", "boolean", "number"] * 3)
        },
    }
    tools = [Tool(name=f"tool_{n}", parameters=parameters, is_strict=n % 2 == 0) for n in range(200)]
    source = calls_grammar(use(*tools, is_required=True), HERMES, None, None).text
    assert takes(written(HERMES, ("tool_199", {"p0": "x", "p11": 1.5})), source)
