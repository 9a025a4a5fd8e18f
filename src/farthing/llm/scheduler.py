"""What does the next step of the model compute, for whom, and in which blocks?

`plan_step` decides and does nothing. It is given every generation as plain numbers, the KV pool's reference counts and
the time, and answers with who is preempted, who is admitted and how many rows each gets. Allocating, running and
answering belong to `stepper`; the planner and the simulator call the same function.

A generation has no phase. It knows so many tokens (prompt and output) and so many of them are computed; a row is a
token being computed. One that lacks a single token decodes, one that lacks more reads its prompt, or reads again what
it knew before it was preempted.

Why it cannot deadlock, and everyone gets an end:

1. A generation is let in only if its last token fits into the pool alone (`fits`, checked at submission).
2. Blocks are referenced by running generations only: who waits holds none.
3. Running generations are served in a fixed order, (rank, admission). When blocks are short, the last in that order is
   preempted, and never one before the generation that needs them. So the first one always gets its row: should all
   others have been preempted, all blocks that it does not hold itself are free (2), and they suffice (1).
4. A decoding row is set aside for each running generation before prompts share the rest of a step, there are fewer
   generations than rows, and of prompts the first in order comes first. So the first one computes at least one row a
   step, and ends after finitely many; then another is first.
5. When nothing runs, the first of those who wait is admitted (1). Who was preempted comes before who is new of the same
   rank, ranks rise with waiting, and within a rank the tenant served least so far is next.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

RANK_AGE_NS: Final = 10_000_000_000
"""Who has waited so long counts as one priority better: a stream of urgent requests delays the others, not for ever."""

PROMPT_ROWS_WITH_LOGITS: Final = 64
"""Rows of a step that may belong to prompts whose every token's logprob is asked for: each costs a row of logits,
0.2 MB for a vocabulary of 50,000."""

NEW: Final = 1
PREEMPTED: Final = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a step."""

    step_tokens: int = 512
    """Rows of a step: long enough to run the matrix units at their rate, short enough that who decodes waits for no
    more than some tens of milliseconds."""
    sequences_max: int = 64
    """Generations that run at once; fewer than `step_tokens`."""
    long_share: float = 0.5
    """Share of a step that prompts longer than that share may take together while others want the rest."""


class Progress:
    """A generation as the scheduler sees it. Written by its owner, only read here."""

    __slots__ = (
        "admission", "blocks", "computed", "is_charged", "known", "number", "queued_ns", "rank", "shares_tail",
        "tenant", "wants_prompt_logits",
    )  # fmt: skip

    def __init__(
        self,
        *,
        number: int,
        known: int,
        tenant: str = "",
        rank: int = 0,
        queued_ns: int = 0,
        wants_prompt_logits: bool = False,
    ) -> None:
        self.number = number
        """Order of arrival."""
        self.tenant = tenant
        self.rank = rank
        """Priority, lower first; improved by waiting, settled at admission."""
        self.queued_ns = queued_ns
        """When it last began to wait."""
        self.known = known
        """Tokens: prompt and output."""
        self.computed = 0
        """Of these, tokens whose keys and values are in its blocks."""
        self.blocks: list[int] = []
        self.shares_tail = False
        """Its last block is partly filled and may be in another table too."""
        self.wants_prompt_logits = wants_prompt_logits
        self.is_charged = False
        """Its prompt is on its tenant's account: nobody pays twice for having been preempted."""
        self.admission = 0


class Memory(NamedTuple):
    """The KV pool as the scheduler sees it."""

    block_tokens: int
    free: int
    """Blocks in no table."""
    refs: Sequence[int]
    """Tables each block is in."""
    find: Callable[[Progress], Sequence[int]]
    """Blocks that hold the beginning of a waiting generation, all but its last token at most."""


class LineKey(NamedTuple):
    """Those who wait stand in lines; each line is served from its head."""

    rank: int
    kind: int
    """PREEMPTED before NEW."""
    tenant: str
    """Empty for those preempted: they have been their tenant's turn already."""


class Accounts(NamedTuple):
    """Virtual token counters: what each tenant was served, divided by its weight (Sheng et al., arXiv 2401.00588)."""

    served: Mapping[str, float]
    weights: Mapping[str, float]


class Admission(NamedTuple):
    """A waiting generation that runs from this step on."""

    generation: Progress
    found: Sequence[int]
    """Cached blocks it begins with."""
    rank: int
    cost: float
    """To be added to its tenant's counter."""


class Rows(NamedTuple):
    """So many of a generation's tokens are computed in this step."""

    generation: Progress
    rows: int


class Plan(NamedTuple):
    """To be carried out in the order of the fields."""

    preempted: Sequence[Progress]
    admitted: Sequence[Admission]
    rows: Sequence[Rows]
    spare_rows: int
    """Rows that nobody needed."""
    spare_blocks: int


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // block_tokens)


def fits(tokens: int, blocks: int, block_tokens: int) -> bool:
    """Can a generation of so many tokens, prompt and output, run to its end if it must have the pool for itself?"""
    return blocks_for(tokens, block_tokens) <= blocks


