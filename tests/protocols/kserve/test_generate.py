"""Triton's generate extension: three places for parameters, one meaning."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols.kserve.generate import GenerateChunks, generate_json, parse_generate
from farthing.protocols.openai import Choice
from farthing.protocols.sse import Reader
from farthing.types.errors import EngineFailed, InvalidField, InvalidInput
from farthing.types.generation import Delta, FinishReason, Usage


def asked(**fields: Any) -> Any:
    return parse_generate(json.dumps({"text_input": "a", **fields}).encode())


def test_parameters_stand_beside_the_text_or_below_or_in_a_string() -> None:
    beside = asked(max_tokens=3, temperature=0, stop=["."])
    assert asked(parameters={"max_tokens": 3, "temperature": 0, "stop": ["."]}) == beside
    assert asked(sampling_parameters='{"max_tokens": 3, "temperature": 0, "stop": ["."]}') == beside
    assert asked(text_input=["a"], max_tokens=3, temperature=0, stop=["."], stream=True) == beside
    assert asked().tokens_max == 16


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text_input": ""}, "text_input"),
        ({"text_input": ["a", "b"]}, "text_input"),
        ({"text_input": 3}, "text_input"),
        ({"parameters": 3}, "parameters"),
        ({"parameters": {"temperature": 9}}, "temperature"),
        ({"sampling_parameters": {}}, "sampling_parameters"),
        ({"sampling_parameters": '{"top_p": 3}'}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"bad_words": ["x"]}, "bad_words"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        asked(**fields)
    assert caught.value.field == field


def test_a_missing_text_is_named() -> None:
    with pytest.raises(InvalidField, match="text_input"):
        parse_generate(b"{}")


def test_the_answer_whole_and_in_parts() -> None:
    request = asked(id="7", exclude_input_in_output=False, details=True)
    deltas = [Delta(index=0, text="b"), Delta(index=0, text="c", finish=FinishReason.STOP)]
    choice, chunks = Choice(), GenerateChunks(request, "m", "1")
    stream = chunks.begin()
    for delta in deltas:
        choice.add(delta)
        stream += chunks.delta(delta)
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    whole = json.loads(generate_json(request, "m", "1", choice, usage))
    assert (whole["id"], whole["model_name"], whole["model_version"], whole["text_output"]) == ("7", "m", "1", "abc")
    assert whole["details"]["finish_reason"] == "stop"
    events = [json.loads(event) for event in Reader().feed(stream + chunks.finish([usage]))]
    assert "".join(event["text_output"] for event in events) == "abc"
    assert events[-1]["details"] == {"finish_reason": "stop"}
    assert json.loads(Reader().feed(chunks.error(EngineFailed("no")))[0]) == {"error": "no"}


@given(
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["parameters", "stop", "n", "id"]),
        st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
        max_size=4,
    )
)
def test_anything_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    with suppress(InvalidInput):
        asked(**fields)
