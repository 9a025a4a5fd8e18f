"""The native pass: against the numpy oracle for every kind of spec and instruction set, and against itself, to the bit."""

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from tests.llm.runners.random_model import SPECS, RandomCheckpoint
from tests.native.isas import HERE
from tests.serving import eventually

from farthing import _native
from farthing.llm import packing
from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.llm.packing import plan_for, plan_of
from farthing.llm.runners.cpu import CpuRunner, kv_token_bytes
from farthing.llm.runners.reference import ReferenceRunner
from farthing.llm.runners.runner import Step, StepSequence
from farthing.llm.spec import tensor_shapes
from farthing.types.errors import InvalidSetting

BLOCKS = 40

BOUNDS = {("f32", "f32"): 3e-5, ("f32", "bf16"): 0.05, ("f32", "int8"): 0.1, ("q8", "bf16"): 0.3}
"""Largest error of a logit, in standard deviations of the logits; random weights forgive nothing."""


def ints(values: Any) -> NDArray[np.int32]:
    return np.asarray(values, np.int32)


def tokens(seed: int, count: int, vocabulary: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.int32)


@pytest.fixture(params=sorted(SPECS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> RandomCheckpoint:
    return RandomCheckpoint(SPECS[request.param], tmp_path / "model.gguf")


@pytest.mark.parametrize("isa", HERE)
def test_logits_are_the_oracles(checkpoint: RandomCheckpoint, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_ISA", isa)
    v = checkpoint.spec.vocabulary
    long, short = tokens(1, 70, v), tokens(2, 5, v)
    sequences = (StepSequence(70, 0, ints([5, 2, 7])), StepSequence(5, 0, ints([1])))
    step = Step(np.concatenate((long, short)), sequences, ints(np.arange(75)))
    expected = ReferenceRunner(checkpoint, blocks=8).run(step)
    for (weights, kv), bound in BOUNDS.items():
        runner = CpuRunner(checkpoint, weights=weights, kv=kv, kv_blocks=8, threads=2)  # type: ignore[arg-type]
        ours = runner.run(step)
        runner.close()
        assert np.abs(ours - expected).max() <= bound * expected.std(), (weights, kv)


@pytest.mark.parametrize("isa", HERE)
def test_the_likeliest_tokens_are_those_of_the_logits(
    checkpoint: RandomCheckpoint, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARTHING_ISA", isa)
    step = Step(
        tokens(1, 70, checkpoint.spec.vocabulary), (StepSequence(70, 0, ints([5, 2, 7])),), ints(np.arange(3, 70))
    )
    runner = CpuRunner(checkpoint, kv_blocks=8, threads=2)
    logits, (found, highest) = runner.run(step), runner.run_likeliest(step)
    runner.close()
    assert found == logits.argmax(axis=1).tolist()
    assert highest == logits.max(axis=1).tolist()


@pytest.mark.parametrize(("rows", "value", "token"), [(slice(None), 0.5, 0), (slice(97, 99), np.nan, 97)])
def test_of_equal_tokens_the_first_is_likeliest_and_what_is_no_number_comes_before_all(
    tmp_path: Path, rows: slice, value: float, token: int
) -> None:
    class Strange(RandomCheckpoint):
        def tensor(self, name: str) -> NDArray[np.float32]:
            values = super().tensor(name)
            if name == "head":
                values[rows] = value
            return values

    runner = CpuRunner(Strange(SPECS["llama"], tmp_path / "model.gguf"), weights="f32", kv_blocks=2, threads=2)
    (found, highest), logits = runner.run_likeliest(one()), runner.run(one())
    runner.close()
    assert found == [token] == logits.argmax(axis=1).tolist()
    assert np.isfinite(highest[0]) == np.isfinite(value)


def test_of_equal_tokens_the_first_is_likeliest_whichever_thread_comes_to_it_first(tmp_path: Path) -> None:
    panels, threads = 256, 4  # more threads than cores: they take from each other all the time
    firsts = np.arange(panels // threads - 1, panels) * _native.TILE  # from the end of the first one's share on

    class Equal(RandomCheckpoint):
        def tensor(self, name: str) -> NDArray[np.float32]:
            values = super().tensor(name)
            if name == "head":
                values[firsts], values[firsts + 1] = 100 * values[7], -100 * values[7]
            return values

    spec = replace(SPECS["llama"], vocabulary=_native.TILE * panels, ties_head=False)
    runner = CpuRunner(Equal(spec, tmp_path / "model.gguf"), weights="f32", kv_blocks=2, threads=threads)
    expected = int(runner.run(one()).argmax())
    assert expected in (firsts[0], firsts[0] + 1)
    found = {runner.run_likeliest(one())[0][0] for _ in range(300)}
    runner.close()
    assert found == {expected}


class Blocks(RandomCheckpoint):
    """A checkpoint whose layers are kept in GGUF's Q4_0, but for one matrix."""

    def _raw(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        blocks = super().tensor(name).reshape(-1, 32)
        scale = (np.abs(blocks).max(1, keepdims=True) / 7).astype(np.float16)
        q = np.clip(np.rint(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
        raw = np.concatenate((scale.view(np.uint8), q[:, :16] | q[:, 16:] << 4), 1)
        values = (q.astype(np.float32) - 8) * scale.astype(np.float32)
        return values.reshape(tensor_shapes(self.spec)[name]), np.ascontiguousarray(raw)

    def _is_kept(self, name: str) -> bool:
        shape = tensor_shapes(self.spec)[name]
        return name.startswith("layers.") and len(shape) == 2 and shape[1] % 32 == 0 and name != "layers.1.down"

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._raw(name)[0] if self._is_kept(name) else super().tensor(name)

    def stored(self, name: str) -> StoredTensor:
        if not self._is_kept(name):
            return super().stored(name)
        values, raw = self._raw(name)
        return StoredTensor("Q4_0", values.shape, raw.data.cast("B"))


@pytest.mark.parametrize("isa", HERE)
def test_blocks_without_minima_are_kept_without_and_give_the_same(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARTHING_ISA", isa)
    checkpoint = Blocks(SPECS["llama"], tmp_path / "model.gguf")
    formats = plan_for(checkpoint, "q4").formats
    assert (formats["layers.0.qkv"], formats["layers.1.down"], formats["head"]) == ("q4_0", "q4", "q8")
    assert set(plan_for(checkpoint, "q8").formats.values()) == {"q8"}
    step = Step(tokens(1, 40, 199), (StepSequence(40, 0, ints([5, 2])),), ints(np.arange(40)))
    without, with_minima = CpuRunner(checkpoint, weights="q4", kv_blocks=8, threads=2), None
    with monkeypatch.context() as patch:
        patch.setattr(packing, "plan_for", lambda given, mode: plan_of(given.spec, mode))
        with_minima = CpuRunner(checkpoint, weights="q4", kv_blocks=8, threads=2)
    sizes = [sum(one.size for one in runner.packed.plan.sections) for runner in (without, with_minima)]
    assert sizes[0] < sizes[1]
    ours, theirs = without.run(step), with_minima.run(step)
    without.close()
    with_minima.close()
    # The same weights to the bit; sums are rounded in another order, and a level of an activation may tip over.
    assert np.abs(ours - theirs).mean() <= 0.01 * theirs.std()


def alone(runner: CpuRunner, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """All logits of a sequence that is run at once, with nobody else."""
    table = ints(np.arange(-(-len(ids) // 32)))
    return runner.run(Step(ids, (StepSequence(len(ids), 0, table),), ints(np.arange(len(ids)))))


def in_company(
    runner: CpuRunner, sequences: list[NDArray[np.int32]], rng: np.random.Generator
) -> list[NDArray[np.float32]]:
    """The same sequences together: in chunks of any size, in any order, in scattered blocks; rows not asked for are NaN."""
    free = rng.permutation(BLOCKS).astype(np.int32)
    tables = [free[4 * i : 4 * i + 4].copy() for i in range(len(sequences))]
    spares = [int(block) for block in free[-len(sequences) :]]
    done = [0] * len(sequences)
    got: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
    while any(d < len(ids) for d, ids in zip(done, sequences, strict=True)):
        parts, rows, who = [], [], []
        for i in rng.permutation(len(sequences)):
            left = len(sequences[i]) - done[i]
            if not left or rng.random() < 0.3:
                continue
            n = int(min(left, rng.integers(1, rng.choice([2, 9, 80]))))
            parts.append(StepSequence(n, done[i], tables[i]))
            rows.append(sequences[i][done[i] : done[i] + n])
            who.append((i, n))
            done[i] += n
            if rng.random() < 0.1:  # a copy of a block is as good as the block
                at = int(rng.integers(0, 4))
                runner.copy_block(int(tables[i][at]), spares[i])
                spares[i], tables[i] = (
                    int(tables[i][at]),
                    np.where(np.arange(4) == at, spares[i], tables[i]).astype(np.int32),
                )
                parts[-1] = StepSequence(n, parts[-1].start, tables[i])
        if not parts:
            continue
        step_tokens = np.concatenate(rows)
        wanted = np.flatnonzero(rng.random(len(step_tokens)) < 0.7).astype(np.int32)
        logits = np.full((len(step_tokens), runner.spec.vocabulary), np.nan, np.float32)
        logits[wanted] = runner.run(Step(step_tokens, tuple(parts), wanted))
        at = 0
        for i, n in who:
            got[i].append(logits[at : at + n])
            at += n
    return [np.concatenate(one) for one in got]


@pytest.mark.parametrize(("weights", "kv"), [("f32", "f32"), ("q8", "int8"), ("q4", "bf16")])
def test_many_rows_at_once_have_the_bits_of_few_at_a_time(checkpoint: RandomCheckpoint, weights: Any, kv: Any) -> None:
    """Steps of many rows are shared among threads in groups, steps of few by outputs."""
    ids, table = tokens(3, 211, checkpoint.spec.vocabulary), ints(np.arange(7))
    found = []
    for threads, rows in ((1, 50), (1, 211), (2, 70), (2, 211), (3, 101), (3, 211)):
        runner = CpuRunner(checkpoint, weights=weights, kv=kv, kv_blocks=8, threads=threads)
        starts = range(0, len(ids), rows)
        parts = [ids[at : at + rows] for at in starts]
        steps = [
            Step(part, (StepSequence(len(part), at, table),), ints(np.arange(len(part))))
            for at, part in zip(starts, parts, strict=True)
        ]
        found.append(np.concatenate([runner.run(step) for step in steps]).view(np.int32))
        runner.close()
    for other in found[1:]:
        assert (other == found[0]).all()


@pytest.mark.parametrize(("weights", "kv"), [("f32", "f32"), ("q8", "bf16"), ("q4", "int8")])
def test_a_row_has_the_same_bits_alone_and_in_company(checkpoint: RandomCheckpoint, weights: Any, kv: Any) -> None:
    v = checkpoint.spec.vocabulary
    sequences = [tokens(i, n, v) for i, n in enumerate((70, 33, 5, 64, 1))]
    runners = [CpuRunner(checkpoint, weights=weights, kv=kv, kv_blocks=BLOCKS, threads=n) for n in (1, 2, 3)]
    expected = [alone(runners[0], ids) for ids in sequences]
    for trial in range(6):
        rng = np.random.default_rng(trial)
        for ours, theirs in zip(in_company(runners[trial % 3], sequences, rng), expected, strict=True):
            asked = ~np.isnan(ours[:, 0])
            assert (ours[asked].view(np.int32) == theirs[asked].view(np.int32)).all()
    for runner in runners:
        runner.close()


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    runner = CpuRunner(RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf"), kv_blocks=8, threads=2)
    yield runner
    runner.close()


def one(**changes: Any) -> Step:
    fields: dict[str, Any] = {
        "rows": 3,
        "start": 0,
        "blocks": ints([0]),
        "tokens": ints([1, 2, 3]),
        "wanted": ints([2]),
    }
    f = fields | changes
    return Step(f["tokens"], (StepSequence(f["rows"], f["start"], f["blocks"]),), f["wanted"])


@pytest.mark.parametrize(
    "step",
    [
        one(tokens=ints([1, 2, 199])), one(tokens=ints([-1, 2, 3])), one(tokens=ints([1, 2])), one(tokens=ints([])),
        one(rows=4), one(rows=0), one(rows=-1), one(rows=2**40), one(start=-1), one(start=30), one(start=2**40),
        one(blocks=ints([8])), one(blocks=ints([-1])), one(blocks=ints([])),
        one(wanted=ints([3])), one(wanted=ints([-1])), one(wanted=ints([2, 1])), one(wanted=ints([1, 1])),
        Step(ints([1]), (), ints([0])),
    ],
)  # fmt: skip
def test_a_step_that_would_touch_other_memory_is_refused(runner: CpuRunner, step: Step) -> None:
    with pytest.raises(ValueError, match=r"."):
        runner.run(step)
    assert np.isfinite(runner.run(one())).all(), "and the next step runs"


@pytest.mark.parametrize("step", [one(tokens=np.array([1, 2, 3])), one(blocks=np.array([0.5]))])
def test_arrays_of_another_type_are_refused(runner: CpuRunner, step: Step) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        runner.run(step)


def test_blocks_outside_of_the_pool_are_not_copied(runner: CpuRunner) -> None:
    for source, target in ((0, 8), (-1, 0), (8, 0)):
        with pytest.raises(ValueError, match="block"):
            runner.copy_block(source, target)


def test_an_instruction_set_nobody_knows_is_a_setting_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARTHING_ISA", "sse9")
    with pytest.raises(InvalidSetting, match="sse9"):
        CpuRunner(RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf"), kv_blocks=2)


def test_a_step_may_want_no_logits(runner: CpuRunner) -> None:
    assert runner.run(one(wanted=ints([]))).shape == (0, 199)


def test_what_is_closed_says_so(tmp_path: Path) -> None:
    runner = CpuRunner(RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf"), kv_blocks=2, threads=2)
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(one())


def test_weights_move_while_the_runner_works_and_whoever_closes_does_not_wait_for_the_time(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf")
    moving = CpuRunner(checkpoint, kv_blocks=8, threads=2)
    whole, before = moving.packed.data.copy(), moving.run(one())
    moving.move_weights(0.0)
    for _ in range(20):
        assert (moving.run(one()) == before).all()
    moving.close()
    assert (moving.packed.data == whole).all()
    waiting = CpuRunner(checkpoint, kv_blocks=8, threads=2)
    waiting.move_weights(3600.0)
    waiting.close()


def test_callers_that_come_at_once_take_turns(runner: CpuRunner) -> None:
    expected = [runner.run(one(tokens=tokens(i, 3, 199))) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        steps = [one(tokens=tokens(i % 4, 3, 199), blocks=ints([i % 4])) for i in range(200)]
        for i, logits in enumerate(pool.map(runner.run, steps)):
            assert (logits == expected[i % 4]).all()


def many_steps(runner: CpuRunner) -> None:
    for _ in range(100):
        runner.run(one(rows=32, tokens=tokens(1, 32, 199)))


def test_who_closes_while_a_step_runs_does_not_take_its_memory(tmp_path: Path) -> None:
    for _ in range(10):
        runner = CpuRunner(RandomCheckpoint(SPECS["smollm2"], tmp_path / "model.gguf"), kv_blocks=2, threads=2)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(many_steps, runner)
            time.sleep(0.002)
            runner.close()
            error = running.exception()
        assert error is None or "closed" in str(error)


def test_garbage_that_a_former_owner_left_in_a_block_is_not_seen(runner: CpuRunner) -> None:
    clean = runner.run(one())
    runner.run(one(rows=32, tokens=tokens(3, 32, 199)))
    assert (runner.run(one()) == clean).all()


def test_the_pool_takes_what_was_announced(runner: CpuRunner) -> None:
    assert runner.kv_bytes == kv_token_bytes(runner.spec, "int8") * 32 * 8


def can_populate() -> bool:
    """Whether memory can be had before it is touched (MADV_POPULATE_WRITE, Linux 5.14)."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE).madvise(23)
    except (OSError, AttributeError):
        return False
    return True


@pytest.mark.skipif(not can_populate(), reason="the system gives no memory before it is touched")
def test_memory_of_keys_and_values_is_there_before_it_is_needed(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf")
    block_bytes = kv_token_bytes(checkpoint.spec, "int8") * 32
    blocks = (512 << 20) // block_bytes
    page_blocks = -(-(2 << 20) // (block_bytes // checkpoint.spec.layers))
    runner = CpuRunner(checkpoint, kv_blocks=blocks, threads=2)
    eventually(lambda: runner.populated_blocks >= page_blocks, within_s=20)
    runner.run(one(blocks=ints([blocks // 2])))
    eventually(lambda: runner.populated_blocks >= min(blocks, blocks // 2 + page_blocks), within_s=20)
    runner.run(one(blocks=ints([blocks - 1])))
    eventually(lambda: runner.populated_blocks == blocks, within_s=20)
    clean = runner.run(one(blocks=ints([7])))
    runner.close()
    early = CpuRunner(checkpoint, kv_blocks=blocks, threads=2)
    assert (early.run(one(blocks=ints([7]))) == clean).all()
    early.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads Linux's accounts of threads")  # noqa: PTH110
def test_an_idle_pool_burns_nothing(tmp_path: Path) -> None:
    tasks = Path("/proc/self/task")
    others = {task.name for task in tasks.iterdir()}
    runner = CpuRunner(RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf"), kv_blocks=8, threads=2)
    (mine,) = {task.name for task in tasks.iterdir()} - others

    def burnt_ns() -> int:
        return int((tasks / mine / "schedstat").read_text().split()[0])

    for _ in range(20):
        runner.run(one())
    time.sleep(0.01)  # it spins for 40 us before it sleeps
    before = burnt_ns()
    assert before > 0
    time.sleep(0.3)
    assert burnt_ns() - before < 1_000_000
    runner.close()


def test_threads_that_start_often_do_not_pile_up(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(SPECS["llama"], tmp_path / "model.gguf")
    before = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(10):
        runner = CpuRunner(checkpoint, kv_blocks=2, threads=4)
        runner.run(one())
        runner.close()
    assert len(list(Path("/proc/self/task").iterdir())) <= before
