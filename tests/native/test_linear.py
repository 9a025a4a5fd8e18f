"""Linear layers of every format and instruction set, against float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.native.isas import HERE, MISSING, _native

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=HERE)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FARTHING_ISA", request.param)
    return str(request.param)


def pack(mode: str, w: NDArray[np.float32], block: int) -> NDArray[np.uint8]:
    outputs, inputs = w.shape
    out = np.full(_native.matrix_bytes(mode, outputs, inputs, block), 0xAA, np.uint8)
    _native.pack_nothing(mode, out, outputs, inputs, block)
    _native.pack_rows(mode, w, np.arange(outputs, dtype=np.int32), out, outputs, inputs, block, 2)
    return out


def linear(
    mode: str, x: NDArray[Any], packed: NDArray[np.uint8], outputs: int, block: int, part: int
) -> NDArray[np.float32]:
    return _native.linear(mode, x, packed, outputs, x.shape[1], block, part, rows_max(mode))


def rows_max(mode: str) -> int:
    return int(_native.rows_max(mode))


@st.composite
def layers(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], int, int]:
    part = 32 * draw(st.integers(1, 3))
    block = part * draw(st.integers(1, 3))
    inputs = block * draw(st.integers(1, 3))
    outputs = 32 * draw(st.integers(1, 3))
    rows = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-6, 6))
    x = (rng.normal(0, 1, (rows, inputs)) * scale).astype(np.float32)
    x[rng.random(x.shape) < 0.01] *= 50
    return x, rng.normal(0, 0.1, (outputs, inputs)).astype(np.float32), block, part


some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@some
@given(layers())
def test_float_layers_are_exact_to_rounding(layer: tuple[Any, ...]) -> None:
    x, w, block, part = layer
    ours = linear("f32", x, pack("f32", w, block), len(w), block, part)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    bound = np.abs(x.astype(np.float64)) @ np.abs(w.T) * 2.0**-23 * np.sqrt(x.shape[1])
    assert (np.abs(ours - exact) <= bound).all()


def quantised(x: NDArray[np.float32], size: int, most: int = 127) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole numbers up to `most` and their scales, as the formats define them."""
    parts = x.reshape(len(x), -1, size)
    limit = np.abs(parts).max(-1, keepdims=True)
    q = np.rint(parts * (np.float32(most) / limit)).astype(np.int64)
    return q, (limit[..., 0] / np.float32(most)).astype(np.float64)


