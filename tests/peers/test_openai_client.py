"""OpenAI's own Python client, blocking, asyncio and its streaming helpers, works unchanged against a live server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        ({"response_format": {"type": "json_object"}}, "BadRequestError", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequestError", "unsupported_parameter"),
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
