"""The fields that chat and plain completions share: how tokens are chosen, when to end, what to send.

Ranges that JSON types can say are checked while reading; what depends on other fields, here; what depends on the model
(its vocabulary and context), in `runtime`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.forms import ResponseFormat, StructuredOutputs, form_of
from farthing.types.errors import InvalidField
from farthing.types.forms import Form
from farthing.types.generation import SamplingParameters

CHOICES_MAX: Final = 128
"""`n`, OpenAI's bound."""
STOPS_MAX: Final = 16
"""Stop strings of a request. OpenAI allows 4; agents send more."""
STOP_CHARACTERS_MAX: Final = 512
"""Of one stop string. So much text may be held back while it could still become one."""
STOP_TOKENS_MAX: Final = 128
BIASES_MAX: Final = 4096
"""Tokens of one `logit_bias`."""
TOKENS_MAX: Final = 1 << 31
"""No `max_tokens` needs to be larger; it is clamped to the context anyway."""

_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
_Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries besides text. `include_obfuscation` is accepted and has no effect."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a request that does not say gets: OpenAI's defaults, or those of a model's generation_config."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both endpoints. X: not OpenAI's, spelled as vLLM spells them."""

    model: str | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=STOPS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[str, _Bias], Meta(max_length=BIASES_MAX)] | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None

    structured_outputs: StructuredOutputs | None = None  # X
    top_k: Annotated[int, Meta(ge=-1, le=TOKENS_MAX)] | None = None  # X
    min_p: _Share | None = None  # X
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None  # X
    min_tokens: _Count | None = None  # X
    ignore_eos: bool | None = None  # X
    stop_token_ids: Annotated[list[int], Meta(max_length=STOP_TOKENS_MAX)] | None = None  # X
    include_stop_str_in_output: bool | None = None  # X
    skip_special_tokens: bool | None = None  # X
    priority: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None = None  # X
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None  # X

    # Known, and not honoured: said so, rather than ignored.
    bad_words: Any = None
    allowed_token_ids: Any = None
    prompt_logprobs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logits_processors: Any = None
    use_beam_search: Any = None
    truncate_prompt_tokens: Any = None
    return_token_ids: Any = None
    thinking_token_budget: Any = None

    @property
    def needs_grammar(self) -> bool:
        """Whether a grammar must be compiled; to be asked before anything else is."""
        return self.response_format is not None or self.structured_outputs is not None

    @property
    def form(self) -> Form | None:
        """The form the answer is to have; None: text as it comes."""
        return form_of(self.response_format, self.structured_outputs)


_UNSUPPORTED: Final = (
    "bad_words",
    "allowed_token_ids",
    "prompt_logprobs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "logits_processors",
    "use_beam_search",
    "truncate_prompt_tokens",
    "return_token_ids",
    "thinking_token_budget",
)


def check_fields(fields: Fields) -> None:
    """Raises `InvalidField` for what is not honoured here, and for fields that contradict each other."""
    refuse(fields, _UNSUPPORTED)
    _ = fields.form  # raises that it is wrong
    if fields.stream_options is not None and not fields.stream:
        raise InvalidField("stream_options is only allowed when stream is true", field="stream_options")
    if fields.seed is not None and not -(1 << 63) <= fields.seed < 1 << 63:
        raise InvalidField("seed: expected a 64-bit integer", field="seed")
    for index, token in enumerate(fields.stop_token_ids or ()):
        if not 0 <= token <= TOKENS_MAX:
            raise InvalidField(f"stop_token_ids.{index}: not a token id", field=f"stop_token_ids.{index}")


def refuse(body: msgspec.Struct, names: Sequence[str]) -> None:
    """Raises `InvalidField` for a named field that asks for something; null, false and empty ask for nothing."""
    for name in names:
        if getattr(body, name) not in (None, False, [], {}, "", 0):
            raise unsupported(name, f"`{name}`")


def sampling(fields: Fields, defaults: SamplingDefaults, logprobs: int | None) -> SamplingParameters:
    """How this request wants its tokens chosen. Raises `InvalidField` for a key of logit_bias that is no token id."""
    seed = fields.seed
    return SamplingParameters(
        temperature=_or(fields.temperature, defaults.temperature),
        top_p=_or(fields.top_p, defaults.top_p),
        top_k=max(0, _or(fields.top_k, defaults.top_k)),  # -1 means all, too
        min_p=_or(fields.min_p, defaults.min_p),
        repetition_penalty=_or(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=_biases(fields.logit_bias) if fields.logit_bias else {},
        seed=None if seed is None else seed & (1 << 64) - 1,
        logprobs=logprobs,
    )


def stops(fields: Fields) -> tuple[str, ...]:
    """Stop strings, as many as there are."""
    stop = fields.stop
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _biases(said: dict[str, float]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, value in said.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidField(
                f"logit_bias: `{key[:32]}` is not a token id", field="logit_bias", hint="keys are token ids as strings"
            )
        biases[int(key)] = value
    return biases


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
