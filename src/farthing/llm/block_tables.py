"""The block tables of running generations: which blocks each begins with, gains, shares, names and lets go.

[0, named)        full, in the pool under their names, possibly shared; never written again
[named, blocks)   its own, but for a partly filled last one that a fork may share until either writes to it
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from farthing.llm.generation import Generation
from farthing.llm.kv_blocks import BlockPool
from farthing.llm.runners.runner import Runner

TABLE_GROWTH: Final = 8
"""Blocks a table has room for beyond those it holds when it is made."""


class BlockTables:
    """Changes tables and the pool together."""

    def __init__(self, pool: BlockPool, runner: Runner) -> None:
        self.pool = pool
        self._runner = runner
        self._size = pool.block_tokens

    def found(self, one: Generation) -> list[int]:
        """Cached blocks that it can begin with. Its last token must be computed, for its logits."""
        if one.wants_prompt_logits:
            return []
        blocks = (one.known - 1) // self._size
        if len(one.keys) < blocks:
            self.pool.extend_keys(one.keys, one.state.root, one.ids, blocks * self._size)
        return self.pool.find(one.keys[:blocks])

    def begin(self, one: Generation, found: Sequence[int]) -> None:
        """It runs from now on, the tokens in `found` computed."""
        self.pool.pin(found)
        one.blocks = list(found)
        one.named = len(found)
        one.computed = len(found) * self._size
        one.table = np.array([*found, *[0] * TABLE_GROWTH], np.int32)

    def fork(self, one: Generation, other: Generation) -> None:
        """`other` begins where `one` is, on its blocks."""
        other.blocks = one.blocks[: -(-one.computed // self._size)]
        self.pool.pin(other.blocks)
        other.table = one.table.copy()
        other.keys = list(one.keys)
        other.named = one.named
        other.computed = one.computed
        one.shares_tail = other.shares_tail = bool(one.computed % self._size)

    def grow(self, one: Generation, tokens: int) -> None:
        """Room for so many tokens; the block that is written next is made its own."""
        blocks = one.blocks
        if one.shares_tail:
            one.shares_tail = False
            self._own(one, one.computed // self._size)
        while len(blocks) * self._size < tokens:
            block = self.pool.take()
            if len(blocks) == len(one.table):
                one.table = np.concatenate((one.table, np.zeros(max(TABLE_GROWTH, len(blocks) // 2), np.int32)))
            one.table[len(blocks)] = block
            blocks.append(block)

    def _own(self, one: Generation, at: int) -> None:
        shared = one.blocks[at]
        if self.pool.refs[shared] > 1:
            own = self.pool.take()
            self._runner.copy_block(shared, own)
            self.pool.release((shared,))
            one.blocks[at] = own
            one.table[at] = own

    def name(self, one: Generation) -> None:
        """Lets others find the blocks that have become full."""
        full = one.computed // self._size
        if full <= one.named:
            return
        self.pool.extend_keys(one.keys, one.state.root, one.ids, one.computed)
        for at in range(one.named, full):
            block = self.pool.name(one.blocks[at], one.keys[at])
            one.blocks[at] = block
            one.table[at] = block
        one.named = full

    def let_go(self, one: Generation) -> None:
        """It runs no more; what it named stays cached until the blocks are needed."""
        self.pool.release(one.blocks)
        one.blocks = []
        one.computed = one.named = 0
        one.shares_tail = False
