"""Which token comes next, held against a sampler that sorts everything and writes everything out."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.llm.sampler import Sampling, adjusted, draw, likelihoods, pick
from farthing.types.generation import SamplingParameters

PARAMETERS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.1, 0.7, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 300, 5000]),
        "top_p": st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    }
)


def sampling(seed: int = 1, choice: int = 0, prompt: tuple[int, ...] = (), **parameters: Any) -> Sampling:
    return Sampling(SamplingParameters(**parameters), seed=seed, choice=choice, prompt_ids=prompt)


def plain_draw(values: np.ndarray, random: float, *, temperature: float, top_k: int, top_p: float, min_p: float) -> int:
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    weights = [math.exp((float(values[token]) - float(values[order[0]])) / temperature) for token in order]
    if top_k:
        weights = weights[:top_k]
    whole = sum(weights)
    kept, mass = 0, 0.0
    for weight in weights:
        if kept and (weight < min_p or mass >= top_p * whole):
            break
        kept += 1
        mass += weight
    target = random * sum(weights[:kept])
    mass = 0.0
    for at in range(kept):
        mass += weights[at]
        if mass > target:
            return order[at]
    return order[kept - 1]


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 40, 700]), st.floats(0, 0.99999), PARAMETERS)
def test_a_draw_is_what_sorting_everything_gives(seed: int, size: int, random: float, parameters: Any) -> None:
    chance = np.random.default_rng(seed)
    values = chance.normal(size=size).astype(np.float32) * chance.choice([0.1, 1, 5])
    if seed % 3 == 0:
        values = np.round(values)  # many equals
    assert draw(values, sampling(**parameters), random) == plain_draw(values, random, **parameters)


def test_a_draw_far_down_a_flat_distribution_is_found() -> None:
    values = np.zeros(50_000, np.float32)
    for random in (0.0, 0.001, 0.5, 0.99999):
        assert draw(values, sampling(), random) == int(random * 50_000)


def test_tokens_come_as_often_as_their_probability_says() -> None:
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    picked = [pick(row, sampling(seed=9), position) for position in range(4000)]
    counts = np.bincount(picked, minlength=4) / 4000
    assert abs(counts - [0.5, 0.25, 0.125, 0.125]).max() < 0.03


def test_temperature_nought_takes_the_likeliest_and_of_equals_the_first() -> None:
    row = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert pick(row, sampling(temperature=0.0), 0) == 1
    assert pick(row, sampling(temperature=0.0), 0, banned=(1,)) == 2
    assert pick(row, sampling(temperature=0.0, logit_bias={3: 2.0}), 0) == 3


def test_penalties_are_what_their_papers_say() -> None:
    row = np.array([2.0, -2.0, 4.0, 1.0, 0.0], np.float32)
    one = sampling(prompt=(0, 1), repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    for token in (2, 2, 3):
        one.saw(token)
    assert adjusted(row, one).tolist() == [1.0, -4.0, 2.0 - 0.5 - 0.5, 0.5 - 0.5 - 0.25, 0.0]
    assert row.tolist() == [2.0, -2.0, 4.0, 1.0, 0.0], "the model's logits stay as they are"
    bias = sampling(logit_bias={4: 3.0}, prompt=(4,), repetition_penalty=2.0)
    assert adjusted(row, bias)[4] == 1.5


def test_a_token_depends_on_seed_choice_and_position_alone() -> None:
    row = np.zeros(1000, np.float32)
    tokens = {(s, c, p): pick(row, sampling(seed=s, choice=c), p) for s in (1, 2) for c in (0, 1) for p in (5, 6)}
    assert len(set(tokens.values())) == 8
    assert pick(row, sampling(seed=1, choice=1), 6) == tokens[1, 1, 6]


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_logprobs_are_the_log_softmax_of_the_row(seed: int, top: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float32) * 8
    exact = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    for row, right in zip(likelihoods(rows, [7, 8, 9], top), enumerate(exact), strict=True):
        at, logprobs = right
        assert row.logprob == pytest.approx(logprobs[7 + at], abs=1e-6)
        assert row.top_ids == np.argsort(-rows[at], kind="stable")[:top].tolist()
        assert row.top_logprobs == pytest.approx(logprobs[list(row.top_ids)], abs=1e-6)
        if 7 + at in row.top_ids:
            assert row.top_logprobs[list(row.top_ids).index(7 + at)] == row.logprob, "the very same number"
