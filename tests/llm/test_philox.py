"""Random numbers with an address."""

import numpy as np

from farthing.llm.philox import philox4x32, uniform


def test_the_published_vectors_come_out() -> None:
    """Known answers that come with the authors' own implementation (Random123, `kat_vectors`)."""
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox4x32(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_numbers_are_spread_evenly_and_differ_by_seed_choice_and_position() -> None:
    numbers = [uniform(seed, choice, at) for seed in (0, -1, 2**63 - 1) for choice in (0, 1) for at in range(2000)]
    assert len(set(numbers)) > 11_900
    assert all(0.0 <= one < 1.0 for one in numbers)
    counts, _ = np.histogram(numbers, bins=16, range=(0, 1))
    assert abs(counts - len(numbers) / 16).max() < 6 * (len(numbers) / 16) ** 0.5


def test_a_negative_seed_is_its_twos_complement() -> None:
    assert uniform(-1, 0, 5) == uniform(2**64 - 1, 0, 5) != uniform(1, 0, 5)
