"""Which KV blocks are owned, shared, cached or free?

A block holds the keys and values of `block_tokens` consecutive tokens of one sequence. A full block is named by a hash
of its tokens and of everything before them, so that another generation with the same beginning finds it. Names are
chained: key(i) = blake2b-128(key(i - 1), tokens of block i), and key(-1) is made of a secret of this process, the
model's identity, the tenant and its salt. Who does not know the secret cannot make two prompts collide, nor ask
whether another tenant's prompt is cached. The blocks' contents belong to the runner, who gets which to the scheduler.

    refs > 0                 used: in the tables of so many generations
    refs = 0, named          cached: free to be taken, and until then found by its name
    refs = 0, without name   free

The free list is the LRU list of cached blocks: blocks without a name are taken first, then those released longest ago,
of one generation its tail first, since a tail is worth nothing without what comes before it.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np

KEY_BYTES: Final = 16
"""128 bits: with a secret in the chain no collision can be searched for, and none of chance will be seen."""


class BlockPool:
    """Reference counts, names and the free list of one runner's KV blocks. One owner, one thread."""

    def __init__(self, blocks: int, block_tokens: int, *, identity: str = "", secret: bytes | None = None) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.refs: list[int] = [0] * blocks
        """Tables each block is in. To be read only."""
        self._secret = secrets.token_bytes(KEY_BYTES) if secret is None else secret
        self._identity = identity
        self._key_of: list[bytes] = [b""] * blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self.cached = 0
        """Free blocks whose contents would still be found. To be read only."""

    # -- names -----------------------------------------------------------------------------------------------------

    def root(self, tenant: str, salt: str) -> bytes:
        """Where the chain of names begins: prefixes are shared only within equal (tenant, salt)."""
        parts = (self._identity.encode(), tenant.encode(), salt.encode())
        framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        return blake2b(self._secret + framed, digest_size=KEY_BYTES).digest()

    def extend_keys(self, keys: list[bytes], root: bytes, ids: Sequence[int], tokens: int) -> None:
        """Appends to `keys` until every full block of the first `tokens` of `ids` has its name."""
        size = self.block_tokens
        previous = keys[-1] if keys else root
        for block in range(len(keys), tokens // size):
            data = np.array(ids[block * size : (block + 1) * size], np.int32).tobytes()
            previous = blake2b(previous + data, digest_size=KEY_BYTES).digest()
            keys.append(previous)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known beginning."""
        known = self._block_of
        found = []
        for key in keys:
            block = known.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def name(self, block: int, key: bytes) -> int:
        """Gives a full block, which the caller uses, its name; answers the block to use from now on.

        When two generations computed the same tokens at the same time, the second gets the first one's block and
        its own is free again: contents depend on the tokens alone, so nobody can tell.
        """
        known = self._block_of.get(key)
        if known == block:
            return block
        if known is not None:
            self.pin((known,))
            self.release((block,))
            return known
        assert not self._key_of[block], "a block gets one name in its life"
        self._key_of[block] = key
        self._block_of[key] = block
        return block

    # -- ownership -------------------------------------------------------------------------------------------------

    def take(self) -> int:
        """A block for the caller alone. What was cached in it is forgotten."""
        block, _ = self._free.popitem(last=False)
        key = self._key_of[block]
        if key:
            del self._block_of[key]
            self._key_of[block] = b""
            self.cached -= 1
        self.refs[block] = 1
        return block

    def pin(self, blocks: Iterable[int]) -> None:
        """One more table holds these, used or cached."""
        refs, free = self.refs, self._free
        for block in blocks:
            if not refs[block]:
                del free[block]
                self.cached -= bool(self._key_of[block])
            refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One table, in its order, lets go of these."""
        refs, free = self.refs, self._free
        for block in reversed(blocks):
            refs[block] -= 1
            if not refs[block]:
                free[block] = None
                if self._key_of[block]:
                    self.cached += 1
                else:
                    free.move_to_end(block, last=False)

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Blocks that can be taken, cached ones among them."""
        return len(self._free)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that counts, names and the free list agree with the tables of all generations (for tests)."""
        counted = [0] * self.blocks
        for table in tables:
            assert len(set(table)) == len(table), "a table holds a block once"
            for block in table:
                counted[block] += 1
        assert counted == self.refs
        assert all(not self.refs[block] for block in self._free)
        assert len(self._free) == counted.count(0), "every block is used or free"
        assert self.cached == sum(1 for block in self._free if self._key_of[block])
        assert len(self._block_of) == sum(1 for key in self._key_of if key)
        assert all(self._key_of[block] == key for key, block in self._block_of.items())
