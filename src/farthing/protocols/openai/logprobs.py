"""Log probabilities as the two endpoints write them: chat a list of objects, plain completions four lists.

Both take the values as they come from the generator, so a token's own figure and its figure among the likeliest are
the same number: lm-eval tells greedy tokens by comparing them.
"""

from collections.abc import Sequence
from typing import Any, Final

from farthing.types.generation import TokenLogprob

LEAST: Final = -9999.0
"""Stands for minus infinity, which JSON has no word for (vLLM's number)."""

Json = dict[str, Any]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    """The `logprobs` object of a chat choice."""
    return {"content": [_chat_token(token) for token in tokens], "refusal": None}


def _chat_token(token: TokenLogprob) -> Json:
    return {
        **_one(token.text, token.bytes_, token.logprob),
        "top_logprobs": [_one(text, data, logprob) for _, text, data, logprob in token.top],
    }


def _one(text: str, data: bytes, logprob: float | None) -> Json:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(data)}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int, *, has_top: bool) -> tuple[Json, int]:
    """The `logprobs` object of a plain completion, and the offset at which the next tokens begin.

    `offset` is where the first token begins in the choice's text, in characters.
    """
    texts: list[str] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token in tokens:
        texts.append(token.text)
        offsets.append(offset)
        offset += len(token.text)
        logprobs.append(None if token.logprob is None else _finite(token.logprob))
        tops.append(_top(token) if has_top and token.logprob is not None else None)
    return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}, offset


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the token itself; of two with the same text (parts of characters) the likelier stays."""
    top: dict[str, float] = {}
    for _, text, _, logprob in token.top:
        top.setdefault(text, _finite(logprob))
    top[token.text] = max(_finite(token.logprob), top.get(token.text, LEAST)) if token.top else _finite(token.logprob)
    return top


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None or not logprob > LEAST else logprob
