"""`POST /v1/completions`: prompts to be continued as they are, with no chat around them.

    {"model": "...", "prompt": "Once upon a time", "max_tokens": 16, "echo": true, "logprobs": 1}

Benchmarks and evaluations use it: lm-eval sends token ids with `echo` and reads the prompt's logprobs.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.fields import TOKENS_MAX, Fields, check_fields, refuse
from farthing.protocols.openai.parse import parse
from farthing.types.errors import InvalidField
from farthing.types.generation import TOP_LOGPROBS_MAX

TOKENS_DEFAULT: Final = 16
"""`max_tokens` when a request does not say: OpenAI's legacy default."""
PROMPTS_MAX: Final = 256
"""Prompts of one request."""
TOTAL_CHOICES_MAX: Final = 1024
"""Prompts times `n`."""

_UNSUPPORTED: Final = ("suffix",)

Prompt = str | tuple[int, ...]


class CompletionBody(Fields, frozen=True, kw_only=True):
    """The body, field by field as OpenAI documents it."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    add_special_tokens: bool | None = None  # X
    suffix: Any = None

    @property
    def tokens_max(self) -> int:
        """Tokens of a completion at most."""
        return TOKENS_DEFAULT if self.max_tokens is None else self.max_tokens


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body and its prompts, each a text or token ids."""

    body: CompletionBody
    prompts: tuple[Prompt, ...]


_decoder = msgspec.json.Decoder(CompletionBody)


def parse_completion(body: bytes | memoryview) -> CompletionRequest:
    """A request for completions. Raises `InvalidField` naming the field."""
    asked = parse(body, _decoder)
    check_fields(asked)
    refuse(asked, _UNSUPPORTED)
    n = asked.n or 1
    if asked.best_of is not None and asked.best_of != n:
        if asked.best_of < n:
            raise InvalidField(f"best_of is {asked.best_of}, less than n ({n})", field="best_of")
        raise unsupported("best_of", "`best_of` above n")
    if asked.tokens_max == 0 and not asked.echo:
        raise InvalidField("max_tokens: 0 is allowed only with echo", field="max_tokens")
    if (asked.min_tokens or 0) > asked.tokens_max:
        raise InvalidField(
            f"min_tokens is {asked.min_tokens}, more than the {asked.tokens_max} allowed", field="min_tokens"
        )
    prompts = read_prompts(asked.prompt)
    if len(prompts) * n > TOTAL_CHOICES_MAX:
        raise InvalidField(f"{len(prompts)} prompts times n = {n}: at most {TOTAL_CHOICES_MAX} choices", field="n")
    return CompletionRequest(body=asked, prompts=prompts)


def read_prompts(prompt: str | list[Any]) -> tuple[Prompt, ...]:
    """The four forms a prompt may have: a text, texts, token ids, arrays of token ids."""
    if isinstance(prompt, str):
        return (_text(prompt, "prompt"),)
    if not prompt:
        raise InvalidField("prompt: an empty array", field="prompt")
    if type(prompt[0]) is int:
        return (_ids(prompt, "prompt"),)
    if len(prompt) > PROMPTS_MAX:
        raise InvalidField(f"prompt: {len(prompt)} prompts; at most {PROMPTS_MAX} a request", field="prompt")
    return tuple(
        _ids(one, f"prompt.{index}") if isinstance(one, list) else _text(one, f"prompt.{index}")
        for index, one in enumerate(prompt)
    )


def _text(prompt: Any, at: str) -> str:
    if not isinstance(prompt, str):
        raise InvalidField(f"{at}: expected a text or token ids", field=at)
    if not prompt:
        raise InvalidField(f"{at}: empty", field=at)
    return prompt


def _ids(prompt: list[Any], at: str) -> tuple[int, ...]:
    if not prompt:
        raise InvalidField(f"{at}: empty", field=at)
    for index, token in enumerate(prompt):
        if type(token) is not int or not 0 <= token < TOKENS_MAX:
            raise InvalidField(f"{at}.{index}: not a token id", field=f"{at}.{index}")
    return tuple(prompt)
