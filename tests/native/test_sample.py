"""The native sampler against its oracle, token for token."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import _native

from farthing.llm.sampler import Sampling, likelihoods, pick
from farthing.types.generation import SamplingParameters

VOCABULARY = 3000

parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.7, 100.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1000, 10**6]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, 5.0, 100.0]), max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(
    parameters,
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 5),
    st.integers(0, 100_000),
    st.floats(0.1, 8),
    st.booleans(),
)
def test_it_picks_what_the_oracle_picks(
    p: SamplingParameters, seed: int, choice: int, position: int, spread: float, has_ties: bool
) -> None:
    rng = np.random.default_rng(abs(seed) % 2**32)
    logits = rng.normal(0, spread, (3, VOCABULARY)).astype(np.float32)
    if has_ties:
        logits = np.round(logits)
    # The share that `top_p` keeps may end between two tokens, by no more than sums in float tell apart: either is right.
    prompt, seen = rng.integers(0, VOCABULARY, 20).tolist(), rng.integers(0, VOCABULARY, 30).tolist()
    ways = []
    for top_p in (p.top_p, p.top_p * (1 - 1e-6), min(1.0, p.top_p * (1 + 1e-6))):
        sampling = Sampling(msgspec.structs.replace(p, top_p=top_p), seed=seed, choice=choice, prompt_ids=prompt)
        for token in seen:
            sampling.saw(token)
        ways.append(sampling)
    banned = rng.integers(0, VOCABULARY, 2).tolist() if position % 2 else ()
    rows = [2, 0, 2]
    picked = _native.sample(logits, [(row, ways[0], position + i, banned, None) for i, row in enumerate(rows)])
    for i, row in enumerate(rows):
        assert picked[i] in [pick(logits[row], way, position + i, banned) for way in ways]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    sampling = Sampling(SamplingParameters(), seed=7, choice=0, prompt_ids=())
    picked = _native.sample(logits, [(0, sampling, position, (), None) for position in range(20_000)])
    shares = np.bincount(picked, minlength=4) / len(picked)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.125, 0.125], atol=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20), st.booleans())
def test_likelihoods_are_the_oracles(seed: int, top: int, has_ties: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (4, VOCABULARY)).astype(np.float32)
    if has_ties:
        logits = np.round(logits)
    tokens = rng.integers(0, VOCABULARY, 4).tolist()
    ours = _native.likelihoods(logits, [0, 1, 2, 3], tokens, top)
    for (logprob, ids, logprobs), expected in zip(ours, likelihoods(logits, tokens, top), strict=True):
        assert logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert ids == list(expected.top_ids)
        np.testing.assert_allclose(logprobs, expected.top_logprobs, atol=1e-5)


def test_rows_that_are_not_numbers_give_a_token_all_the_same() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.full((1, 64), bad, np.float32)
        for temperature in (0.0, 1.0):
            sampling = Sampling(SamplingParameters(temperature=temperature), seed=1, choice=0, prompt_ids=())
            (token,) = _native.sample(logits, [(0, sampling, 3, (), None)])
            assert 0 <= token < 64


@pytest.mark.parametrize(
    "draw",
    [
        (1, {}, ()), (-1, {}, ()), (0, {}, (64,)), (0, {}, (-1,)),
        (0, {"bias_ids": np.array([64])}, ()), (0, {"prompt_ids": np.array([-1])}, ()), (0, {"counts": {99: 1}}, ()),
    ],
)  # fmt: skip
def test_ids_and_rows_outside_are_refused(draw: tuple[int, dict[str, Any], tuple[int, ...]]) -> None:
    row, changes, banned = draw
    p = SamplingParameters(repetition_penalty=1.5, logit_bias={3: 1.0})
    sampling = Sampling(p, seed=1, choice=0, prompt_ids=(1, 2))
    for name, value in changes.items():
        setattr(sampling, name, value)
    with pytest.raises(ValueError, match=r"outside|no row"):
        _native.sample(np.zeros((1, 64), np.float32), [(row, sampling, 0, banned, None)])


@pytest.mark.parametrize("mask", [np.zeros(1, np.uint32), np.zeros((1, 2), np.uint32), b"abcdefgh", 3])
def test_a_mask_that_is_none_is_refused(mask: Any) -> None:
    sampling = Sampling(SamplingParameters(), seed=1, choice=0, prompt_ids=(), is_constrained=True)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        _native.sample(np.zeros((1, 64), np.float32), [(0, sampling, 0, (), mask)])


def test_a_mask_of_nothing_gives_a_token_all_the_same() -> None:
    for temperature in (0.0, 1.0):
        p = SamplingParameters(temperature=temperature)
        sampling = Sampling(p, seed=1, choice=0, prompt_ids=(), is_constrained=True)
        (token,) = _native.sample(np.zeros((1, 70), np.float32), [(0, sampling, 0, (), np.zeros(3, np.uint32))])
        assert 0 <= token < 70
