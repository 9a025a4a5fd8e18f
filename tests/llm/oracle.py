"""What a request must get, told without an engine: one row at a time, one character at a time."""

import codecs
from dataclasses import dataclass, field
from typing import Any

from tests.llm.fakes import FakeModel, FakeTokenizer

from farthing.llm.picker import Draw, likelihoods, pick_all
from farthing.llm.sampler import Likelihood, Sampling
from farthing.types.generation import Delta, FinishReason, GenerateRequest


@dataclass
class Choice:
    """One choice, from its beginning to its end."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    likelihoods: list[Likelihood] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        assert self.finish is None, "nothing comes after the last"
        self.ids += delta.token_ids
        self.text += delta.text
        self.finish = delta.finish
        self.stop_reason = delta.stop_reason
        for one in delta.logprobs:
            assert one.logprob is not None
            self.likelihoods.append(Likelihood(one.logprob, [top[0] for top in one.top], [top[3] for top in one.top]))


def choice_alone(
    model: FakeModel, tokenizer: FakeTokenizer, request: GenerateRequest, index: int, tokens_max: int
) -> Choice:
    """The choice as it is when nobody else is there. The request has a seed."""
    ends = request.ends
    grammar = None if request.grammar is None else request.grammar.start()
    sampling = Sampling(
        request.sampling,
        seed=request.sampling.seed or 0,
        choice=index,
        prompt_ids=request.prompt_ids,
        is_constrained=grammar is not None,
    )
    stop_ids = set(ends.stop_token_ids) | (set() if ends.ignores_eos else tokenizer.eos_ids)
    skipped = tokenizer.special_ids if request.skips_special_tokens else frozenset()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    known = list(request.prompt_ids)
    told = Choice()
    text = ""
    places: list[tuple[int, int]] = []  # where a token's text begins and ends
    if not tokens_max:
        told.finish = FinishReason.LENGTH
        return told

    def read(more: str, may_stop: bool) -> bool:
        nonlocal text
        for character in more:
            text += character
            ended = [stop for stop in ends.stop if text.endswith(stop)]
            if may_stop and ended:
                told.stop_reason = max(ended, key=len)
                told.finish = FinishReason.STOP
                cut = len(text) - len(told.stop_reason)
                told.text = text if ends.includes_stop_text else text[:cut]
                return True
        return False

    while True:
        row = model.logits(known)
        banned = sorted(stop_ids) if len(told.ids) < ends.tokens_min else ()
        mask = None
        if grammar is not None:
            unwanted = sorted({*banned, *(tokenizer.eos_ids if ends.ignores_eos else ())})
            (mask,), banned = grammar.masks((), unwanted), ()
        token = pick_all(row[None], [Draw(0, sampling, len(known), banned, mask)]).tokens[0]
        known.append(token)
        told.ids.append(token)
        sampling.saw(token)
        if request.sampling.logprobs is not None:
            told.likelihoods += likelihoods(row[None], [0], [token], request.sampling.logprobs)
        if token in stop_ids:
            rest = decoder.decode(b"", True)
            places.append((len(text) + len(rest), len(text) + len(rest)))
            if not read(rest, True):
                told.text, told.finish = text, FinishReason.STOP
                told.stop_reason = token if token in ends.stop_token_ids else None
            break
        more = "" if token in skipped else decoder.decode(tokenizer.token_bytes(token))
        if grammar is not None:
            grammar.accept(token)
        is_complete = grammar is not None and grammar.is_complete
        is_last = is_complete or len(told.ids) == tokens_max
        more += decoder.decode(b"", True) if is_last else ""
        is_inside = bool(decoder.getstate()[0])
        places.append((len(text), len(text) + len(more) + is_inside))
        if read(more, len(told.ids) >= ends.tokens_min):
            break
        if is_last:
            told.text, told.finish = text, FinishReason.STOP if is_complete else FinishReason.LENGTH
            break
    if isinstance(told.stop_reason, str) and told.likelihoods:
        cut = len(told.text)
        shown = [start < cut or end <= cut for start, end in places]
        told.likelihoods = [one for one, is_shown in zip(told.likelihoods, shown, strict=True) if is_shown]
    return told


def assert_same(got: Choice, expected: Choice, what: Any = "") -> None:
    assert got.ids == expected.ids, what
    assert got.text == expected.text, what
    assert got.finish == expected.finish, what
    assert got.stop_reason == expected.stop_reason, what
    assert got.likelihoods == expected.likelihoods, what
