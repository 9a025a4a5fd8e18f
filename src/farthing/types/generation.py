"""A request for text and what comes back, as every room between the wire and the generator sees them.

Text in and out of messages belongs to `protocols`, tokens to `llm`. Values only; nothing here decides or waits.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from farthing.types.grammar import Grammar

TOP_LOGPROBS_MAX: Final = 20
"""Alternatives a token that a client may ask for (OpenAI's bound)."""


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Ranges are checked by `protocols`; names are OpenAI's and vLLM's."""

    temperature: float = 1.0
    """0 takes the likeliest token (lowest id among equals)."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Both over generated tokens only, as OpenAI documents them."""
    logit_bias: Mapping[int, float] = {}
    seed: int | None = None
    """None: drawn by the server."""
    logprobs: int | None = None
    """None: none; 0: of the chosen token; k: and of the k likeliest (raw model distribution, before any change)."""


class StopConditions(msgspec.Struct, frozen=True, kw_only=True):
    """When a generation ends."""

    tokens_max: int
    """Completion tokens, already clamped to the context."""
    tokens_min: int = 0
    """No end-of-text and no stop string before so many tokens."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignores_eos: bool = False
    includes_stop_text: bool = False


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to be continued `n` times."""

    id: str
    model: str
    prompt_ids: tuple[int, ...]
    """Token ids, non-empty, in the vocabulary."""
    n: int = 1
    sampling: SamplingParameters
    ends: StopConditions
    grammar: Grammar | None = None
    """What each choice must look like."""
    prompt_logprobs: int | None = None
    """As `SamplingParameters.logprobs`, for the prompt (`echo` with `logprobs`)."""
    skips_special_tokens: bool = True
    shown_special_ids: frozenset[int] = frozenset()
    """Special tokens that are text all the same: a model's mark of a tool call."""
    tenant: str = ""
    cache_salt: str = ""
    """Prefixes are shared only within equal (tenant, salt)."""
    priority: int = 0
    """Lower is served first."""
    deadline_ns: int = 0
    """Monotonic; 0: none."""
    arrival_ns: int = 0


class FinishReason(StrEnum):
    """Why a choice ended, as OpenAI spells it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token of prompt or completion with what the model thought of it."""

    id: int
    text: str
    bytes_: bytes
    """What the token adds to the text; may be a part of a character."""
    logprob: float | None
    """Natural logarithm; None for the first token of a prompt."""
    top: tuple[tuple[int, str, bytes, float], ...] = ()
    """(id, text, bytes, logprob), likeliest first; contains the token itself only where it belongs there."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request; the prompt is counted once whatever `n`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were found in the prefix cache."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one choice gained: whole characters only, no part of a possible stop string."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish: FinishReason | None = None
    """Set on the last delta of this choice, and on no other."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it, if one did (vLLM's `stop_reason`)."""


class PromptDone(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt has been read; comes before the first delta, once a request."""

    cached_tokens: int
    logprobs: Sequence[TokenLogprob] = ()
    """One a prompt token, when asked for."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """All choices have ended; the last event of a request that did not fail."""

    usage: Usage
    queue_ns: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0


GenerationEvent = PromptDone | Delta | Finished
"""A request gets PromptDone, Deltas in the order of their tokens, Finished; or, at any point, one FarthingError."""
