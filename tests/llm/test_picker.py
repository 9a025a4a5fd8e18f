"""The fast ways to a token, held against the plain sampler."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.llm import picker, sampler
from farthing.llm.philox import uniform
from farthing.llm.picker import Draw, likelihoods, pick_all
from farthing.llm.sampler import Sampling, adjusted, draw, pick
from farthing.types.generation import SamplingParameters


def sampling(seed: int = 1, **parameters: Any) -> Sampling:
    return Sampling(SamplingParameters(**parameters), seed=seed, choice=seed % 3, prompt_ids=(3, 4, 5))


KINDS = [
    {"temperature": 0.0},
    {"top_p": 0.9},
    {"temperature": 0.0, "logit_bias": {5: 9.0}},
    {"top_k": 3, "temperature": 0.5},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.3},
    {"temperature": 2.0},
]


def mask_of(allowed: Any, size: int) -> np.ndarray:
    bits = np.zeros(-(-size // 32) * 32, np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.fixture(params=["native", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(picker, "native", None)
    elif picker.native is None:
        pytest.skip("the native core is not built")
    return str(request.param)


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.usefixtures("way")
def test_all_rows_at_once_give_what_each_gives_alone(count: int) -> None:
    logits = np.random.default_rng(3).normal(size=(41, 300)).astype(np.float32) * 3
    draws = [
        Draw(row, sampling(row, **KINDS[row % len(KINDS)]), 10 + row, (3, 7) if row % 4 == 1 else ())
        for row in [*range(count), count - 1]
    ]
    draws[0].sampling.saw(2)
    picked = pick_all(logits, draws)
    assert picked.tokens == [pick(logits[one.row], one.sampling, one.position, one.banned) for one in draws]
    assert picked.are_finite is None


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 31, 32, 33, 300, 9000]), st.sampled_from(KINDS))
def test_only_what_the_mask_allows_comes_natively_and_plainly(seed: int, size: int, kind: Any) -> None:
    chance = np.random.default_rng(seed)
    row = chance.normal(size=size).astype(np.float32) * 4
    kind = {name: value for name, value in kind.items() if name != "logit_bias" or size > 5}
    kind = kind | ({"seed": None} if seed % 2 else {"top_k": 2})
    allowed = chance.choice(size, size=chance.integers(1, min(size, 40)), replace=False)
    mask = mask_of(allowed, size)
    one = Sampling(SamplingParameters(**kind), seed=seed, choice=2, prompt_ids=(0, 1), is_constrained=True)
    for token in (1, 2, 2):
        one.saw(token)
    assert (np.isfinite(adjusted(row, one, (), mask)).nonzero()[0] == np.sort(allowed)).all()
    plain = pick(row, one, 9, (), mask)
    assert plain in allowed
    if picker.native is None:
        pytest.skip("the native core is not built")
    (native,) = pick_all(row[None], [Draw(0, one, 9, (), mask)]).tokens
    if native != plain:
        random = uniform(seed, 2, 9)
        values = adjusted(row, one, (), mask)
        assert native in {draw(values, one, min(max(random + more, 0.0), 0.9999999)) for more in (-1e-5, 1e-5)}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [3, 12])
def test_constrained_rows_and_others_share_a_step(count: int) -> None:
    logits = np.random.default_rng(5).normal(size=(count, 300)).astype(np.float32) * 3
    draws = []
    for row in range(count):
        mask = mask_of([7 * row + 1, 290], 300) if row % 2 else None
        parameters = SamplingParameters(**KINDS[row % len(KINDS)])
        one = Sampling(parameters, seed=row, choice=0, prompt_ids=(3,), is_constrained=mask is not None)
        draws.append(Draw(row, one, 10, (), mask))
    tokens = pick_all(logits, draws).tokens
    assert tokens == [pick(logits[one.row], one.sampling, 10, (), one.mask) for one in draws]
    assert all(token in (7 * row + 1, 290) for row, token in enumerate(tokens) if row % 2)


@pytest.mark.usefixtures("way")
def test_likeliest_tokens_come_from_the_rows_asked_for() -> None:
    logits = np.random.default_rng(4).normal(size=(9, 300)).astype(np.float32)
    logits[3, [7, 200]] = 50.0  # equals: the lower id
    for rows in ([0, 1, 2], list(range(9)), [8, 3, 3, 3, 1, 0]):
        draws = [Draw(row, sampling(temperature=0.0), 1, ()) for row in rows]
        assert pick_all(logits, draws).tokens == [int(logits[row].argmax()) for row in rows]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [2, 8])
def test_logits_that_are_no_numbers_are_noticed(count: int) -> None:
    logits = np.zeros((count, 8), np.float32)
    logits[1] = np.nan
    draws = [Draw(row, sampling(temperature=0.0), 1, ()) for row in range(count)]
    assert pick_all(logits, draws).are_finite == [row != 1 for row in range(count)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 300, 9000]), st.sampled_from(KINDS))
def test_the_native_draw_is_the_plain_one_but_for_rounding_at_a_border(seed: int, size: int, kind: Any) -> None:
    if picker.native is None:
        pytest.skip("the native core is not built")
    row = np.random.default_rng(seed).normal(size=size).astype(np.float32) * 4
    kind = {name: value for name, value in kind.items() if name != "logit_bias" or size > 5}
    one = Sampling(SamplingParameters(**kind), seed=seed, choice=2, prompt_ids=(0, 1))
    for token in (1, 2, 2):
        one.saw(token)
    (native,) = pick_all(row[None], [Draw(0, one, 9, (1,))]).tokens
    if native != pick(row, one, 9, (1,)):
        random = uniform(seed, 2, 9)
        near = {draw(adjusted(row, one, (1,)), one, min(max(random + more, 0.0), 0.9999999)) for more in (-1e-5, 1e-5)}
        assert native in near


@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_the_native_logprobs_are_the_plain_ones(seed: int, top: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(4, 500)).astype(np.float32) * 6
    rows, tokens = [3, 0, 3], [5, 6, 7]
    for one, plain in zip(
        likelihoods(logits, rows, tokens, top), sampler.likelihoods(logits[rows], tokens, top), strict=True
    ):
        assert one.logprob == pytest.approx(plain.logprob, abs=1e-5)
        assert one.top_ids == plain.top_ids
        assert one.top_logprobs == pytest.approx(plain.top_logprobs, abs=1e-5)
