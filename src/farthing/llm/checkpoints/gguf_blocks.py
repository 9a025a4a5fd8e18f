"""Blocks of quantised weights to float32, by numpy: the plain meaning of each kind, held against the kernels.

Layouts are those of ggml (ggml-common.h and ggml-quants.c of llama.cpp). A block holds 32 or 256 consecutive weights
of a row: small integers with one scale (and offset) each 16 or 32 of them; the K kinds keep those scales as integers
too, under a float16 scale of the whole block. Nibbles lie in halves: the low ones of 16 bytes are weights 0 to 15,
the high ones 16 to 31.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.llm.checkpoints.gguf import KIND_NAMED

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Typed, so that bytes stay bytes in numpy's eyes and mypy's.
FOUR, TWO, ONE = np.uint8(4), np.uint8(2), np.uint8(1)

_BLOCKS_AT_ONCE: Final = 16_384
"""Keeps what numpy makes in between within some tens of MB."""


def dequantise(stored: StoredTensor) -> Floats:
    """The tensor in float32, its own copy."""
    values = np.empty(stored.shape, np.float32)
    flat = values.reshape(-1)
    if stored.kind == "F32":
        flat[:] = np.frombuffer(stored.data, "<f4")
    elif stored.kind == "F16":
        flat[:] = np.frombuffer(stored.data, "<f2")
    elif stored.kind == "BF16":
        flat.view(np.uint32)[:] = np.frombuffer(stored.data, "<u2")
        flat.view(np.uint32)[:] <<= 16
    else:
        kind, read = KIND_NAMED[stored.kind], _READERS[stored.kind]
        blocks = np.frombuffer(stored.data, np.uint8).reshape(-1, kind.size_bytes)
        rows = flat.reshape(-1, kind.elements)
        for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
            part = slice(start, start + _BLOCKS_AT_ONCE)
            rows[part] = read(blocks[part]).reshape(-1, kind.elements)
    return values


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at that byte of each block: [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[blocks, n] -> [blocks, 2n]: low ones, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """[blocks, 4] -> [blocks, 32] of 0 or 16, bit i for weight i."""
    bits: Bytes = np.unpackbits(packed, axis=1, bitorder="little")
    return bits << FOUR


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    whole = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (whole.astype(np.float32) - 16) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    whole = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return whole.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _crumbs(packed: Bytes) -> Bytes:
    """[blocks, 64] -> [blocks, 16, 16]: two bits each; every 32 bytes hold 128 weights, 32 a bit pair."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 16, 16)


def _q2_k(blocks: Bytes) -> Floats:
    # 16 x (scale, offset in a nibble each) | 64 bytes of crumbs | scale of scales | scale of offsets
    scales = (blocks[:, :16] & 15).astype(np.float32) * _half(blocks, 80)
    offsets = (blocks[:, :16] >> 4).astype(np.float32) * _half(blocks, 82)
    return scales[:, :, None] * _crumbs(blocks[:, 16:80]) - offsets[:, :, None]


def _q3_k(blocks: Bytes) -> Floats:
    # 32 bytes of third bits | 64 bytes of crumbs | 16 scales of 6 bits in 12 bytes | scale of scales
    low = _nibbles(blocks[:, 96:104])
    high = (blocks[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)) & np.uint8(3)
    scales = (low | high.reshape(-1, 16) << FOUR).astype(np.float32) - 32
    third = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & ONE
    whole = _crumbs(blocks[:, 32:96]) | third.reshape(-1, 16, 16) << TWO
    return (scales * _half(blocks, 108))[:, :, None] * (whole.astype(np.float32) - 4)


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[blocks, 12] -> eight scales and eight offsets of 6 bits: the first four whole, the others in two pieces."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << FOUR], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | (second >> 6) << FOUR], axis=1)
    return scales, offsets


def _scaled(blocks: Bytes, whole: Bytes) -> Floats:
    """Q4_K and Q5_K: scale of scales | scale of offsets | 12 bytes of pairs; `whole` [blocks, 8, 32]."""
    scales, offsets = _six_bit_pairs(blocks[:, 4:16])
    scale = (scales.astype(np.float32) * _half(blocks, 0))[:, :, None]
    values: Floats = scale * whole - (offsets.astype(np.float32) * _half(blocks, 2))[:, :, None]
    return values


def _nibbles_by_32(packed: Bytes) -> Bytes:
    """[blocks, 128] -> [blocks, 8, 32]: each 32 bytes hold 64 weights."""
    quarters = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled(blocks, _nibbles_by_32(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & ONE
    return _scaled(blocks, _nibbles_by_32(blocks[:, 48:]) | fifth << FOUR)


def _q6_k(blocks: Bytes) -> Floats:
    # 128 bytes of nibbles (each 64 hold 128 weights) | 64 bytes of crumbs | 16 signed scales | scale of scales
    halves = blocks[:, :128].reshape(-1, 2, 64)
    low = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(-1, 16, 16)
    whole = (low | _crumbs(blocks[:, 128:192]) << FOUR).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    values: Floats = scales[:, :, None] * whole
    return values


_READERS: Final[dict[str, Callable[[Bytes], Floats]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
