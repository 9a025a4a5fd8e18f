"""Tokens with their log-probabilities, as readers get them."""

from collections.abc import Callable
from typing import Protocol

from farthing.llm.detokenizer import token_text
from farthing.llm.sampler import Likelihood
from farthing.types.generation import TokenLogprob


class Vocabulary(Protocol):
    """What the generator asks of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token: int, /) -> bytes:
        """What the token adds to a text; of a special token its name. Bytes for every id that the model can give."""
        ...


def word(token: int, likelihood: Likelihood | None, bytes_of: Callable[[int], bytes], adds: bytes) -> TokenLogprob:
    """`adds` is what the token adds to this text: nothing where special tokens are skipped. None: first of a prompt."""
    return TokenLogprob(
        id=token,
        text=token_text(bytes_of(token)),
        bytes_=adds,
        logprob=None if likelihood is None else likelihood.logprob,
        top=()
        if likelihood is None
        else tuple(
            (one, token_text(data), data, logprob)
            for one, data, logprob in zip(
                likelihood.top_ids, map(bytes_of, likelihood.top_ids), likelihood.top_logprobs, strict=True
            )
        ),
    )
