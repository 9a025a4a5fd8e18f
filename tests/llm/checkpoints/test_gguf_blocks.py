"""Each kind of block means what the `gguf` package says it means, to the bit, whatever the bits."""

import warnings

import numpy as np
import pytest

from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.llm.checkpoints.gguf import KIND_NAMED
from farthing.llm.checkpoints.gguf_blocks import dequantise

gguf = pytest.importorskip("gguf", reason="blocks are held against the `gguf` package")


@pytest.mark.parametrize("name", KIND_NAMED)
def test_blocks_of_random_bytes_give_the_same_numbers(name: str) -> None:
    kind = KIND_NAMED[name]
    blocks = 3 if kind.elements > 1 else 512
    shape = (40, blocks * kind.elements)
    raw = np.random.default_rng(5).integers(0, 256, (40, blocks * kind.size_bytes), dtype=np.uint8)
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # some scales are infinite, or no numbers
        warnings.simplefilter("ignore")
        ours = dequantise(StoredTensor(name, shape, raw.data.cast("B")))
        typed = raw.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        theirs = gguf.quants.dequantize(typed, gguf.GGMLQuantizationType[name]).astype(np.float32)
    assert ours.shape == shape
    assert ours.dtype == np.float32
    assert np.isfinite(theirs).mean() > 0.9
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_come_back_within_half_a_step(name: str) -> None:
    weights = np.random.default_rng(6).uniform(-1, 1, (33, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    back = dequantise(StoredTensor(name, weights.shape, packed.data.cast("B")))
    steps = {"Q8_0": 254, "Q4_0": 15, "Q4_1": 15, "Q5_0": 31, "Q5_1": 31}[name]
    assert np.abs(back - weights).max() <= 2 / steps * 1.1 / (1 if name.endswith("_0") and name != "Q8_0" else 2)


def test_more_blocks_than_are_read_at_once_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(7).integers(0, 64, (100, 34), dtype=np.uint8)
    whole = dequantise(StoredTensor("Q8_0", (100, 32), raw.data.cast("B")))
    monkeypatch.setattr("farthing.llm.checkpoints.gguf_blocks._BLOCKS_AT_ONCE", 7)
    np.testing.assert_array_equal(dequantise(StoredTensor("Q8_0", (100, 32), raw.data.cast("B"))), whole)
