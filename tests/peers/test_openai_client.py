"""OpenAI's own Python client, blocking, asyncio and its streaming helpers, works unchanged against a live server."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from tests.language import CONTEXT, paced, talking
from tests.serving import Live, eventually, serving

from farthing.repository.samples import sample_path

openai = pytest.importorskip("openai")

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
HELLO: Any = [{"role": "user", "content": "hello"}]
QUESTION: Any = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with talking(tmp_path_factory.mktemp("models")) as live:
        yield live


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Live]:
    with serving(sample_path("smollm2-135m"), exit_timeout_s=20.0) as live:
        yield live


def client(live: Live, **more: Any) -> Any:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", **{"max_retries": 0, **more})


def test_models(talk: Live) -> None:
    with client(talk) as ai:
        assert [model.id for model in ai.models.list()] == ["tiny"]
        assert ai.models.retrieve("tiny").max_model_len == CONTEXT
        with pytest.raises(openai.NotFoundError):
            ai.models.retrieve("org/none")


def test_chat_whole_and_streamed(talk: Live) -> None:
    with client(talk) as ai:
        whole = ai.chat.completions.create(model="tiny", messages=HELLO, **GREEDY)
        stream = ai.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
        chunks = list(stream)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )
        assert whole.usage.completion_tokens == 12
        assert whole.usage.prompt_tokens_details.cached_tokens == 0
        assert whole.system_fingerprint == chunks[0].system_fingerprint


def test_the_streaming_helper_puts_a_chat_together(talk: Live) -> None:
    with client(talk) as ai:
        asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2, **GREEDY}
        (ending,) = ai.chat.completions.create(**asked).choices[0].logprobs.content[6].bytes
        asked["extra_body"] = {"stop_token_ids": [ending]}  # the helper takes only what ends by itself for complete
        whole = ai.chat.completions.create(**asked)
        with ai.chat.completions.stream(**asked) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.choices[0].finish_reason == "stop"
        assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


def test_completions(talk: Live) -> None:
    with client(talk) as ai:
        whole = ai.completions.create(model="tiny", prompt=["a", "b"], echo=True, logprobs=2, **GREEDY)
        chunks = list(ai.completions.create(model="tiny", prompt=["a", "b"], echo=True, stream=True, **GREEDY))
        for choice in whole.choices:
            own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            assert "".join(one.text for one in own) == choice.text
        assert whole.choices[1].logprobs.token_logprobs[0] is None


async def test_async_streams_side_by_side(talk: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{talk.url}/v1", api_key="none", max_retries=0) as ai:

        async def ask(number: int) -> tuple[str, str]:
            messages = [{"role": "user", "content": f"number {number}"}]
            stream = await ai.chat.completions.create(model="tiny", messages=messages, stream=True, **GREEDY)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            whole = await ai.chat.completions.create(model="tiny", messages=messages, **GREEDY)
            return text, whole.choices[0].message.content

        for streamed, whole in await asyncio.gather(*(ask(number) for number in range(24))):
            assert streamed == whole


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "none"}, "NotFoundError", "model_not_found"),
        ({"temperature": 3}, "BadRequestError", None),
        ({"messages": []}, "BadRequestError", None),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, "BadRequestError", "context_length_exceeded"),
        ({"response_format": {"type": "json_schema"}}, "BadRequestError", None),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "BadRequestError", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(
    talk: Live, fields: dict[str, Any], error: str, code: str | None, stream: bool
) -> None:
    with client(talk) as ai, pytest.raises(getattr(openai, error)) as caught:
        ai.chat.completions.create(**{"model": "tiny", "messages": HELLO, "stream": stream, **fields})
    assert caught.value.code == code
    assert caught.value.body["message"]


def test_an_error_in_a_stream_is_raised(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner), client(live) as ai:
        runner.fails_after = 4
        stream = ai.chat.completions.create(model="tiny", messages=HELLO, stream=True, **GREEDY)
        with pytest.raises(openai.APIError):
            list(stream)


def test_closing_a_stream_frees_what_it_held(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner), client(live) as ai:
        runner.step_s = 0.01
        stream = ai.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, temperature=0, max_tokens=400, extra_body={"ignore_eos": True}
        )
        for _, _ in zip(range(5), stream, strict=False):
            pass
        assert live.metric("vllm:num_requests_running") == 1
        stream.close()
        eventually(lambda: live.metric("vllm:num_requests_running") == 0, within_s=2)
        assert live.metric("vllm:kv_cache_usage_perc") == 0


# -- a model that has learnt something -------------------------------------------------------------------------------


@pytest.mark.samples
def test_smollm2_knows_the_capital_of_france(smollm2: Live) -> None:
    with client(smollm2) as ai:
        answer = ai.chat.completions.create(model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=32)
        assert "Tokyo" in answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        stream = ai.chat.completions.create(
            model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=32, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content


@pytest.mark.samples
async def test_smollm2_says_the_same_alone_and_among_others(smollm2: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as ai:

        async def ask(number: int) -> str:
            messages = [{"role": "user", "content": f"Tell me something about the number {number}."}]
            stream = await ai.chat.completions.create(
                model="smollm2-135m", messages=messages, stream=True, temperature=0.8, seed=number, max_tokens=24
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(ask(number) for number in range(16)))
        assert [await ask(number) for number in range(16)] == together


# -- forms and tools ---------------------------------------------------------------------------------------------------


def random_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Of values that are short, so that a small model comes to their end."""
    kinds = ["string", "integer", "boolean", "enum", "format", "null or"] + ["object", "array"] * (depth < 2)
    match "object" if not depth else chance.choice(kinds):
        case "object":
            names = chance.sample(["name", "place", "size", "parts", "when", "kind"], chance.randint(1, 3))
            properties = {name: random_schema(chance, depth + 1) for name in names}
            return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
        case "array":
            return {"type": "array", "items": random_schema(chance, depth + 1), "maxItems": 2}
        case "string":
            return {"type": "string", "maxLength": 12}
        case "integer":
            return {"type": "integer", "minimum": -5, "maximum": chance.choice([5, 300])}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": ["small", "large", 3, None]}
        case "format":
            return {"type": "string", "format": chance.choice(["date", "uuid", "ipv4"])}
        case _:
            return {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}]}


