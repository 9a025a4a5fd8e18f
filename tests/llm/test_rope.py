"""Rotary frequencies are those transformers computes, for every kind of scaling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import config_rotary
from farthing.llm.rope import divided, plain
from farthing.types.errors import LoadFailed

SIZES = {"head_size": 64, "context_tokens": 4096}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn-betas": {"factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 24.0, "beta_slow": 2.0},
    "yarn-exact": {"factor": 8.0, "original_max_position_embeddings": 512, "truncate": False},
    "yarn-attention": {"factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
    "yarn-mscale": {"factor": 8.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.7},
    "longrope": {
        "short_factor": [1.0 + at / 10 for at in range(32)],
        "long_factor": [4.0] * 32,
        "original_max_position_embeddings": 1024,
    },
}


def config(**values: Any) -> Settings:
    return Settings(Path("config.json"), values)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_are_transformers(name: str) -> None:
    pytest.importorskip("torch", reason="frequencies are held against transformers, which needs torch")
    transformers = pytest.importorskip("transformers", reason="frequencies are held against transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = name.split("-", maxsplit=1)[0]
    parameters = {"rope_type": kind, "rope_theta": 50000.0, **SCALINGS[name]}
    theirs = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=dict(parameters)
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, device="cpu")
    ours = config_rotary(config(rope_parameters=parameters), SIZES)
    np.testing.assert_allclose(ours.frequencies, expected.numpy(), rtol=2e-6)
    assert ours.factor == pytest.approx(factor)


def test_old_and_new_spellings_mean_the_same() -> None:
    new = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    old = config(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert config_rotary(config(rope_parameters=new), SIZES) == config_rotary(old, SIZES)
    assert config_rotary(config(rope_scaling=None), SIZES).frequencies[1] == pytest.approx(10_000 ** (-2 / 64))


def test_a_part_of_a_head_may_be_rotated() -> None:
    assert len(config_rotary(config(partial_rotary_factor=0.25), SIZES).frequencies) == 8
    with pytest.raises(LoadFailed, match="1 of 64 elements of a head are rotated"):
        config_rotary(config(partial_rotary_factor=0.02), SIZES)


def test_factors_of_a_gguf_file_divide() -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    np.testing.assert_allclose(divided(64, 10_000, factors).frequencies, plain(64, 10_000) / factors)


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
            "more than low_freq_factor",
        ),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "32 positive numbers"),
        ({"rope_type": "longrope", "short_factor": [0.0] * 32}, "32 positive numbers"),
        ({"rope_type": "yarn", "factor": 0}, "a number of 0.001"),
        ({"rope_type": ["linear"]}, "is not known; known: default, linear, llama3, yarn, longrope"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(scaling: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        config_rotary(config(rope_parameters=scaling), SIZES)
