"""Calls told from text: the same however the text is cut, nothing of a mark in words, no words lost."""

import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from farthing.llm.tool_reader import ToolReader
from farthing.llm.tool_styles import STYLES, ToolStyle
from farthing.llm.tool_styles.hermes import HERMES
from farthing.llm.tool_styles.llama3 import LLAMA3
from farthing.llm.tool_styles.mistral import MISTRAL

NAMES = frozenset({"get", "get_time"})
Heard = tuple[str, list[tuple[str, Any]]]


def heard(style: ToolStyle, *pieces: str) -> Heard:
    """The words and the calls, from a text in these pieces."""
    reader = ToolReader(style, NAMES)
    said = [*map(reader.add, pieces), reader.end()]
    calls = [call for one in said for call in one.calls]
    assert len({call.id for call in calls}) == len(calls)
    return "".join(one.text for one in said), [(call.name, json.loads(call.arguments)) for call in calls]


def call(name: str = "get", key: str = "arguments", **arguments: Any) -> str:
    return json.dumps({"name": name, key: arguments})


def hermes(name: str = "get", **arguments: Any) -> str:
    return f"<tool_call>\n{call(name, **arguments)}\n</tool_call>"


def test_a_call_between_tags() -> None:
    assert heard(HERMES, f"Let me see.\n{hermes(city='Paris')}") == ("Let me see.", [("get", {"city": "Paris"})])


def test_several_calls_and_words_between_them() -> None:
    text = f"A {hermes(a=1)}\n{hermes('get_time')} B\n{hermes(a=2)}\n"
    assert heard(HERMES, text) == ("AB", [("get", {"a": 1}), ("get_time", {}), ("get", {"a": 2})])


def test_words_alone_stay_as_they_are() -> None:
    for text in (
        "",
        " ",
        "plain",
        "\n a < b <tool>  \n",
        "</tool_call>",
        "<tool_cal",
        " {}",
        "[TOOL_CALL]",
        "[TOOL_CALLS",
    ):
        for style in STYLES:
            if not (style is LLAMA3 and text == " {}"):
                assert heard(style, text) == (text, [])


def test_what_only_looks_like_the_end_of_a_call_is_text() -> None:
    assert heard(HERMES, f"{hermes()} <") == ("<", [("get", {})])
    assert heard(HERMES, f"{hermes()}</tool_call>") == ("</tool_call>", [("get", {})])
    assert heard(HERMES, f"<tool_call>{call()}</tool_") == ("", [("get", {})]), "cut short, and told already"
    assert heard(HERMES, f"<tool_call>{call()}</tools>") == ("</tools>", [("get", {})])


def test_closing_tags_inside_of_arguments_close_nothing() -> None:
    text = hermes(code='</tool_call><tool_call>{"name"', quote='"}')
    assert heard(HERMES, text) == ("", [("get", {"code": '</tool_call><tool_call>{"name"', "quote": '"}'})])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1",
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call>none</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": ["get"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get" "arguments": {}}</tool_call>',
        "<tool_call>" + "{" * 100_000 + "}" * 100_000,
        "<tool_call>[1]</tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_is_text_to_the_last_character(text: str) -> None:
    assert heard(HERMES, "before " + text) == ("before " + text, [])


def test_a_call_behind_one_that_went_wrong_is_heard() -> None:
    wrong = '<tool_call>\n{"name": "get", "arguments": {"a": 1\n'
    assert heard(HERMES, wrong + hermes(b=2)) == (wrong.rstrip() + "\n", [("get", {"b": 2})])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("{}", {}), ("null", {}), ('"{\\"a\\": 1}"', {"a": 1}), ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
     ('{"a": "\\ud800"}', {"a": "\ud800"}), ('{"a": 12345678901234567890}', {"a": 12345678901234567890})],
)  # fmt: skip
def test_liberties_that_models_take(arguments: str, expected: Any) -> None:
    assert heard(HERMES, f'<tool_call>{{"name": "get", "arguments": {arguments}}}') == ("", [("get", expected)])
    (said,) = ToolReader(HERMES, NAMES).add(f'<tool_call>{{"arguments": {arguments}, "name": "get"}}').calls
    said.arguments.encode()


def test_no_arguments_are_an_empty_object() -> None:
    (said,) = ToolReader(HERMES, NAMES).add('<tool_call>{"name": "get"}').calls
    assert said.arguments == "{}"


def test_llamas_answer_is_a_call_or_it_is_not() -> None:
    text = call(key="parameters", city="Paris")
    assert heard(LLAMA3, f"\n{text} ") == ("", [("get", {"city": "Paris"})])
    assert heard(LLAMA3, f"I say {text}") == (f"I say {text}", [])
    assert heard(LLAMA3, '{"city": "Paris"} is JSON') == ('{"city": "Paris"} is JSON', [])
    assert heard(LLAMA3, f"{text} and {text}") == (f"and {text}", [("get", {"city": "Paris"})])


def test_mistrals_calls_come_in_a_list() -> None:
    text = f"[TOOL_CALLS][{call(a=1)}, {call('get_time')}]"
    assert heard(MISTRAL, text) == ("", [("get", {"a": 1}), ("get_time", {})])
    assert heard(MISTRAL, f"[TOOL_CALLS]{call(a=1)}") == ("", [("get", {"a": 1})])
    assert heard(MISTRAL, f"[TOOL_CALLS][{call(a=1)}, 3]") == (f"[TOOL_CALLS][{call(a=1)}, 3]", [])
    (said,) = ToolReader(MISTRAL, NAMES).add(f"[TOOL_CALLS]{call()}").calls
    assert len(said.id) == 9
    assert said.id.isalnum()


PIECES = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<", "tool", "[", "]", "{", "}", " ", "\n", '"', "\\", "a", "é",
         call(), call(a={"b": "}"}), call("nobody"), call(key="parameters"), hermes(x=[1]), '{"name":', ","]
    ),
    max_size=12,
)  # fmt: skip


@given(st.sampled_from(STYLES), st.one_of(PIECES.map("".join), st.text(max_size=30)), st.integers(0, 2**32 - 1))
@example(HERMES, "<<tool_call>" + call(), 3)
@example(HERMES, "\n<tool_<tool_call>\n" + call() + "</tool_x", 5)
def test_however_a_text_is_cut_the_same_is_heard(style: ToolStyle, text: str, seed: int) -> None:
    chance = random.Random(seed)
    cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert heard(style, *pieces) == heard(style, text) == heard(style, *text)


@given(st.sampled_from(STYLES), PIECES.map("".join))
def test_nothing_is_lost_but_marks_and_white_space_around_calls(style: ToolStyle, text: str) -> None:
    words, calls = heard(style, text)
    if not calls:
        assert words == text
        return
    left = iter(text)
    assert all(character in left for character in words), "words are what is left of the text, in its order"
    gone = len("".join(text.split())) - len("".join(words.split()))
    most = len(style.begin) + len(style.end) + max(len(call(a={"b": "}"})), len(call(key="parameters"))) + 4
    assert gone <= len(calls) * most
