"""The load: so many clients at once, each asking for one completion after the other over HTTP, and nothing in between.

Reading what came is `sse`'s, and happens when the clock has stopped. One thread, one socket a request.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import sse

ANSWER_MAX_S = 600


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


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, done: "asyncio.Future[tuple[float, list[sse.Piece]]]") -> None:
        self._request, self._done = request, done
        self._begin = 0.0
        self._pieces: list[sse.Piece] = []
        self._tail = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._begin = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.monotonic(), data))
        self._tail = (self._tail + data)[-16:]
        if self._tail.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result((self._begin, self._pieces))


async def _ask(port: int, model: str, prompt: Sequence[int], tokens: int) -> tuple[float, list[sse.Piece]]:
    body = body_of(model, prompt, tokens)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[float, list[sse.Piece]]] = loop.create_future()
    await loop.create_connection(lambda: _Client(head + body, done), "127.0.0.1", port)
    return await asyncio.wait_for(done, ANSWER_MAX_S)


async def _workers(
    port: int, model: str, prompts: Sequence[Sequence[int]], tokens: int, at_once: int
) -> list[tuple[float, list[sse.Piece]]]:
    waiting, answers = list(reversed(prompts)), []

    async def work() -> None:
        while waiting:
            answers.append(await _ask(port, model, waiting.pop(), tokens))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return answers


def run(port: int, model: str, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> list[sse.Answer]:
    """All prompts, `at_once` at a time; every one must be answered whole and with so many tokens."""
    try:
        raw = asyncio.run(_workers(port, model, prompts, tokens, at_once))
        answers = [sse.read(begin, pieces) for begin, pieces in raw]
    except (OSError, TimeoutError, sse.StreamBroken, ValueError, KeyError) as error:
        raise LoadFailed(f"{at_once} at once: {error!r}") from error
    check(answers, prompts, tokens)
    return answers


def check(answers: Sequence[sse.Answer], prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Raises `LoadFailed` unless the work that was paid for was done."""
    wanted, got = sorted(map(len, prompts)), sorted(answer.prompt_tokens for answer in answers)
    if wanted != got:
        raise LoadFailed(f"prompts of {wanted[:3]}... tokens were read as {got[:3]}...")
    if any(answer.tokens != tokens for answer in answers):
        raise LoadFailed(f"{tokens} tokens were asked for, {sorted({a.tokens for a in answers})} came")
