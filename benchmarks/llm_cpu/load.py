"""The load: so many clients at once, each asking for one completion after the other, by the loop of `farthing bench`.

Prompts are token ids and answers are held to their length, so that all engines do the same work.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from answer import Answer

from farthing.bench.load import Load, Work
from farthing.bench.records import Records, kind_of
from farthing.bench.wire import http_message

ANSWER_MAX_S: Final = 600


class LoadFailed(Exception):
    """A request was refused, broken or too late."""


def body_of(model: str, prompt: Sequence[int], tokens: int) -> bytes:
    """A greedy completion of exactly so many tokens, streamed, as the OpenAI API and its common extensions say it."""
    asked: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(asked, separators=(",", ":")).encode()


def run(port: int, model: str, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> list[Answer]:
    """All prompts, `at_once` at a time; every one must be answered whole and with so many tokens."""
    from farthing.bench.native_driver import NativeDriver

    # A connection each: llama.cpp's server closes one that has carried a stream, without saying so before.
    headers = {"Content-Type": "application/json", "Connection": "close"}
    bodies = [body_of(model, prompt, tokens) for prompt in prompts]
    messages = [http_message("POST", "/v1/completions", "127.0.0.1", headers, body) for body in bodies]
    work = Work(wire="stream", chains=[[message] for message in messages], order=range(len(messages)))
    asked = Load(
        connections=min(at_once, len(messages)),
        duration_s=ANSWER_MAX_S,
        timeout_s=ANSWER_MAX_S,
        requests_max=len(messages),
    )
    answers = answers_of(NativeDriver("127.0.0.1", port, work, asked).run())
    check(answers, prompts, tokens)
    return answers


def answers_of(records: Records) -> list[Answer]:
    """Raises `LoadFailed` unless all have text, an end, and the server's count of their tokens."""
    for row in np.flatnonzero(~records.is_answered):
        status = int(records.status[row])
        raise LoadFailed(f"{kind_of(status)} {records.samples.get(status, b'')[:500]!r}")
    if (records.tokens < 1).any() or (records.completion_tokens < 0).any() or (records.prompt_tokens < 0).any():
        raise LoadFailed("a stream without text, or without its usage")
    last = np.zeros(len(records), np.int64)
    np.maximum.at(last, records.event_record, records.event_ns)
    return [
        Answer(
            begin_s=records.sent_ns[row] / 1e9,
            first_s=records.first_ns[row] / 1e9,
            end_s=float(last[row] / 1e9),
            prompt_tokens=int(records.prompt_tokens[row]),
            tokens=int(records.completion_tokens[row]),
        )
        for row in range(len(records))
    ]


def check(answers: Sequence[Answer], prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Raises `LoadFailed` unless the work that was paid for was done."""
    wanted, got = sorted(map(len, prompts)), sorted(answer.prompt_tokens for answer in answers)
    if wanted != got:
        raise LoadFailed(f"prompts of {wanted[:3]}... tokens were read as {got[:3]}...")
    if any(answer.tokens != tokens for answer in answers):
        raise LoadFailed(f"{tokens} tokens were asked for, {sorted({a.tokens for a in answers})} came")
