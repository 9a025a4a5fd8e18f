"""The packed file: made once, mapped afterwards, and never believed when it is not what it should be."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.llm.runners.random_model import SPECS, RandomCheckpoint
from tests.native.isas import HERE

pytest.importorskip("farthing._native", reason="the native core is not built")

from farthing import _native
from farthing.llm.packing import (
    BLOCKS,
    TILE,
    PackedWeights,
    packed_name,
    packed_weights,
    plan_of,
    wide_block_of,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> RandomCheckpoint:
    return RandomCheckpoint(SPECS["qwen2"], tmp_path / "tiny.gguf")


def packed(checkpoint: RandomCheckpoint, told: list[int] | None = None) -> PackedWeights:
    def progress(done: int, total: int) -> None:
        assert 0 < done <= total
        if told is not None:
            told.append(done)

    return packed_weights(checkpoint, "q8", threads=2, progress=progress)


def test_it_is_packed_beside_the_model_once(checkpoint: RandomCheckpoint) -> None:
    first_told: list[int] = []
    second_told: list[int] = []
    first, second = packed(checkpoint, first_told), packed(checkpoint, second_told)
    assert first.path == second.path == checkpoint.path.parent / packed_name("tiny", "q8")
    assert len(first_told) == len(plan_of(checkpoint.spec, "q8", is_wide=_native.has_wide_rows()).sections)
    assert first_told == sorted(first_told)
    assert not second_told, "the second start is a mapping"
    assert (first.data == second.data).all()
    assert first.offsets == second.offsets
    assert os.listdir(checkpoint.path.parent) == [packed_name("tiny", "q8")], "no staging file stays"  # noqa: PTH208


def test_modes_have_files_of_their_own(checkpoint: RandomCheckpoint) -> None:
    paths = {packed_weights(checkpoint, mode, threads=1).path for mode in ("q8", "q4", "f32")}  # type: ignore[arg-type]
    assert len(paths) == 3


def test_processors_whose_activations_have_16_bits_have_larger_blocks_in_files_of_their_own(
    checkpoint: RandomCheckpoint,
) -> None:
    names = {}
    for isa in HERE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FARTHING_ISA", isa)
            plan = packed(checkpoint).plan
            names[isa] = packed_name("tiny", "q8")
            assert (plan.attention_part == plan.attention_block) == _native.has_wide_rows()
    narrow = {names.pop(isa) for isa in ("avx512vnni", "avx512vnni-nobf16") if isa in names}
    assert len(narrow) == (1 if "avx512vnni-nobf16" in HERE else 0)
    assert len(set(names.values())) == 1
    assert narrow.isdisjoint(names.values())
    assert [wide_block_of(inputs) for inputs in (576, 2048, 960, 896, 32, 544)] == [576, 512, 320, 448, 32, 544]
    assert [wide_block_of(inputs, 6) for inputs in (1536, 8192, 64)] == [256, 512, 32]
    assert all(wide_block_of(TILE * n) % TILE == 0 for n in range(1, 300))
    assert max(BLOCKS) < wide_block_of(576)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    return data[:-5000] + bytes([data[-5000] ^ 1]) + data[-4999:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "foreign": lambda _: b"GGUF" * 1000,
    "cut in the header": lambda data: data[:100],
    "cut": cut,
    "longer": lambda data: data + b"\0" * 4096,
    "a bit flipped": changed,
    "header not JSON": lambda data: data[:16] + b"[" * 100 + data[116:],
    "header of any length": lambda data: data[:8] + b"\xff" * 8 + data[16:],
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_file_that_is_not_whole_is_packed_anew(
    checkpoint: RandomCheckpoint, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = packed(checkpoint).data.copy()
    path = checkpoint.path.parent / packed_name("tiny", "q8")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        again = packed(checkpoint, told)
    assert told
    assert "packed anew" in caplog.text
    assert (again.data == good).all()
    told.clear()
    packed(checkpoint, told)
    assert not told, "and that one is good"


def test_other_weights_under_the_same_name_are_packed_anew(checkpoint: RandomCheckpoint) -> None:
    before = packed(checkpoint).data.copy()
    checkpoint.seed = 1
    assert (packed(checkpoint).data != before).any()


def test_a_folder_that_cannot_be_written_is_passed_over(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocked = tmp_path / "a file, so no folder"
    blocked.write_text("")
    elsewhere = RandomCheckpoint(checkpoint.spec, blocked / "tiny.gguf")
    kept = packed(elsewhere)
    assert kept.path is not None
    assert kept.path.is_relative_to(tmp_path / "cache" / "farthing")
    told: list[int] = []
    packed(elsewhere, told)
    assert not told


def test_without_any_folder_it_is_packed_into_memory(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file, so no folder"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    elsewhere = RandomCheckpoint(checkpoint.spec, blocked / "tiny.gguf")
    kept = packed(elsewhere)
    assert kept.path is None
    begin = kept.offsets["output_norm"]
    floats = kept.data[begin : begin + 96 * 4].view(np.float32)
    assert (floats == elsewhere.tensor("output_norm")).all()


def test_two_who_pack_at_once_both_get_it_whole(checkpoint: RandomCheckpoint) -> None:
    results: list[PackedWeights] = []
    threads = [threading.Thread(target=lambda: results.append(packed(checkpoint))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((one.data == results[0].data).all() for one in results)


def test_a_packing_that_is_interrupted_leaves_nothing(checkpoint: RandomCheckpoint) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed_weights(checkpoint, "q8", threads=1, progress=stop)
    assert list(checkpoint.path.parent.iterdir()) == []
