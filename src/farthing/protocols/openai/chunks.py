"""A streamed answer, event by event: bytes ready for the wire.

A server writes thousands of chunks a second that differ in a few characters of text, so what all chunks of a request
share is put into words once. The order is OpenAI's: for each choice one chunk with the role, chunks of text, one with
the finish reason; then usage if asked for, then `[DONE]`.
"""

from collections.abc import Sequence

import msgspec

from farthing.protocols import sse
from farthing.protocols.openai.answers import Heading, sum_usage, usage_object
from farthing.protocols.openai.calls import Calling
from farthing.protocols.openai.errors import error_object
from farthing.protocols.openai.logprobs import chat_logprobs, completion_logprobs
from farthing.types.errors import FarthingError
from farthing.types.generation import Delta, TokenLogprob, Usage
from farthing.types.tools import CallReader, Said

_encode = msgspec.json.Encoder().encode


class Chunks:
    """What both kinds of stream have in common."""

    kind = ""

    def __init__(
        self, heading: Heading, *, has_usage: bool = False, counts_always: bool = False, has_logprobs: bool = False
    ) -> None:
        """`has_usage`: a chunk of usage ends the stream. `counts_always`: every chunk says what was used so far."""
        self._has_usage = has_usage
        self._counts_always = counts_always
        self._has_logprobs = has_logprobs
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._head = b"data: " + _encode(
            {
                "id": heading.id,
                "object": self.kind,
                "created": heading.created,
                "model": heading.model,
                "system_fingerprint": heading.fingerprint,
            }
        ).removesuffix(b"}")
        self._tail = b',"usage":null}\n\n' if has_usage else b"}\n\n"

    def prompt_done(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Takes what `counts_always` needs to know; nothing is written."""
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens

    def finish(self, usages: Sequence[Usage]) -> bytes:
        """The end of the stream: usage if it was asked for, and `[DONE]`."""
        if not self._has_usage:
            return sse.DONE
        usage = _encode(usage_object(sum_usage(usages)))
        return self._head + b',"choices":[],"usage":' + usage + b"}\n\n" + sse.DONE

    def error(self, error: FarthingError) -> bytes:
        """An error after the stream has begun: its event, which clients raise, and the end."""
        return sse.event(_encode({"error": error_object(error)})) + sse.DONE

    def _chunk(self, choice: bytes) -> bytes:
        if not self._counts_always:
            return self._head + b',"choices":[' + choice + b"]" + self._tail
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
        )
        return self._head + b',"choices":[' + choice + b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n"


class ChatChunks(Chunks):
    """`chat.completion.chunk`s."""

    kind = "chat.completion.chunk"

    def __init__(
        self,
        heading: Heading,
        *,
        has_usage: bool = False,
        counts_always: bool = False,
        has_logprobs: bool = False,
        calls: Calling | None = None,
    ) -> None:
        """`calls`: where tools may be called, how that is told."""
        super().__init__(heading, has_usage=has_usage, counts_always=counts_always, has_logprobs=has_logprobs)
        self._calls = calls
        self._readers: dict[int, _Listener] = {}

    def begin(self, index: int) -> bytes:
        """The first chunk of a choice: whose turn it is."""
        return self._chunk(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        )

    def delta(self, delta: Delta, offset: int = 0) -> bytes:
        """What a choice gained: a chunk of text if there is any, and the last chunk if it ended."""
        self._completion_tokens += len(delta.token_ids)
        index = offset + delta.index
        text, called = delta.text, b""
        finish: str | None = delta.finish
        if self._calls is not None:
            text, finish, called = self._listen(self._calls, index, delta)
        written = b""
        if text or delta.logprobs:
            logprobs = _encode(chat_logprobs(delta.logprobs)) if self._has_logprobs else b"null"
            written = self._chunk(
                b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}'
                % (index, _encode(text), logprobs)
            )
        written += called
        if finish is not None:
            written += self._chunk(
                b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}'
                % (index, _encode(finish), _encode(delta.stop_reason))
            )
        return written

    def _listen(self, form: Calling, index: int, delta: Delta) -> tuple[str, str | None, bytes]:
        """Text that is none of a call's, the finish reason, and chunks with calls."""
        heard = self._readers.get(index)
        if heard is None:
            heard = self._readers[index] = _Listener(form.new_reader())
        text, called = "", b""
        for said in heard.hear(delta):
            text += said.text
            for call in said.calls:
                for part in form.deltas(call, heard.calls):
                    called += self._chunk(
                        b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}' % (index, _encode(part))
                    )
                heard.calls += 1
        return text, form.finish(delta.finish, heard.calls), called


class _Listener:
    """One choice's reader, and the calls it has told."""

    def __init__(self, reader: CallReader) -> None:
        self.calls = 0
        self._reader = reader

    def hear(self, delta: Delta) -> list[Said]:
        said = [self._reader.add(delta.text)]
        return said if delta.finish is None else [*said, self._reader.end()]


class CompletionChunks(Chunks):
    """`text_completion`s, one a chunk."""

    kind = "text_completion"

    def __init__(
        self,
        heading: Heading,
        *,
        has_usage: bool = False,
        counts_always: bool = False,
        logprobs: int | None = None,
    ) -> None:
        super().__init__(heading, has_usage=has_usage, counts_always=counts_always, has_logprobs=logprobs is not None)
        self._has_top = bool(logprobs)
        self._offsets: dict[int, int] = {}

    def echo(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        """The first chunk of a choice that repeats its prompt."""
        return self._chunk(self._choice(index, text, tokens, b"null", b"null"))

    def delta(self, delta: Delta, offset: int = 0) -> bytes:
        """What a choice gained, and why it ended if it did."""
        self._completion_tokens += len(delta.token_ids)
        index = offset + delta.index
        written = b""
        if delta.text or delta.logprobs:
            written = self._chunk(self._choice(index, delta.text, delta.logprobs, b"null", b"null"))
        if delta.finish is not None:
            finish, reason = _encode(delta.finish), _encode(delta.stop_reason)
            written += self._chunk(self._choice(index, "", (), finish, reason))
        return written

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprob], finish: bytes, stop_reason: bytes
    ) -> bytes:
        logprobs = b"null"
        if self._has_logprobs and tokens:
            shown, self._offsets[index] = completion_logprobs(
                tokens, self._offsets.get(index, 0), has_top=self._has_top
            )
            logprobs = _encode(shown)
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b}' % (
            index,
            _encode(text),
            logprobs,
            finish,
            stop_reason,
        )