def plan_step(
    running: Sequence[Progress],
    waiting: Mapping[LineKey, Sequence[Progress]],
    memory: Memory,
    limits: Limits,
    accounts: Accounts,
    now_ns: int,
) -> Plan:
    """Who computes what in the next step. `running` is in order of (rank, admission)."""
    ledger = _Ledger(memory)
    alive = list(running)
    preempted: list[Progress] = []
    queue = _Queue(waiting, accounts, now_ns) if waiting else None
    if queue is not None and len(alive) > 0:
        _make_way(queue, alive, preempted, ledger, limits)

    decoding = 0
    for one in alive:
        if one.known - one.computed == 1:
            decoding += 1
    share = _Share(limits, decoding)
    given: list[Rows] = []
    is_short = False
    at = 0
    while at < len(alive):
        one = alive[at]
        rows = 1 if one.known - one.computed == 1 else share.rows_for(one, one.computed)
        if rows and ledger.blocks_needed(one, one.computed + rows) > ledger.free:
            rows = min(rows, ledger.rows_that_fit(one))
            while rows <= 0 and at + 1 < len(alive):
                victim = alive.pop()
                preempted.append(victim)
                ledger.give_back(victim)
                share.give_back(victim)
                rows = min(1, ledger.rows_that_fit(one))
            if rows <= 0:  # the last in order waits until someone before it ends, or takes its blocks
                assert at, "the first in order always fits"
                is_short = True
                break
        if rows:
            ledger.take(one, one.computed + rows)
            share.take(one, one.computed, rows)
            given.append(Rows(one, rows))
        at += 1

    admitted: list[Admission] = []
    if queue is not None and not is_short and share.rows > 0 and len(alive) < limits.sequences_max:
        rank_max = min((one.rank for one in preempted), default=None)
        admitted = _admit(queue, alive, given, ledger, share, limits, rank_max)
    if share.rows > 0:
        _use_the_rest(given, admitted, ledger, share)
    return Plan(preempted, admitted, given, share.rows, ledger.free)


def _make_way(
    queue: "_Queue", alive: list[Progress], preempted: list[Progress], ledger: "_Ledger", limits: Limits
) -> None:
    """Preempts the last in order for a waiting generation of better rank, if that lacks a place or blocks."""
    head, rank = queue.head()
    while alive and head is not None and alive[-1].rank > rank:
        if len(alive) < limits.sequences_max and ledger.can_admit(head, ledger.find(head), alive):
            return
        victim = alive.pop()
        preempted.append(victim)
        ledger.give_back(victim)


def _admit(
    queue: "_Queue",
    alive: list[Progress],
    given: list[Rows],
    ledger: "_Ledger",
    share: "_Share",
    limits: Limits,
    rank_max: int | None,
) -> list[Admission]:
    admitted: list[Admission] = []
    promised = ledger.promised(given, alive)
    while share.rows > 0 and len(alive) < limits.sequences_max:
        one, rank = queue.head()
        if one is None or (rank_max is not None and rank >= rank_max):
            break
        found = ledger.find(one)
        needed = ledger.blocks_to_admit(one, found)
        if alive and needed + promised > ledger.free:
            break  # nobody overtakes it: it would never find room
        ledger.pin(found)
        computed = len(found) * ledger.block_tokens
        rows = share.rows_for(one, computed)
        if rows:
            ledger.free -= blocks_for(computed + rows, ledger.block_tokens) - len(found)
            share.take(one, computed, rows)
            given.append(Rows(one, rows))
        promised += blocks_for(one.known, ledger.block_tokens) - blocks_for(computed + rows, ledger.block_tokens) + 1
        cost = 0.0 if one.is_charged else queue.charge(one, one.known - computed)
        admitted.append(Admission(one, found, rank, cost))
        alive.append(one)
        queue.pop()
    return admitted


def _use_the_rest(given: list[Rows], admitted: list[Admission], ledger: "_Ledger", share: "_Share") -> None:
    """Long prompts may have what nobody else wants."""
    found_of = {id(entry.generation): len(entry.found) for entry in admitted}
    share.long_rows = share.rows
    for index, (one, rows) in enumerate(given):
        found = found_of.get(id(one))
        computed = one.computed if found is None else found * ledger.block_tokens
        end = computed + rows
        if end == one.known:
            continue
        held = blocks_for(end, ledger.block_tokens)
        more = min(share.rows_for(one, end), (held + ledger.free) * ledger.block_tokens - end)
        if more > 0:
            ledger.free -= blocks_for(end + more, ledger.block_tokens) - held
            share.take(one, end, more)
            given[index] = Rows(one, rows + more)
        if share.rows <= 0:
            return


