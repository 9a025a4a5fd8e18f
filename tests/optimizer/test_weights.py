"""Weights in few bits are near what they were, and both engines read them as they are meant."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import save, small_convnet, tiny_mlp

from farthing.optimizer.graphs import prepare
from farthing.optimizer.weights import BLOCK, in_few_bits, packed
from farthing.types.errors import LoadFailed


def unpacked(codes: np.ndarray, scales: np.ndarray, bits: int, rows: int) -> np.ndarray:
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
    return values.reshape(len(codes), -1)[:, :rows].T


@given(st.integers(1, 100), st.integers(1, 9), st.sampled_from([4, 8]), st.integers(0, 99))
def test_no_weight_moves_by_more_than_a_step(rows: int, columns: int, bits: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    codes, scales = packed(matrix, bits)
    again = unpacked(codes, scales, bits, rows)
    blocks = -(-rows // BLOCK)
    steps = np.abs(scales).repeat(BLOCK, 1)[:, :rows].T
    assert scales.shape == (columns, blocks)
    assert (np.abs(again - matrix) <= steps * 1.001 + 1e-7).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_engines_read_what_was_written(tmp_path: Path, bits: int) -> None:
    import onnxruntime

    path = save(tmp_path / "mlp", tiny_mlp()).path
    prepare(path, tmp_path / "clean.onnx")
    in_few_bits(tmp_path / "clean.onnx", tmp_path / "few.onnx", bits)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 32)).astype(np.float32)
    truth, given_ = (
        onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0] for file in (path, tmp_path / "few.onnx")
    )
    assert np.abs(given_ - truth).max() < {4: 0.35, 8: 0.05}[bits] * np.abs(truth).max()
    assert not np.array_equal(given_, truth)


def test_a_model_with_nothing_to_pack_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "net", small_convnet()).path
    with pytest.raises(LoadFailed, match="no matrix of weights"):
        in_few_bits(path, tmp_path / "few.onnx", 4)
