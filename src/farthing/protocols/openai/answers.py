"""Whole answers: `chat.completion` and `text_completion`, with their choices, logprobs and usage.

The same events that a stream writes one by one are collected here; `chunks` is the other way to say them.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from farthing.protocols.openai.calls import Calling
from farthing.protocols.openai.logprobs import chat_logprobs, completion_logprobs
from farthing.types.generation import Delta, FinishReason, TokenLogprob, Usage
from farthing.types.tools import CallReader, Said, ToolCall

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer, and every chunk of a stream, says of the request it belongs to."""

    id: str
    created: int
    model: str
    """The name the client asked for."""
    fingerprint: str
    """Changes when the same request could be answered otherwise: other weights, precision or version."""


class Choice:
    """One choice as it grows."""

    __slots__ = ("calls", "finish", "logprobs", "reader", "stop_reason", "texts")

    def __init__(self, reader: CallReader | None = None) -> None:
        """`reader` tells calls from text, where tools may be called."""
        self.reader = reader
        self.texts: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Appends what the choice gained."""
        if self.reader is not None:
            self._hear(self.reader.add(delta.text))
            if delta.finish is not None:
                self._hear(self.reader.end())
        elif delta.text:
            self.texts.append(delta.text)
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.finish is not None:
            self.finish = delta.finish
            self.stop_reason = delta.stop_reason

    def _hear(self, said: Said) -> None:
        self.texts.append(said.text)
        self.calls += said.calls

    @property
    def text(self) -> str:
        return "".join(self.texts)


def usage_object(usage: Usage) -> Json:
    """Tokens used, and how many of the prompt's were found in the prefix cache."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def sum_usage(usages: Sequence[Usage]) -> Usage:
    """Of several prompts in one request."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )


def chat_completion(
    heading: Heading, choices: Sequence[Choice], usage: Usage, *, has_logprobs: bool, calls: Calling | None = None
) -> bytes:
    """The body of `POST /v1/chat/completions`."""
    return _answer(
        heading,
        "chat.completion",
        [
            {
                "index": index,
                "message": calls.message(choice.text, choice.calls)
                if calls is not None
                else {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.logprobs) if has_logprobs else None,
                "finish_reason": choice.finish if calls is None else calls.finish(choice.finish, len(choice.calls)),
                "stop_reason": choice.stop_reason,
            }
            for index, choice in enumerate(choices)
        ],
        usage,
    )


def text_completion(
    heading: Heading,
    choices: Sequence[Choice],
    usage: Usage,
    *,
    logprobs: int | None,
    echoes: Sequence[tuple[str, Sequence[TokenLogprob]]] = (),
) -> bytes:
    """The body of `POST /v1/completions`. `echoes`: for each choice the prompt it repeats, with its logprobs."""
    listed: list[Json] = []
    for index, choice in enumerate(choices):
        text, tokens = choice.text, choice.logprobs
        if echoes:
            text, tokens = echoes[index][0] + text, [*echoes[index][1], *tokens]
        shown = None
        if logprobs is not None:
            shown, _ = completion_logprobs(tokens, 0, has_top=logprobs > 0)
        listed.append(
            {
                "index": index,
                "text": text,
                "logprobs": shown,
                "finish_reason": choice.finish,
                "stop_reason": choice.stop_reason,
            }
        )
    return _answer(heading, "text_completion", listed, usage)


def _answer(heading: Heading, kind: str, choices: list[Json], usage: Usage) -> bytes:
    return _encode(
        {
            "id": heading.id,
            "object": kind,
            "created": heading.created,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
            "choices": choices,
            "usage": usage_object(usage),
        }
    )
