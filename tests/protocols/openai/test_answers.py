"""Events to answers and chunks: the same words, whole and in parts."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols import sse
from farthing.protocols.openai import (
    Calling,
    ChatChunks,
    Choice,
    CompletionChunks,
    Heading,
    chat_completion,
    encode_error,
    sum_usage,
    text_completion,
)
from farthing.protocols.openai.logprobs import completion_logprobs
from farthing.types import errors
from farthing.types.generation import Delta, FinishReason, TokenLogprob, Usage
from farthing.types.tools import Said, ToolCall

HEADING = Heading(id="chatcmpl-1", created=7, model="org/name", fingerprint="fp_1")
USAGE = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4)


def token(text: str, logprob: float | None, *top: tuple[str, float]) -> TokenLogprob:
    listed = tuple((number, word, word.encode(), value) for number, (word, value) in enumerate(top))
    return TokenLogprob(id=1, text=text, bytes_=text.encode(), logprob=logprob, top=listed)


TOKENS = st.builds(
    token,
    st.text(max_size=4),
    st.floats(-50, 0) | st.just(float("-inf")),
    st.tuples(st.text(max_size=3), st.floats(-9, 0)),
)
DELTAS = st.lists(
    st.builds(
        Delta,
        index=st.integers(0, 1),
        text=st.text(max_size=6),
        token_ids=st.tuples(st.integers(0, 9)),
        logprobs=st.lists(TOKENS, max_size=2),
    ),
    max_size=8,
)


def ended(deltas: list[Delta]) -> list[Delta]:
    return [
        *deltas,
        Delta(index=0, text="!", finish=FinishReason.LENGTH),
        Delta(index=1, text="", finish=FinishReason.STOP, stop_reason="\n"),
    ]


def read(stream: bytes) -> list[dict[str, Any]]:
    *events, done = sse.Reader().feed(stream)
    assert done == b"[DONE]"
    return [json.loads(one) for one in events]


@given(DELTAS)
def test_a_chat_in_parts_is_the_chat_as_a_whole(deltas: list[Delta]) -> None:
    chunks, choices = ChatChunks(HEADING, has_usage=True, has_logprobs=True), [Choice(), Choice()]
    stream = chunks.begin(0) + chunks.begin(1)
    for delta in ended(deltas):
        stream += chunks.delta(delta)
        choices[delta.index].add(delta)
    events = read(stream + chunks.finish([USAGE]))
    whole = json.loads(chat_completion(HEADING, choices, USAGE, has_logprobs=True))
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
        tokens = [token for one in own if one["logprobs"] for token in one["logprobs"]["content"]]
        assert tokens == choice["logprobs"]["content"]
        assert (own[-1]["finish_reason"], own[-1]["stop_reason"]) == (choice["finish_reason"], choice["stop_reason"])
        assert [one["finish_reason"] for one in own[:-1]] == [None] * (len(own) - 1)
    assert events[-1]["usage"] == whole["usage"]
    assert events[-1]["choices"] == []


@given(DELTAS)
def test_a_completion_in_parts_is_the_completion_as_a_whole(deltas: list[Delta]) -> None:
    chunks, choices = CompletionChunks(HEADING, logprobs=1), [Choice(), Choice()]
    stream = b""
    for delta in ended(deltas):
        stream += chunks.delta(delta)
        choices[delta.index].add(delta)
    events = read(stream + chunks.finish([USAGE]))
    whole = json.loads(text_completion(HEADING, choices, USAGE, logprobs=1))
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [x for one in own if one["logprobs"] for x in one["logprobs"][key]] == choice["logprobs"][key]


def test_r_08_minus_infinity_is_a_number() -> None:
    choice = Choice()
    choice.add(Delta(index=0, text="a", logprobs=[token("a", float("-inf"), ("b", float("-inf")))]))
    body = chat_completion(HEADING, [choice], USAGE, has_logprobs=True)
    assert b"Infinity" not in body
    assert json.loads(body)["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


def test_l_03_the_chosen_token_is_among_the_top_with_the_same_number() -> None:
    shown, end = completion_logprobs([token("x", None), token("y", -3.5, ("z", -0.25))], 4, has_top=True)
    assert shown["token_logprobs"] == [None, -3.5]
    assert shown["top_logprobs"] == [None, {"z": -0.25, "y": -3.5}]
    assert (shown["text_offset"], end) == ([4, 5], 6)


def test_usage_of_several_prompts_adds_up() -> None:
    assert sum_usage([USAGE, USAGE]) == Usage(prompt_tokens=10, completion_tokens=6, cached_tokens=8)


def test_e_01_an_error_is_an_object_of_four_keys() -> None:
    cases: list[tuple[errors.FarthingError, tuple[str, str | None, str | None]]] = [
        (errors.InvalidField("n: no", field="n"), ("invalid_request_error", "n", None)),
        (errors.InvalidInput("no"), ("invalid_request_error", None, None)),
        (errors.Unauthenticated("no"), ("authentication_error", None, "invalid_api_key")),
        (errors.Forbidden("no"), ("permission_error", None, None)),
        (errors.ModelNotFound("no"), ("not_found_error", "model", "model_not_found")),
        (errors.TenantLimited("no"), ("rate_limit_error", None, "rate_limit_exceeded")),
        (errors.Overloaded("no"), ("server_error", None, "server_overloaded")),
        (errors.EngineFailed("/secret/path"), ("server_error", None, None)),
    ]
    for error, (kind, param, code) in cases:
        said = json.loads(encode_error(error))["error"]
        assert (said["type"], said["param"], said["code"]) == (kind, param, code)
        assert said["message"]
        assert "secret" not in said["message"]


class Shouting:
    """A reader to whom capital letters are calls, and which holds back every `?`."""

    def __init__(self) -> None:
        self.held = ""

    def add(self, text: str) -> Said:
        shown = "".join(one for one in text if not one.isupper() and one != "?")
        self.held += "?" * text.count("?")
        calls = [ToolCall(id=f"id-{one}", name=one, arguments='{"a":"é"}') for one in text if one.isupper()]
        return Said(shown, calls)

    def end(self) -> Said:
        held, self.held = self.held, ""
        return Said(held, ())


@given(DELTAS, st.booleans(), st.booleans())
def test_calls_in_parts_are_the_calls_as_a_whole(deltas: list[Delta], is_named: bool, is_old: bool) -> None:
    form = Calling(new_reader=Shouting, is_named=is_named, is_old=is_old)
    chunks = ChatChunks(HEADING, calls=form)
    choices = [Choice(Shouting()), Choice(Shouting())]
    stream = chunks.begin(0) + chunks.begin(1)
    for delta in ended(deltas):
        stream += chunks.delta(delta)
        choices[delta.index].add(delta)
    events = read(stream + chunks.finish([USAGE]))
    whole = json.loads(chat_completion(HEADING, choices, USAGE, has_logprobs=False, calls=form))
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        message = choice["message"]
        assert "".join(one["delta"].get("content") or "" for one in own) == (message["content"] or "")
        assert own[-1]["delta"] == {}
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        if is_old:
            named = [one["delta"]["function_call"] for one in own if "function_call" in one["delta"]]
            assert named[:1] == ([{**message["function_call"], "arguments": ""}] if named else [])
            assert "tool_calls" not in message
            continue
        told: dict[int, Any] = {}
        for one in own:
            for part in one["delta"].get("tool_calls", ()):
                if part["index"] not in told:
                    assert part["index"] == len(told), "dense, in order"
                    told[part["index"]] = part
                else:
                    told[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        whole_calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls", ()))]
        assert list(told.values()) == whole_calls
        if choice["index"] == 1:
            assert choice["finish_reason"] == ("tool_calls" if told and not is_named else "stop")
        else:
            assert choice["finish_reason"] == "length"
        assert (message["content"] is None) == (bool(told) and not choices[choice["index"]].text)