@pytest.mark.samples
async def test_smollm2_answers_fit_their_schemas_alone_and_among_others_whole_and_streamed(smollm2: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as ai:
        schemas = [random_schema(random.Random(seed)) for seed in range(8)]

        def asked(number: int) -> dict[str, Any]:
            form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schemas[number], "strict": True}}
            messages = [{"role": "user", "content": f"Describe thing number {number} in JSON."}]
            return {"model": "smollm2-135m", "messages": messages, "response_format": form, "seed": number,
                    "temperature": number % 2, "max_tokens": 300}  # fmt: skip

        async def whole(number: int) -> str:
            (choice,) = (await ai.chat.completions.create(**asked(number))).choices
            assert choice.finish_reason == "stop"
            text: str = choice.message.content
            assert jsonschema_rs.validator_for(schemas[number]).is_valid(json.loads(text)), text
            return text

        async def streamed(number: int) -> str:
            stream = await ai.chat.completions.create(**asked(number), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(ask(number) for number in range(8) for ask in (whole, streamed)))
        assert together[::2] == together[1::2]
        assert [await whole(number) for number in range(0, 8, 3)] == together[::6]


@pytest.mark.samples
def test_smollm2_parses_into_a_model_of_ones_own(smollm2: Live) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Step(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        explanation: Annotated[str, pydantic.Field(max_length=40)]
        output: Annotated[int, pydantic.Field(ge=0, le=999)]

    class Solution(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        steps: Annotated[list[Step], pydantic.Field(min_length=1, max_length=2)]
        unit: Literal["m", "kg"] | None

    question: Any = [{"role": "user", "content": "How long are two sticks of 3 m?"}]
    with client(smollm2) as ai:
        asked: dict[str, Any] = {"model": "smollm2-135m", "messages": question, "temperature": 0, "max_tokens": 300}
        completion = ai.chat.completions.parse(**asked, response_format=Solution)
        parsed = completion.choices[0].message.parsed
        assert isinstance(parsed, Solution)
        assert parsed.steps
        with ai.chat.completions.stream(**asked, response_format=Solution) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == parsed


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ASKED: Any = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER],
    "temperature": 0,
    "max_tokens": 200,
}


@pytest.mark.samples
def test_smollm2_calls_a_tool_and_goes_on_with_its_result(smollm2: Live) -> None:
    with client(smollm2) as ai:
        once = {**ASKED, "tool_choice": "required", "parallel_tool_calls": False}
        (choice,) = ai.chat.completions.create(**once).choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city", "unit"}
        with ai.chat.completions.stream(**once) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        assert final.choices[0].message.tool_calls[0].function.parsed_arguments == json.loads(call.function.arguments)
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
        messages = [*ASKED["messages"], choice.message.model_dump(exclude_none=True), result]
        answer = ai.chat.completions.create(**{**ASKED, "messages": messages, "tool_choice": "none"})
        assert answer.choices[0].message.content


@pytest.mark.samples
def test_smollm2_calls_the_tool_that_was_named(smollm2: Live) -> None:
    with client(smollm2) as ai:
        named = {"type": "function", "function": {"name": "get_weather"}}
        whole = ai.chat.completions.create(**ASKED, tool_choice=named).choices[0]
        assert whole.finish_reason == "stop"
        parts = [chunk.choices[0] for chunk in ai.chat.completions.create(**ASKED, tool_choice=named, stream=True)]
        told = [part.delta.tool_calls[0] for part in parts if part.delta.tool_calls]
        assert told[0].function.name == whole.message.tool_calls[0].function.name == "get_weather"
        arguments = "".join(one.function.arguments for one in told)
        assert arguments == whole.message.tool_calls[0].function.arguments
        assert parts[-1].finish_reason == "stop"


@pytest.mark.samples
def test_smollm2_chooses_whether_to_call(smollm2: Live) -> None:
    """Strict: whatever it says, what it calls fits; and markup never shows."""
    with client(smollm2) as ai:
        for number in range(4):
            asked = {**ASKED, "temperature": 1, "seed": number, "max_tokens": 80}
            (choice,) = ai.chat.completions.create(**asked).choices
            for call in choice.message.tool_calls or ():
                assert set(json.loads(call.function.arguments)) == {"city", "unit"}
            if choice.finish_reason != "length":
                assert "tool_call>" not in (choice.message.content or "")


@pytest.mark.samples
def test_smollm2_continues_and_remembers_its_prompt(smollm2: Live) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 12
    with client(smollm2) as ai:
        first = ai.completions.create(
            model="smollm2-135m", prompt=prompt, temperature=0, max_tokens=8, logprobs=1, echo=True
        )
        logprobs = first.choices[0].logprobs
        assert "".join(logprobs.tokens) == first.choices[0].text
        assert logprobs.text_offset[-1] + len(logprobs.tokens[-1]) == len(first.choices[0].text)
        again = ai.completions.create(model="smollm2-135m", prompt=prompt, temperature=0, max_tokens=8)
        assert again.usage.prompt_tokens_details.cached_tokens >= 96
        assert first.choices[0].text == prompt + again.choices[0].text
