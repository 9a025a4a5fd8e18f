"""From a body to work for a language model, without holding up the event loop.

Short bodies are read and tokenized on the spot, long ones on a thread; what needs a grammar, on threads of its own, so
that grammars which take long hold up each other and nobody else. Models are always looked up on the event loop, to
which their table belongs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

from farthing.runtime.language_model import LanguageModel
from farthing.server.exchange import Exchange
from farthing.server.kserve import TIMEOUT_HEADER, timeout_us
from farthing.types.errors import InvalidInput

INLINE_BYTES_MAX: Final = 4 * 1024
"""Bodies up to this size are parsed and tokenized on the event loop (1 to 2 ms), larger ones on a thread."""
GRAMMAR_THREADS: Final = 4
"""A model compiles one grammar at a time; the others find theirs compiled, or wait."""

Asked = TypeVar("Asked")
Ready = TypeVar("Ready")


def prepare(
    exchange: Exchange,
    *,
    parse: Callable[[bytes | memoryview], Asked],
    find: Callable[[Asked], LanguageModel],
    encode: Callable[[Asked, LanguageModel], Ready],
    begin: Callable[[Asked, LanguageModel, Ready], None],
    is_slow: Callable[[Asked], bool] = lambda _: False,
) -> Awaitable[None] | None:
    """Reads the body, finds the model, encodes for it and begins; `parse` and `encode` may run on a thread.

    `is_slow`: encoding this may compile a grammar.
    """
    coding = exchange.headers.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise InvalidInput(
            f"a body in Content-Encoding {coding[:32].decode('latin-1')} is not read here: send it plain"
        )

    async def encode_aside(asked: Asked, model: LanguageModel) -> None:
        threads = _grammar_threads() if is_slow(asked) else None
        ready = await asyncio.get_running_loop().run_in_executor(threads, encode, asked, model)
        if not exchange.is_done:  # else the client left meanwhile
            begin(asked, model, ready)

    if exchange.body_bytes <= INLINE_BYTES_MAX:
        asked = parse(exchange.body)
        model = find(asked)
        if is_slow(asked):
            return encode_aside(asked, model)
        begin(asked, model, encode(asked, model))
        return None

    async def later() -> None:
        asked = await asyncio.get_running_loop().run_in_executor(None, parse, exchange.body)
        await encode_aside(asked, find(asked))

    return later()


@cache
def _grammar_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(GRAMMAR_THREADS, thread_name_prefix="grammars")


def deadline_ns(exchange: Exchange) -> int:
    """When the proxy in front will stop waiting; 0 if none said so."""
    said = exchange.headers.get(TIMEOUT_HEADER)
    return exchange.received_ns + timeout_us(said) * 1000 if said is not None else 0
