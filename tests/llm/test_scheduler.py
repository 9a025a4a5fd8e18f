"""Who computes what in the next step."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.llm.scheduler import (
    NEW,
    PREEMPTED,
    RANK_AGE_NS,
    Accounts,
    Limits,
    LineKey,
    Memory,
    Plan,
    Progress,
    blocks_for,
    fits,
    plan_step,
)

SIZE = 4
LIMITS = Limits(step_tokens=16, sequences_max=4)


class House:
    """Generations and a pool, for planning and for carrying plans out in numbers."""

    def __init__(self, blocks: int = 100, limits: Limits = LIMITS, weights: dict[str, float] | None = None) -> None:
        self.limits = limits
        self.refs = [0] * blocks
        self.running: list[Progress] = []
        self.lines: dict[LineKey, list[Progress]] = {}
        self.served: dict[str, float] = {}
        self.weights = weights or {}
        self.cached: dict[int, list[int]] = {}
        self.numbers = 0

    def runs(self, known: int, computed: int | None = None, *, shared: Sequence[int] = (), **given: Any) -> Progress:
        one = self.new(known, **given)
        one.computed = known - 1 if computed is None else computed
        one.admission = one.number
        one.blocks = list(shared)
        for block in shared:
            self.refs[block] += 1
        while len(one.blocks) * SIZE < one.computed:
            one.blocks.append(self.take())
        self.running.append(one)
        self.running.sort(key=lambda other: (other.rank, other.admission))
        return one

    def waits(self, known: int, kind: int = NEW, *, cached: Sequence[int] = (), **given: Any) -> Progress:
        one = self.new(known, **given)
        tenant = one.tenant if kind == NEW else ""
        self.lines.setdefault(LineKey(one.rank, kind, tenant), []).append(one)
        self.cached[one.number] = list(cached)
        return one

    def new(self, known: int, **given: Any) -> Progress:
        self.numbers += 1
        return Progress(number=self.numbers, known=known, **given)

    def take(self) -> int:
        block = self.refs.index(0)
        self.refs[block] = 1
        return block

    def plan(self, now_ns: int = 0) -> Plan:
        free = self.refs.count(0)
        memory = Memory(SIZE, free, self.refs, lambda one: self.cached.get(one.number, []))
        return plan_step(self.running, self.lines, memory, self.limits, Accounts(self.served, self.weights), now_ns)

    def carry_out(self, plan: Plan) -> None:
        """As the roster and the tables do; `take` raises if the plan promised too much."""
        for one in plan.preempted:
            self.running.remove(one)
            for block in one.blocks:
                self.refs[block] -= 1
            one.blocks, one.computed, one.shares_tail = [], 0, False
            self.lines.setdefault(LineKey(one.rank, PREEMPTED, ""), []).append(one)
        for one, found, rank, cost in plan.admitted:
            line = next(line for line in self.lines.values() if one in line)
            line.remove(one)
            self.lines = {key: line for key, line in self.lines.items() if line}
            for block in found:
                self.refs[block] += 1
            one.blocks, one.computed, one.rank = list(found), len(found) * SIZE, rank
            one.is_charged = True
            self.served[one.tenant] = self.served.get(one.tenant, 0.0) + cost
            self.numbers += 1
            one.admission = one.admission or self.numbers
            self.running.append(one)
        self.running.sort(key=lambda other: (other.rank, other.admission))
        for one, rows in plan.rows:
            if one.shares_tail:
                one.shares_tail = False
                at = one.computed // SIZE
                if self.refs[one.blocks[at]] > 1:
                    self.refs[one.blocks[at]] -= 1
                    one.blocks[at] = self.take()
            while len(one.blocks) * SIZE < one.computed + rows:
                one.blocks.append(self.take())
            one.computed += rows
            if one.computed == one.known:
                one.known += 1


def given_to(plan: Plan) -> dict[int, int]:
    return {one.number: rows for one, rows in plan.rows}


def test_who_decodes_gets_a_row_before_prompts_share_the_rest() -> None:
    house = House()
    prompt = house.runs(40, 0)
    decoding = [house.runs(9), house.runs(5)]
    assert given_to(house.plan()) == {prompt.number: 14, decoding[0].number: 1, decoding[1].number: 1}


def test_a_long_prompt_leaves_room_for_a_short_one_and_takes_what_nobody_wants() -> None:
    house = House()
    long = house.runs(90, 0)
    assert given_to(house.plan()) == {long.number: 16}
    short = house.waits(6)
    assert given_to(house.plan()) == {long.number: 10, short.number: 6}


def test_a_beginning_that_is_cached_is_not_computed_again() -> None:
    house = House()
    one = house.waits(11, cached=[3, 4])
    plan = house.plan()
    assert plan.admitted[0].found == [3, 4]
    assert given_to(plan) == {one.number: 3}
    assert plan.admitted[0].cost == 3


def test_when_blocks_are_short_the_last_admitted_of_the_lowest_priority_gives_its_own() -> None:
    house = House(blocks=6)
    first = house.runs(9, 8)
    urgent = house.runs(9, 8, rank=-1)
    last = house.runs(9, 8)
    plan = house.plan()
    assert plan.preempted == [last]
    assert given_to(plan) == {urgent.number: 1, first.number: 1}


def test_nobody_is_admitted_into_blocks_that_others_were_promised() -> None:
    house = House(blocks=10, limits=Limits(step_tokens=8, sequences_max=4, long_share=1.0))
    house.runs(30, 0)
    house.waits(9)
    assert not house.plan().admitted


def test_nobody_overtakes_one_that_waits_for_blocks() -> None:
    house = House(blocks=10)
    house.runs(20, 19)
    house.waits(30)
    house.waits(2)
    assert not house.plan().admitted


def test_a_better_rank_makes_way_for_itself() -> None:
    house = House(blocks=7)
    first, second = house.runs(9, 8), house.runs(9, 8)
    urgent = house.waits(12, rank=-1)
    plan = house.plan()
    assert plan.preempted == [second]
    assert [one.generation for one in plan.admitted] == [urgent]
    assert first.number in given_to(plan)
    house.lines.clear()
    house.waits(12)
    assert not house.plan().preempted, "an equal one waits"


def test_who_was_preempted_comes_before_who_is_new_and_long_waiting_beats_priority() -> None:
    house = House(limits=Limits(step_tokens=16, sequences_max=1))
    new = house.waits(3)
    old = house.waits(3, kind=PREEMPTED)
    assert house.plan().admitted[0].generation is old
    house.lines.clear()
    patient = house.waits(3, rank=2)
    urgent = house.waits(3, rank=0, queued_ns=3 * RANK_AGE_NS)
    assert house.plan(now_ns=RANK_AGE_NS).admitted[0].generation is urgent
    assert house.plan(now_ns=3 * RANK_AGE_NS).admitted[0].generation is patient
    assert new is not patient


def test_tenants_take_turns_by_what_they_were_served_for_their_weight() -> None:
    house = House(blocks=1000, limits=Limits(step_tokens=512, sequences_max=64), weights={"b": 3.0})
    for tenant in "ab":
        for _ in range(40):
            house.waits(10, tenant=tenant)
    plan = house.plan()
    of_a = sum(one.generation.tenant == "a" for one in plan.admitted)
    of_b = sum(one.generation.tenant == "b" for one in plan.admitted)
    assert (of_a, of_b) in {(11, 40), (12, 40), (13, 39), (12, 39)}


def test_prompts_whose_every_logprob_is_wanted_are_read_in_small_pieces() -> None:
    house = House(limits=Limits(step_tokens=512, sequences_max=4))
    one, other = (house.runs(300, 0, wants_prompt_logits=True) for _ in range(2))
    assert given_to(house.plan()) == {one.number: 64}
    assert other.number not in given_to(house.plan())


@given(st.data())
@settings(max_examples=300)
def test_whatever_the_state_the_plan_can_be_carried_out_and_the_first_goes_on(data: st.DataObject) -> None:
    draw = data.draw
    step_tokens = draw(st.integers(2, 24))
    limits = Limits(
        step_tokens=step_tokens,
        sequences_max=draw(st.integers(1, min(6, step_tokens - 1))),
        long_share=draw(st.sampled_from([0.2, 0.5, 1.0])),
    )
    blocks = draw(st.integers(4, 24))
    house = House(blocks, limits)
    ends: dict[int, int] = {}
    for _ in range(draw(st.integers(0, limits.sequences_max))):
        known = draw(st.integers(1, min(20, blocks * SIZE)))
        computed = draw(st.integers(0, known - 1))
        free = house.refs.count(0)
        donor = draw(st.sampled_from(house.running)) if house.running and draw(st.booleans()) else None
        rank = draw(st.integers(0, 2))
        if donor is not None and 0 < donor.computed < blocks * SIZE:
            one = house.runs(donor.computed + 1, donor.computed, shared=donor.blocks, rank=rank)
            one.shares_tail = donor.shares_tail = bool(donor.computed % SIZE)
        elif blocks_for(computed, SIZE) <= free:
            one = house.runs(known, computed, rank=rank)
        else:
            continue
        ends[one.number] = draw(st.integers(one.known, blocks * SIZE))
    for _ in range(draw(st.integers(0, 6))):
        known = draw(st.integers(1, min(20, blocks * SIZE)))
        donors = [one.blocks[: one.computed // SIZE] for one in house.running if one.computed > SIZE]
        cached = draw(st.sampled_from(donors))[: (known - 1) // SIZE] if donors and draw(st.booleans()) else []
        one = house.waits(
            known,
            kind=draw(st.sampled_from([NEW, PREEMPTED])),
            cached=cached,
            tenant=draw(st.sampled_from("ab")),
            rank=draw(st.integers(0, 2)),
            wants_prompt_logits=draw(st.booleans()) and not cached,
        )
        ends[one.number] = draw(st.integers(known, blocks * SIZE))
    steps = 0
    while house.running or house.lines:
        steps += 1
        assert steps < 3000, "everyone gets an end"
        first = house.running[0] if house.running else None
        order = list(house.running)
        plan = house.plan()
        gone = list(plan.preempted)
        assert gone == order[len(order) - len(gone) :][::-1], "only the last in order are preempted"
        rows = given_to(plan)
        assert sum(rows.values()) + plan.spare_rows <= limits.step_tokens
        assert len(plan.rows) == len(rows), "rows of a generation stand together"
        if first is not None and first not in gone:
            assert rows[first.number] >= 1
        if first is not None and first in gone:
            assert plan.admitted
            assert plan.admitted[0].rank < first.rank, "the first gives way to better ranks only"
        house.carry_out(plan)
        assert house.refs.count(0) == plan.spare_blocks
        assert len(house.running) <= limits.sequences_max
        assert house.running
        for one in list(house.running):
            if one.known > ends[one.number]:
                house.running.remove(one)
                for block in one.blocks:
                    house.refs[block] -= 1
        house.cached.clear()
        counted = [0] * blocks
        for one in house.running:
            for block in one.blocks:
                counted[block] += 1
        assert counted == house.refs


def test_what_can_never_fit_is_known_beforehand() -> None:
    assert fits(16, 4, 4)
    assert not fits(17, 4, 4)
