"""Blocks: owned, shared, cached, free."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.llm.kv_blocks import BlockPool


def keys_of(pool: BlockPool, ids: list[int], tenant: str = "", salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    pool.extend_keys(keys, pool.root(tenant, salt), ids, len(ids))
    return keys


def store(pool: BlockPool, ids: list[int]) -> list[int]:
    """A table that holds `ids`, its blocks named."""
    return [pool.name(pool.take(), key) for key in keys_of(pool, ids)]


def test_a_beginning_is_found_as_far_as_it_is_the_same() -> None:
    pool = BlockPool(8, 2)
    table = store(pool, [1, 2, 3, 4, 5, 6])
    assert pool.find(keys_of(pool, [1, 2, 3, 4, 5, 6, 7])) == table
    assert pool.find(keys_of(pool, [1, 2, 3, 9, 5, 6])) == table[:1]
    assert pool.find(keys_of(pool, [3, 4, 5, 6])) == []


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_names_are_equal_only_for_equal_beginnings(first: list[int], second: list[int]) -> None:
    pool = BlockPool(8, 2)
    ours, theirs = keys_of(pool, first), keys_of(pool, second)
    for at in range(2):
        assert (ours[at] == theirs[at]) == (first[: 2 * at + 2] == second[: 2 * at + 2])


@given(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3))
def test_tenants_and_salts_never_see_each_others_blocks(a: str, b: str, c: str, d: str) -> None:
    pool = BlockPool(4, 1)
    assert (pool.root(a, b) == pool.root(c, d)) == ((a, b) == (c, d))


def test_names_depend_on_the_model_and_on_a_secret() -> None:
    roots = [BlockPool(4, 1, identity=name, secret=secret).root("", "") for name in "xy" for secret in (b"1", b"2")]
    assert len(set(roots)) == 4
    assert BlockPool(4, 1).root("", "") != BlockPool(4, 1).root("", "")


def test_blocks_without_a_name_go_first_then_those_let_go_longest_ago_tail_first() -> None:
    pool = BlockPool(6, 1)
    old, new = store(pool, [1, 2]), store(pool, [3, 4])
    plain = [pool.take(), pool.take()]
    pool.release(old)
    pool.release(new)
    pool.release(plain)
    assert pool.cached == 4
    taken = [pool.take() for _ in range(6)]
    assert sorted(taken[:2]) == sorted(plain)
    assert taken[2:] == [old[1], old[0], new[1], new[0]]
    assert pool.find(keys_of(pool, [1])) == []


def test_a_block_found_again_is_no_longer_free() -> None:
    pool = BlockPool(2, 1)
    table = store(pool, [1])
    pool.release(table)
    assert pool.free == 2
    pool.pin(pool.find(keys_of(pool, [1])))
    assert pool.free == 1
    pool.take()
    with pytest.raises(KeyError):
        pool.take()


def test_two_who_computed_the_same_end_up_with_one_block() -> None:
    pool = BlockPool(4, 1)
    mine, yours = pool.take(), pool.take()
    (key,) = keys_of(pool, [7])
    assert pool.name(mine, key) == mine
    assert pool.name(yours, key) == mine
    assert pool.refs[mine] == 2
    assert pool.free == 3
    pool.check_integrity([[mine], [mine]])


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_ever_lost_or_owned_twice(seed: int) -> None:
    chance = random.Random(seed)
    pool = BlockPool(12, 2)
    tables: list[list[int]] = []
    contents: dict[int, tuple[int, ...]] = {}  # what each block would hold
    for _ in range(400):
        if tables and chance.random() < 0.4:
            pool.release(tables.pop(chance.randrange(len(tables))))
        else:
            ids = [chance.randrange(2) for _ in range(2 * chance.randint(1, 4))]
            keys = keys_of(pool, ids)
            table = pool.find(keys)
            for at, block in enumerate(table):
                assert contents[block] == tuple(ids[: 2 * at + 2]), "what is found is what was computed"
            if len(keys) - len(table) + sum(1 for block in table if not pool.refs[block]) > pool.free:
                continue
            pool.pin(table)
            for at in range(len(table), len(keys)):
                block = pool.take()
                contents[block] = tuple(ids[: 2 * at + 2])
                table.append(pool.name(block, keys[at]))
            tables.append(table)
        pool.check_integrity(tables)
