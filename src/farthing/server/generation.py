"""From the events of generations to one HTTP answer: collected, or streamed as they come.

One HTTP request may be several generations (an array of prompts), each with `n` choices; choice k of prompt p is number
p * n + k. What is written belongs to `protocols.openai`; these two only keep order and end everything together.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from farthing.protocols import sse
from farthing.protocols.openai import Choice
from farthing.runtime.language_model import Event, LanguageModel
from farthing.server.exchange import Exchange
from farthing.telemetry.generation_spans import note_generation
from farthing.types.errors import FarthingError
from farthing.types.generation import Delta, Finished, FinishReason, GenerateRequest, PromptDone, TokenLogprob, Usage
from farthing.types.tools import CallReader

HEAD_AFTER_S: Final = 5.0
"""A stream's head waits so long for the first event: until then an error still gets its own status."""
PING_S: Final = 15.0
"""A stream with nothing to say sends a comment: proxies cut silent connections after about 60 s."""

CHAT_PATH: Final = b"/v1/chat/"

Logprobs = Sequence[TokenLogprob]


class ChunkWriter(Protocol):
    """The words of a stream."""

    def prompt_done(self, prompt_tokens: int, cached_tokens: int) -> None: ...

    def delta(self, delta: Delta, offset: int) -> bytes: ...

    def finish(self, usages: Sequence[Usage]) -> bytes: ...

    def error(self, error: FarthingError) -> bytes: ...


class Answer:
    """What the two have in common: the generations under way, and their common end."""

    def __init__(self, exchange: Exchange, requests: Sequence[GenerateRequest]) -> None:
        self._exchange = exchange
        self._requests = requests
        self._left = len(requests)
        self._cancels: list[Callable[[], None]] = []
        self._finished: list[Finished] = []
        self._reasons: list[list[FinishReason]] = [[] for _ in requests]
        self._is_over = False

    def start(self, model: LanguageModel) -> None:
        """Hands the requests to the model. Raises that one cannot be taken; then none goes on."""
        exchange = self._exchange
        exchange.on_gone = self._cancel
        if exchange.begin_trace is not None:
            exchange.trace = exchange.begin_trace(model.spec.name)
        try:
            for number, request in enumerate(self._requests):
                self._cancels.append(model.generate(request, partial(self._receive, number)))
        except FarthingError:
            self._cancel()
            raise

    def _receive(self, number: int, event: Event) -> None:
        if self._is_over:
            return
        if isinstance(event, Delta):
            if event.finish is not None:
                self._reasons[number].append(event.finish)
            self.on_delta(number, event)
        elif isinstance(event, PromptDone):
            self.on_prompt(number, event)
        elif isinstance(event, Finished):
            self._finished.append(event)
            if self._exchange.trace is not None:
                operation = "chat" if self._exchange.path.startswith(CHAT_PATH) else "text_completion"
                request = self._requests[number]
                note_generation(self._exchange.trace, operation, request, event, self._reasons[number])
            self._left -= 1
            if not self._left:
                self._is_over = True
                self.on_finished([finished.usage for finished in self._finished])
        else:
            self._cancel()
            self.on_error(event)

    def _cancel(self) -> None:
        self._is_over = True
        for cancel in self._cancels:
            cancel()

    def on_prompt(self, number: int, event: PromptDone) -> None:
        """A prompt has been read."""

    def on_delta(self, number: int, delta: Delta) -> None:
        """A choice gained something."""

    def on_finished(self, usages: Sequence[Usage]) -> None:
        """All choices of all prompts have ended."""

    def on_error(self, error: FarthingError) -> None:
        """One has failed; the others are cancelled."""

    def timing(self) -> bytes:
        """`Server-Timing` of the slowest prompt."""
        slowest = max(self._finished, key=lambda one: one.queue_ns + one.prefill_ns + one.decode_ns)
        return b"Server-Timing: queue;dur=%.3f, prefill;dur=%.3f, decode;dur=%.3f\r\n" % (
            slowest.queue_ns / 1e6,
            slowest.prefill_ns / 1e6,
            slowest.decode_ns / 1e6,
        )


class WholeAnswer(Answer):
    """Collects everything, then answers once."""

    def __init__(
        self,
        exchange: Exchange,
        requests: Sequence[GenerateRequest],
        encode: Callable[[Sequence[Choice], Sequence[Usage], Sequence[Logprobs]], bytes],
        *,
        new_reader: Callable[[], CallReader] | None = None,
    ) -> None:
        """`encode` gets all choices, the usage of each prompt, and the logprobs of each prompt. `new_reader`: one for
        each choice, where tools may be called."""
        super().__init__(exchange, requests)
        self._encode = encode
        self._n = requests[0].n
        choices = self._n * len(requests)
        self._choices = [Choice(None if new_reader is None else new_reader()) for _ in range(choices)]
        self._prompts: list[Logprobs] = [()] * len(requests)

    def on_prompt(self, number: int, event: PromptDone) -> None:
        self._prompts[number] = event.logprobs

    def on_delta(self, number: int, delta: Delta) -> None:
        self._choices[number * self._n + delta.index].add(delta)

    def on_finished(self, usages: Sequence[Usage]) -> None:
        body = self._encode(self._choices, usages, self._prompts)
        self._exchange.respond(200, body, headers=self.timing())

    def on_error(self, error: FarthingError) -> None:
        self._exchange.fail(error)


class StreamedAnswer(Answer):
    """Writes each event as it comes."""

    def __init__(
        self,
        exchange: Exchange,
        requests: Sequence[GenerateRequest],
        chunks: ChunkWriter,
        begin: Callable[[int, PromptDone], bytes],
    ) -> None:
        """`begin` says what stands before the first text of a prompt's choices."""
        super().__init__(exchange, requests)
        self._chunks = chunks
        self._begin = begin
        self._n = requests[0].n
        self._written_s = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(HEAD_AFTER_S, self._ping)

    def start(self, model: LanguageModel) -> None:
        try:
            super().start(model)
        except FarthingError:
            self._timer.cancel()
            raise

    def on_prompt(self, number: int, event: PromptDone) -> None:
        self._chunks.prompt_done(len(self._requests[number].prompt_ids), event.cached_tokens)
        self._write(self._begin(number, event))

    def on_delta(self, number: int, delta: Delta) -> None:
        self._write(self._chunks.delta(delta, number * self._n))

    def on_finished(self, usages: Sequence[Usage]) -> None:
        self._end(self._chunks.finish(usages))

    def on_error(self, error: FarthingError) -> None:
        if self._exchange.is_streaming:
            self._end(self._chunks.error(error))
        else:
            self._timer.cancel()
            self._exchange.fail(error)

    def _write(self, data: bytes) -> None:
        exchange = self._exchange
        if not exchange.is_streaming:
            exchange.begin(content_type=sse.CONTENT_TYPE, headers=sse.HEADERS, probe=sse.PING)
        self._written_s = time.monotonic()
        exchange.write(data)

    def _end(self, data: bytes) -> None:
        self._timer.cancel()
        self._write(data)
        self._exchange.end()

    def _cancel(self) -> None:
        self._timer.cancel()
        super()._cancel()

    def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        silent_s = time.monotonic() - self._written_s
        if not self._exchange.is_streaming or silent_s >= PING_S:
            self._write(sse.PING)
            silent_s = 0.0
        self._timer = loop.call_later(PING_S - silent_s, self._ping)
