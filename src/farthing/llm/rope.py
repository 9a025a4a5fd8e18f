"""Rotary frequencies of a layer, with whatever scaling a model was trained with worked in.

    default    theta^(-2i/size)                             Su et al., arXiv 2104.09864
    linear     positions divided by a factor                Chen et al., arXiv 2306.15595
    llama3     long waves stretched, short ones kept        Llama 3.1's reference code, `apply_scaling`
    yarn       the same by a ramp, and a hotter softmax     Peng et al., arXiv 2309.00071, sections 3.2 to 3.4
    longrope   a searched factor for each pair              Ding et al., arXiv 2402.13753

Finding these parameters in a checkpoint belongs to `llm.architectures`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farthing.llm.spec import Rotary

Frequencies = NDArray[np.float64]


def plain(size: int, theta: float) -> Frequencies:
    """`size` is what of a head is rotated: an even number."""
    powers = np.arange(0, size, 2) / size
    frequencies: Frequencies = float(theta) ** -powers
    return frequencies


def default(size: int, theta: float) -> Rotary:
    return rotary(plain(size, theta))


def linear(size: int, theta: float, *, factor: float) -> Rotary:
    return rotary(plain(size, theta) / factor)


def llama3(
    size: int, theta: float, *, factor: float, low_factor: float, high_factor: float, original_tokens: int
) -> Rotary:
    """Waves longer than original/low are stretched by `factor`, shorter than original/high kept, between: a blend."""
    frequencies = plain(size, theta)
    turns = original_tokens * frequencies / (2 * math.pi)
    kept = np.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
    return rotary((1 - kept) * frequencies / factor + kept * frequencies)


def yarn(
    size: int,
    theta: float,
    *,
    factor: float,
    original_tokens: int,
    fast: float = 32,
    slow: float = 1,
    attention_factor: float | None = None,
    truncates: bool = True,
) -> Rotary:
    """Pairs that turn more than `fast` times over the original context are kept, fewer than `slow` stretched."""
    low, high = (
        size * math.log(original_tokens / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    )
    if truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2) - low) / (high - low or 0.001), 0, 1)
    frequencies = plain(size, theta)
    factor_of_attention = yarn_attention(factor) if attention_factor is None else attention_factor
    return rotary(frequencies / factor * ramp + frequencies * (1 - ramp), factor_of_attention)


def yarn_attention(factor: float, weight: float = 1.0) -> float:
    """By how much sine and cosine grow."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def longrope(size: int, theta: float, *, factors: Sequence[float], attention_factor: float) -> Rotary:
    return rotary(plain(size, theta) / np.asarray(factors, np.float64), attention_factor)


def longrope_attention(stretch: float, original_tokens: int) -> float:
    return math.sqrt(1 + math.log(stretch) / math.log(original_tokens)) if stretch > 1 else 1.0


def divided(size: int, theta: float, factors: NDArray[np.float32]) -> Rotary:
    """Frequencies over the factors a GGUF file keeps as tensor `rope_freqs.weight` (Llama 3's scaling, worked out)."""
    return rotary(plain(size, theta) / factors)


def rotary(frequencies: Frequencies, factor: float = 1.0) -> Rotary:
    return Rotary(frequencies=tuple(frequencies.tolist()), factor=factor)
