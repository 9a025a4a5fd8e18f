"""What the plain runner promises beside right numbers; those are proved for every family in `architectures`."""

from pathlib import Path

import numpy as np
import pytest
from tests.llm.checkpoints.tiny import TOKENS, tiny_folder

from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.runners.reference import ReferenceRunner
from farthing.llm.runners.runner import BLOCK_TOKENS, Step, StepSequence

IDS = np.random.default_rng(1).integers(3, len(TOKENS), 40).astype(np.int32)


@pytest.fixture
def runner(tmp_path: Path) -> ReferenceRunner:
    return ReferenceRunner(open_checkpoint(tiny_folder(tmp_path / "m")), blocks=4)


def step(first: int, end: int, blocks: list[int], rows: list[int] | None = None) -> Step:
    wanted = list(range(end - first)) if rows is None else rows
    sequence = StepSequence(end - first, first, np.array(blocks, np.int32))
    return Step(IDS[first:end], (sequence,), np.array(wanted, np.int32))


def test_a_copied_block_holds_the_same_keys_and_values(runner: ReferenceRunner) -> None:
    runner.run(step(0, 35, [0, 1]))
    runner.copy_block(1, 3)
    expected = runner.run(step(35, 40, [0, 1]))
    np.testing.assert_array_equal(runner.run(step(35, 40, [0, 3])), expected)


def test_only_the_rows_asked_for_get_logits(runner: ReferenceRunner) -> None:
    everything = runner.run(step(0, 10, [2]))
    np.testing.assert_allclose(runner.run(step(0, 10, [2], rows=[3, 9])), everything[[3, 9]], rtol=1e-5, atol=1e-5)
    assert runner.run(step(0, 10, [2], rows=[])).shape == (0, runner.spec.vocabulary)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (step(0, 40, [0]), f"1 blocks of {BLOCK_TOKENS} do not cover 40"),
        (step(0, 4, [4]), "with 4 blocks"),
        (step(0, 4, [-1]), "with 4 blocks"),
        (Step(IDS[:3], step(0, 4, [0]).sequences, np.array([0], np.int32)), "3 tokens for 4 rows"),
    ],
)
def test_a_step_that_cannot_be_run_is_our_own_mistake(runner: ReferenceRunner, wrong: Step, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        runner.run(wrong)