class _Share:
    """What is left of a step's rows for prompts."""

    def __init__(self, limits: Limits, decoding: int) -> None:
        self.rows = limits.step_tokens - decoding
        self._long_tokens = max(1, int(limits.step_tokens * limits.long_share))
        self.long_rows = self._long_tokens
        self._rows_with_logits = PROMPT_ROWS_WITH_LOGITS

    def rows_for(self, one: Progress, computed: int) -> int:
        wanted = one.known - computed
        rows = min(wanted, self.rows)
        if wanted > self._long_tokens:
            rows = min(rows, self.long_rows)
        if one.wants_prompt_logits:
            rows = min(rows, self._rows_with_logits)
        return max(rows, 0)

    def take(self, one: Progress, computed: int, rows: int) -> None:
        wanted = one.known - computed
        if one.known - one.computed != 1 or not one.blocks:  # a decoding row was set aside already
            self.rows -= rows
        if wanted > self._long_tokens:
            self.long_rows -= rows
        if one.wants_prompt_logits:
            self._rows_with_logits -= rows

    def give_back(self, victim: Progress) -> None:
        if victim.known - victim.computed == 1:
            self.rows += 1


class _Ledger:
    """The pool as it will be once the plan so far has been carried out."""

    def __init__(self, memory: Memory) -> None:
        self.block_tokens = memory.block_tokens
        self.free = memory.free
        self.find = memory.find
        self._refs = memory.refs
        self._is_copied = False

    def _owned(self) -> list[int]:
        """Reference counts to write in: a copy, made when first needed."""
        if not self._is_copied:
            self._refs = list(self._refs)
            self._is_copied = True
        assert isinstance(self._refs, list)
        return self._refs

    def _copies_tail(self, one: Progress) -> bool:
        """Must the block it writes next be copied first?"""
        return one.shares_tail and self._refs[one.blocks[one.computed // self.block_tokens]] > 1

    def blocks_needed(self, one: Progress, tokens: int) -> int:
        more = max(0, -(-tokens // self.block_tokens) - len(one.blocks))
        return more + 1 if one.shares_tail and self._copies_tail(one) else more

    def rows_that_fit(self, one: Progress) -> int:
        blocks = len(one.blocks) + self.free - (1 if self._copies_tail(one) else 0)
        return blocks * self.block_tokens - one.computed if blocks >= len(one.blocks) else 0

    def take(self, one: Progress, tokens: int) -> None:
        self.free -= self.blocks_needed(one, tokens)
        if one.shares_tail and self._copies_tail(one):
            self._owned()[one.blocks[one.computed // self.block_tokens]] -= 1

    def give_back(self, one: Progress) -> None:
        refs = self._owned()
        for block in one.blocks:
            refs[block] -= 1
            if not refs[block]:
                self.free += 1

    def pin(self, found: Sequence[int]) -> None:
        if found:
            refs = self._owned()
            for block in found:
                if not refs[block]:
                    self.free -= 1
                refs[block] += 1

    def blocks_to_admit(self, one: Progress, found: Sequence[int]) -> int:
        """Free blocks that all tokens it knows will take, cached ones that it finds included."""
        cached = sum(1 for block in found if not self._refs[block])
        return blocks_for(one.known, self.block_tokens) - len(found) + cached

    def promised(self, given: list[Rows], alive: list[Progress]) -> int:
        """Blocks that those who run will need for the tokens they know, and one each to grow into."""
        end_of = {id(one): one.computed + rows for one, rows in given}
        total = len(alive)
        for one in alive:
            end = end_of.get(id(one))
            if end is None:
                total += self.blocks_needed(one, one.known)
            elif end < one.known:
                held = max(len(one.blocks), blocks_for(end, self.block_tokens))
                total += max(0, blocks_for(one.known, self.block_tokens) - held)
        return total

    def can_admit(self, one: Progress, found: Sequence[int], alive: list[Progress]) -> bool:
        return self.blocks_to_admit(one, found) + self.promised([], alive) <= self.free


class _Queue:
    """Those who wait, in order of service, without taking them out of their lines."""

    def __init__(self, lines: Mapping[LineKey, Sequence[Progress]], accounts: Accounts, now_ns: int) -> None:
        self._lines = lines
        self._served = accounts.served
        self._weights = accounts.weights
        self._charged: dict[str, float] = {}
        self._taken: dict[LineKey, int] = {}
        self._now_ns = now_ns
        self._head_key: LineKey | None = None

    def head(self) -> tuple[Progress | None, int]:
        """The next to be served, with its rank as improved by waiting."""
        best: tuple[int, int, float, int] | None = None
        first: Progress | None = None
        for key, line in self._lines.items():
            at = self._taken.get(key, 0)
            if at >= len(line):
                continue
            one = line[at]
            rank = key.rank - max(0, self._now_ns - one.queued_ns) // RANK_AGE_NS
            served = 0.0
            if key.kind == NEW:
                served = self._served.get(key.tenant, 0.0) + self._charged.get(key.tenant, 0.0)
            order = (rank, key.kind, served, one.number if key.kind == NEW else one.admission)
            if best is None or order < best:
                best, first, self._head_key = order, one, key
        return (first, best[0]) if best is not None else (None, 0)

    def pop(self) -> None:
        assert self._head_key is not None
        self._taken[self._head_key] = self._taken.get(self._head_key, 0) + 1

    def charge(self, one: Progress, tokens: int) -> float:
        cost = tokens / self._weights.get(one.tenant, 1.0)
        self._charged[one.tenant] = self._charged.get(one.tenant, 0.0) + cost
        return cost
