"""Triton's generate extension: one flat JSON object in, one out, or a stream of them.

    {"text_input": "Once upon a time", "max_tokens": 16, "temperature": 0, "parameters": {"stop": ["."]}}

Parameters stand beside `text_input` or in `parameters`, spelled as OpenAI and vLLM spell them; `sampling_parameters`,
a string of JSON that Triton's vLLM backend takes, is read too.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from farthing.protocols import sse
from farthing.protocols.kserve.errors import encode_error
from farthing.protocols.openai import Choice, Fields
from farthing.protocols.openai.fields import check_fields
from farthing.protocols.openai.logprobs import chat_logprobs
from farthing.protocols.openai.parse import parse, parse_value
from farthing.types.errors import FarthingError, InvalidField
from farthing.types.generation import TOP_LOGPROBS_MAX, Delta, Usage

TOKENS_DEFAULT: Final = 16
"""`max_tokens` when a request does not say, as in Triton's vLLM backend."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(dict[str, Any])


class GenerateFields(Fields, frozen=True, kw_only=True):
    """The object, flattened."""

    text_input: str
    id: str | None = None
    exclude_input_in_output: bool | None = None
    details: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    @property
    def tokens_max(self) -> int:
        """Tokens generated at most."""
        return TOKENS_DEFAULT if self.max_tokens is None else self.max_tokens


def parse_generate(body: bytes | memoryview) -> GenerateFields:
    """A request to continue a text. Raises `InvalidField` naming the field."""
    said = parse(body, _decoder)
    text = said.get("text_input")
    if isinstance(text, list) and len(text) == 1:
        said["text_input"] = text[0]  # a tensor of one element
    nested = said.pop("parameters", None)
    if nested is not None and not isinstance(nested, dict):
        raise InvalidField("parameters: expected an object", field="parameters")
    packed = said.pop("sampling_parameters", None)
    inner: dict[str, Any] = {}
    if packed is not None:
        if not isinstance(packed, str):
            raise InvalidField("sampling_parameters: expected JSON in a string", field="sampling_parameters")
        inner = parse(packed.encode(errors="replace"), _decoder)
    asked = parse_value({**inner, **(nested or {}), **said, "stream": None}, GenerateFields)
    check_fields(asked)
    if not asked.text_input:
        raise InvalidField("text_input: empty", field="text_input")
    if asked.tokens_max < 1:
        raise InvalidField("max_tokens: expected at least 1", field="max_tokens")
    if asked.n not in (None, 1):
        raise InvalidField("n: one text_output a request", field="n", hint="use /v1/completions for several")
    return asked


def generate_json(asked: GenerateFields, name: str, version: str, choice: Choice, usage: Usage) -> bytes:
    """The whole answer."""
    answer = _heading(asked, name, version)
    answer["text_output"] = _echo(asked) + choice.text
    if asked.details:
        answer["details"] = {
            "finish_reason": choice.finish,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "logprobs": chat_logprobs(choice.logprobs)["content"] if asked.logprobs is not None else None,
        }
    return _encode(answer)


class GenerateChunks:
    """The same, as it comes: an event for each piece of text."""

    def __init__(self, asked: GenerateFields, name: str, version: str) -> None:
        self._asked = asked
        self._head = _encode(_heading(asked, name, version)).removesuffix(b"}")

    def prompt_done(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Not told."""

    def begin(self) -> bytes:
        """The text itself, if the client wants it back."""
        echo = _echo(self._asked)
        return self._event(echo, None) if echo else b""

    def delta(self, delta: Delta, offset: int = 0) -> bytes:
        """An event, unless there is nothing to say."""
        if not delta.text and delta.finish is None:
            return b""
        return self._event(delta.text, delta)

    def finish(self, usages: Sequence[Usage]) -> bytes:
        """The stream just ends."""
        return b""

    def error(self, error: FarthingError) -> bytes:
        """An error after the stream has begun."""
        return sse.event(encode_error(error))

    def _event(self, text: str, delta: Delta | None) -> bytes:
        more = b""
        if self._asked.details and delta is not None and delta.finish is not None:
            more = b',"details":' + _encode({"finish_reason": delta.finish})
        return sse.event(self._head + b',"text_output":' + _encode(text) + more + b"}")


def _heading(asked: GenerateFields, name: str, version: str) -> dict[str, Any]:
    heading: dict[str, Any] = {"id": asked.id} if asked.id else {}
    return heading | {"model_name": name, "model_version": version}


def _echo(asked: GenerateFields) -> str:
    return asked.text_input if asked.exclude_input_in_output is False else ""