def activation_limit(part: int) -> int:
    """What activations of an 8-bit layer are rounded to at most: where they have 16 bits, what sums of 32 can hold."""
    return min(127 * 256, (2**31 - 1) // (127 * part)) if _native.has_wide_rows() else 127


@some
@given(layers())
def test_8_bit_layers_compute_what_their_numbers_say(layer: tuple[Any, ...]) -> None:
    x, w, block, part = layer
    ours = linear("q8", x, pack("q8", w, block), len(w), block, part)
    qx, sx = quantised(x, part, activation_limit(part))
    qw, sw = quantised(w, block)
    qw = qw.reshape(len(w), -1, part)
    whole = np.einsum("rpk,opk->rop", qx, qw)
    terms = whole * sx[:, None, :] * np.repeat(sw, block // part, axis=1)[None]
    np.testing.assert_allclose(ours, terms.sum(-1), rtol=1e-5, atol=1e-6 * np.abs(terms).sum(-1).max())
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    step = np.repeat(sx, part, axis=1) @ np.abs(w.T) / 2 + np.abs(x) @ np.repeat(sw, block, axis=1).T / 2
    assert (np.abs(ours - exact) <= step * 1.1 + 1e-30).all(), "no more than half a step a number"


def q4_1(w: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Rows as GGUF keeps them, and the numbers they stand for."""
    blocks = w.reshape(len(w), -1, 32)
    low = blocks.min(-1, keepdims=True).astype(np.float16)
    scale = ((blocks.max(-1, keepdims=True) - low) / 15).astype(np.float16)
    q = np.clip(np.rint((blocks - low.astype(np.float32)) / scale.astype(np.float32)), 0, 15).astype(np.uint8)
    raw = np.concatenate((scale.view(np.uint8), low.view(np.uint8), q[..., :16] | q[..., 16:] << 4), -1)
    return raw.reshape(-1), (q * scale.astype(np.float64) + low.astype(np.float64)).reshape(w.shape)


@some
@given(layers())
def test_4_bit_blocks_of_a_file_are_taken_exactly(layer: tuple[Any, ...]) -> None:
    x, w, block, part = layer
    raw, stands_for = q4_1(w)
    outputs, inputs = w.shape
    out = np.zeros(_native.matrix_bytes("q4", outputs, inputs, block), np.uint8)
    to = np.random.default_rng(0).permutation(outputs).astype(np.int32)
    _native.pack_q4_blocks("q4", "Q4_1", raw, to, out, outputs, inputs, 2)
    ours = linear("q4", x, out, outputs, block, part)[:, to]
    qx, sx = quantised(x, part)
    x_is = (qx * sx[..., None]).reshape(x.shape)
    exact = x_is @ stands_for.T
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5 * float((np.abs(x_is) @ np.abs(stands_for.T)).max()))


def q4_0(outputs: int, inputs: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Random rows as GGUF keeps them, and the numbers they stand for."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 16, (outputs, inputs // 32, 32)).astype(np.uint8)
    scale = rng.normal(0, 0.01, (outputs, inputs // 32, 1)).astype(np.float16)
    raw = np.concatenate((scale.view(np.uint8), q[..., :16] | q[..., 16:] << 4), -1).reshape(-1)
    return raw, ((q.astype(np.float64) - 8) * scale.astype(np.float64)).reshape(outputs, inputs)


@pytest.mark.parametrize("mode", ["q4", "q4_0"])
def test_q4_0_blocks_are_taken_exactly(mode: str) -> None:
    raw, w = q4_0(32, 64, 5)
    out = np.zeros(_native.matrix_bytes(mode, 32, 64, 32), np.uint8)
    _native.pack_q4_blocks(mode, "Q4_0", raw, np.arange(32, dtype=np.int32), out, 32, 64, 1)
    x = np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(linear(mode, x, out, 32, 64, 64), w.T, rtol=1e-5, atol=1e-7)


@some
@given(layers())
def test_blocks_without_minima_give_what_they_stand_for(layer: tuple[Any, ...]) -> None:
    x, w, block, part = layer
    outputs, inputs = w.shape
    raw, stands_for = q4_0(outputs, inputs, outputs)
    out = np.zeros(_native.matrix_bytes("q4_0", outputs, inputs, block), np.uint8)
    to = np.random.default_rng(0).permutation(outputs).astype(np.int32)
    _native.pack_q4_blocks("q4_0", "Q4_0", raw, to, out, outputs, inputs, 2)
    ours = linear("q4_0", x, out, outputs, block, part)[:, to]
    qx, sx = quantised(x, part)
    x_is = (qx * sx[..., None]).reshape(x.shape)
    exact = x_is @ stands_for.T
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5 * float((np.abs(x_is) @ np.abs(stands_for.T)).max()))


def test_what_has_minima_or_is_rows_does_not_go_where_there_are_none() -> None:
    out = np.zeros(_native.matrix_bytes("q4_0", 32, 32, 32), np.uint8)
    to = np.arange(32, dtype=np.int32)
    with pytest.raises(ValueError, match="Q4_1 does not go into q4_0"):
        _native.pack_q4_blocks("q4_0", "Q4_1", np.zeros(32 * 20, np.uint8), to, out, 32, 32, 1)
    with pytest.raises(ValueError, match="made of blocks"):
        _native.pack_rows("q4_0", np.zeros((32, 32), np.float32), to, out, 32, 32, 32, 1)


@some
@given(layers())
def test_4_bit_weights_made_here_are_no_worse_than_plain_rounding(layer: tuple[Any, ...]) -> None:
    _, w, block, _ = layer
    inputs = w.shape[1]
    ours = linear("q4", np.eye(inputs, dtype=np.float32), pack("q4", w, block), len(w), block, 32).T
    _, plain = q4_1(w)
    assert np.square(ours - w).sum() <= np.square(plain - w).sum() * 1.02


@pytest.mark.parametrize("mode", ["f32", "q8", "q4", "q4_0"])
def test_a_row_has_the_same_bits_in_a_tile_of_any_height(mode: str) -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(0, 1, (64, 384)).astype(np.float32)
    x = rng.normal(0, 1, (37, 384)).astype(np.float32)
    if mode == "q4_0":
        packed = np.zeros(_native.matrix_bytes(mode, 64, 384, 192), np.uint8)
        raw, _ = q4_0(64, 384, 3)
        _native.pack_q4_blocks(mode, "Q4_0", raw, np.arange(64, dtype=np.int32), packed, 64, 384, 1)
    else:
        packed = pack(mode, w, 192)
    alone = np.concatenate([linear(mode, x[i : i + 1], packed, 64, 192, 64) for i in range(len(x))])
    for tall in range(1, rows_max(mode) + 1):
        assert (_native.linear(mode, x, packed, 64, 384, 192, 64, tall) == alone).all()


def test_zeros_infinities_and_no_numbers_do_not_spread_to_other_rows() -> None:
    rng = np.random.default_rng(4)
    w = rng.normal(0, 1, (32, 64)).astype(np.float32)
    x = rng.normal(0, 1, (4, 64)).astype(np.float32)
    strange = x.copy()
    strange[1] = 0
    strange[2, 5] = np.inf
    strange[3, 7] = np.nan
    for mode in ("q8", "q4"):
        packed = pack(mode, w, 64)
        plain, odd = linear(mode, x, packed, 32, 64, 32), linear(mode, strange, packed, 32, 64, 32)
        assert (plain[0] == odd[0]).all()
        assert (odd[1] == 0).all()


@pytest.mark.usefixtures("monkeypatch")
def test_an_instruction_set_that_is_unknown_or_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("sse9", *MISSING):
        monkeypatch.setenv("FARTHING_ISA", asked)
        with pytest.raises(RuntimeError, match=f"FARTHING_ISA={asked}"):
            _native.isa()


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": 33}, {"outputs": 0}, {"inputs": 63}, {"block": 0}, {"block": 48}, {"part": 0}, {"part": 48},
        {"rows_max": 0}, {"rows_max": 99}, {"mode": "q9"}, {"packed": np.zeros(7, np.uint8)},
        {"rows": np.zeros((0, 64), np.float32)}, {"rows": np.zeros((2, 32), np.float32)},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_memory_is_touched(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "mode": "q8",
        "rows": np.zeros((2, 64), np.float32),
        "packed": pack("q8", np.zeros((32, 64), np.float32), 64),
        "outputs": 32,
        "inputs": 64,
        "block": 64,
        "part": 32,
        "rows_max": 4,
    }
    _native.linear(**arguments)
    with pytest.raises(ValueError, match=r"."):
        _native.linear(**(arguments | change))


def test_rows_go_only_to_outputs_there_are() -> None:
    out = np.zeros(_native.matrix_bytes("q8", 32, 32, 32), np.uint8)
    rows = np.zeros((2, 32), np.float32)
    for to in ([0], [0, 32], [-1, 0]):
        with pytest.raises(ValueError, match="row"):
            _native.pack_rows("q8", rows, np.array(to, np.int32), out, 32, 32, 32, 1)


def test_checksums_see_every_byte_and_no_threads() -> None:
    data = np.random.default_rng(0).integers(0, 256, 3_000_001).astype(np.uint8)
    whole = _native.checksum(data, 1)
    assert _native.checksum(data, 2) == whole
    for at in (0, 1, 63, 64, 1 << 20, len(data) - 1):
        changed = data.copy()
        changed[at] ^= 1
        assert _native.checksum(changed, 2) != whole
    assert _native.checksum(data[:-1], 2) != whole
