"""Networks are cut into parts that have every node once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.sensitivity import PARTS, damage, parts_of, worst_first


@given(st.lists(st.integers(1, 3), max_size=60))
def test_every_node_is_in_one_part_in_its_order(sizes: list[int]) -> None:
    layers = [tuple(f"{layer}.{node}" for node in range(size)) for layer, size in enumerate(sizes)]
    parts = parts_of(layers)
    assert [node for part in parts for node in part] == [node for layer in layers for node in layer]
    assert len(parts) <= PARTS
    assert all(parts)


def test_the_first_and_the_last_layer_stand_alone() -> None:
    parts = parts_of([(f"n{i}",) for i in range(20)])
    assert parts[0] == ("n0",)
    assert parts[-1] == ("n19",)
    assert len(parts) == PARTS


def test_the_worst_part_comes_first() -> None:
    assert worst_first([0.1, 0.5, 0.2]) == [1, 2, 0]


def test_damage_is_noise_over_signal() -> None:
    was = np.array([[-1.0, 1.0]])
    assert damage({"y": was}, {"y": was + 0.5}) == 0.25
    assert damage({"y": was}, {"y": was * np.nan}) == float("inf")
