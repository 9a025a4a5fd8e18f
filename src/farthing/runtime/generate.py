"""A client's fields and a prompt's tokens to a request that fits the model.

What depends on the model is checked here: ids against its vocabulary, the prompt against its context, `max_tokens`
clamped to what is left of it.
"""

import time
from collections.abc import Sequence

from farthing.protocols.openai import Fields, Prompt, sampling, stops
from farthing.runtime.language_model import LanguageModel
from farthing.types.errors import InvalidField
from farthing.types.generation import GenerateRequest, StopConditions
from farthing.types.grammar import Grammar


def generate_request(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    fields: Fields,
    *,
    id: str,  # noqa: A002
    tokens_max: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
    shown_special_ids: frozenset[int] = frozenset(),
    tenant: str = "",
    arrival_ns: int = 0,
    deadline_ns: int = 0,
    field: str = "messages",
) -> GenerateRequest:
    """The request. `tokens_max` None: the rest of the context; `field` names the prompt. Raises `InvalidField`."""
    room = model.context_tokens - len(prompt_ids)
    if not prompt_ids:
        raise InvalidField(f"{field}: no token is left of it", field=field)
    if room < 1 and tokens_max != 0:
        raise too_long(model, len(prompt_ids), field)
    chosen = sampling(fields, model.defaults, logprobs)
    _check_ids(model, list(chosen.logit_bias), "logit_bias")
    _check_ids(model, fields.stop_token_ids or (), "stop_token_ids")
    return GenerateRequest(
        id=id,
        model=model.spec.name,
        prompt_ids=tuple(prompt_ids),
        n=fields.n or 1,
        sampling=chosen,
        ends=StopConditions(
            tokens_max=room if tokens_max is None else min(tokens_max, max(room, 0)),
            tokens_min=min(fields.min_tokens or 0, max(room, 0)),
            stop=stops(fields),
            stop_token_ids=tuple(fields.stop_token_ids or ()),
            ignores_eos=bool(fields.ignore_eos),
            includes_stop_text=bool(fields.include_stop_str_in_output),
        ),
        grammar=grammar,
        prompt_logprobs=prompt_logprobs,
        skips_special_tokens=fields.skip_special_tokens is not False,
        shown_special_ids=shown_special_ids,
        tenant=tenant,
        cache_salt=fields.cache_salt or "",
        priority=fields.priority or 0,
        deadline_ns=deadline_ns,
        arrival_ns=arrival_ns or time.monotonic_ns(),
    )


def prompt_tokens(model: LanguageModel, prompt: Prompt, field: str, *, adds_special: bool = True) -> Sequence[int]:
    """A prompt's tokens; ids are checked against the vocabulary. Raises `InvalidField`."""
    if isinstance(prompt, str):
        check_characters(model, len(prompt), field)
        return model.encode(prompt, adds_special=adds_special)
    if len(prompt) > model.context_tokens:
        raise too_long(model, len(prompt), field)
    _check_ids(model, prompt, field)
    return prompt


def check_characters(model: LanguageModel, characters: int, field: str) -> None:
    """Refuses a text that could not fit whatever its tokens, before they are looked for. Raises `InvalidField`."""
    at_least = characters // model.token_characters_max
    if at_least > model.context_tokens:
        raise too_long(model, at_least, field, is_at_least=True)


def too_long(model: LanguageModel, tokens: int, field: str, *, is_at_least: bool = False) -> InvalidField:
    """The error that clients know by its code."""
    return InvalidField(
        f"this model's maximum context length is {model.context_tokens} tokens, and the prompt has "
        f"{'at least ' if is_at_least else ''}{tokens}",
        field=field,
        code="context_length_exceeded",
        hint="shorten the prompt; at least one token must be left for the answer",
    )


def _check_ids(model: LanguageModel, ids: Sequence[int], field: str) -> None:
    if ids and max(ids) >= model.vocabulary:
        raise InvalidField(
            f"{field}: token id {max(ids)} is not in the vocabulary of {model.vocabulary} tokens", field=field
        )
