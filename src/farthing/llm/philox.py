"""Random numbers that have an address: the same (seed, choice, position) gives the same number, whoever asks when.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
"""

from typing import Final

_MULTIPLIER_0: Final = 0xD2511F53
_MULTIPLIER_1: Final = 0xCD9E8D57
_WEYL_0: Final = 0x9E3779B9
_WEYL_1: Final = 0xBB67AE85
_WORD: Final = 0xFFFFFFFF
_ROUNDS: Final = 10


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four words of 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & _WORD,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL_0) & _WORD, (k1 + _WEYL_1) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, position: int) -> float:
    """In [0, 1), 24 bits. `seed` is taken as 64 bits of two's complement."""
    word = philox4x32((position & _WORD, choice & _WORD, 0, 0), (seed & _WORD, (seed >> 32) & _WORD))[0]
    return (word >> 8) * 2.0**-24
