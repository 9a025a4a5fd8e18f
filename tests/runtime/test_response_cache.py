"""The cache keeps what was used last, within its bytes, and forgets a load as a whole."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from farthing.runtime.response_cache import ENTRY_BYTES, KeptAnswer, ResponseCache, kept
from farthing.types.requests import RequestedOutput

ROOM = 10 * ENTRY_BYTES


def answer(size: int = ENTRY_BYTES, load: int = 1) -> KeptAnswer:
    return KeptAnswer({}, {}, size, load)


def test_the_least_recently_used_goes_first() -> None:
    cache = ResponseCache(2 * ENTRY_BYTES)
    cache.put(b"a", answer())
    cache.put(b"b", answer())
    assert cache.get(b"a") is not None
    cache.put(b"c", answer())
    assert [key for key in (b"a", b"b", b"c") if cache.get(key)] == [b"a", b"c"]
    assert cache.counters.evictions == 1


def test_an_answer_larger_than_the_cache_empties_nothing() -> None:
    cache = ResponseCache(ENTRY_BYTES)
    cache.put(b"a", answer())
    assert not cache.put(b"b", answer(ENTRY_BYTES + 1))
    assert cache.get(b"a") is not None


def test_a_kept_answer_is_its_own_and_cannot_be_written_to() -> None:
    batch = np.arange(1000, dtype=np.float32).reshape(100, 10)
    keep = kept({"y": batch[3:4], "z": batch}, {}, (RequestedOutput("y"),), 1)
    assert keep.outputs.keys() == {"y"}, "only what was asked for"
    assert keep.outputs["y"].base is None, "or the whole batch would stay"
    assert not keep.outputs["y"].flags.writeable
    assert keep.size == ENTRY_BYTES + 40
    texts = np.array([b"x" * 1000], object)
    assert kept({"y": texts}, {}, (), 1).size > ENTRY_BYTES + 1000


class Life(RuleBasedStateMachine):
    """Against a list that is kept in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResponseCache(ROOM)
        self.used: list[tuple[bytes, KeptAnswer]] = []

    @rule(key=st.binary(max_size=1), size=st.integers(1, ROOM + 1), load=st.integers(0, 2))
    def put(self, key: bytes, size: int, load: int) -> None:
        fits = self.cache.put(key, new := answer(size, load))
        assert fits == (size <= ROOM)
        if fits:
            self.used = [(k, a) for k, a in self.used if k != key]
            while sum(a.size for _, a in self.used) + size > ROOM:
                self.used.pop(0)
            self.used.append((key, new))

    @rule(key=st.binary(max_size=1))
    def get(self, key: bytes) -> None:
        expected: Any = dict(self.used).get(key)
        assert self.cache.get(key) is expected
        self.used.sort(key=lambda entry: entry[0] == key)

    @rule(load=st.integers(0, 2))
    def forget(self, load: int) -> None:
        self.cache.forget(load)
        self.used = [(k, a) for k, a in self.used if a.load != load]

    @invariant()
    def holds(self) -> None:
        self.cache.check_integrity()
        assert self.cache.counters.entries == len(self.used)


TestLife = Life.TestCase
