"""Who is served in which order, and that the queue keeps no more than it must, whatever comes and goes."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tests.fakes import make_waiter

from farthing.batching.queue import ENDED, FIXED_SHAPES, RUNNING, SIGNATURE_ALONE, Policy, Queue, Waiter
from farthing.types.errors import Overloaded


def queue(**settings: Any) -> Queue:
    return Queue(model="m", **{"requests_max": 100, **settings})


def add(to: Queue, **waiter: Any) -> Waiter:
    made = make_waiter(**waiter)
    to.add(made)
    to.check_integrity()
    return made


def serve_all(from_: Queue, requests_max: int = 1) -> list[Waiter]:
    served = []
    while from_.requests:
        head = from_.head(requests_max)
        from_.take(head)
        from_.check_integrity()
        served += head
    return served


def test_first_come_first_served() -> None:
    waiting = queue()
    asked = [add(waiting, arrival_ns=n) for n in range(5)]
    assert serve_all(waiting) == asked


def test_more_urgent_levels_are_served_first() -> None:
    waiting = queue(levels=3, level_default=2)
    late, normal, beyond, urgent = (add(waiting, priority=priority) for priority in (3, 0, 9, 1))
    assert serve_all(waiting) == [urgent, normal, beyond, late]


def test_only_requests_of_one_signature_are_offered_together() -> None:
    waiting = queue()
    a1, b1, a2 = (add(waiting, signature=signature) for signature in ("a", "b", "a"))
    assert waiting.head(10) == [a1, a2]
    waiting.take([a1, a2])
    assert waiting.head(10) == [b1]


def test_less_urgent_requests_of_the_same_signature_may_ride_along() -> None:
    waiting = queue(levels=2, level_default=2)
    second, first = add(waiting, priority=2), add(waiting, priority=1)
    assert waiting.head(10) == [first, second]
    assert waiting.head(1) == [first]


def test_a_request_that_shares_with_nobody_is_offered_alone() -> None:
    waiting = queue()
    alone = add(waiting, signature=SIGNATURE_ALONE)
    add(waiting, signature=SIGNATURE_ALONE)
    assert waiting.head(10) == [alone]


def test_a_full_queue_says_so() -> None:
    waiting = queue(requests_max=2)
    add(waiting)
    add(waiting)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size: 2 requests wait for model `m`"):
        waiting.add(make_waiter())
    waiting.check_integrity()


def test_a_full_level_leaves_the_others_open() -> None:
    waiting = queue(levels=2, level_default=2, level_policies={1: Policy(requests_max=1)})
    add(waiting, priority=1)
    with pytest.raises(Overloaded):
        waiting.add(make_waiter(priority=1))
    add(waiting, priority=2)


def test_a_withdrawn_request_is_not_served() -> None:
    waiting = queue()
    first, second = add(waiting), add(waiting)
    assert waiting.remove(first)
    assert not waiting.remove(first), "only once"
    assert serve_all(waiting) == [second]
    assert not waiting.remove(second), "too late"
    assert second.state == RUNNING


def test_a_request_past_its_own_deadline_is_taken_out() -> None:
    waiting = queue()
    add(waiting, arrival_ns=0)
    late = add(waiting, arrival_ns=1000, timeout_us=5)
    assert waiting.next_deadline_ns() == 6000
    assert waiting.expired(5999) == []
    assert waiting.expired(6000) == [late]
    assert late.state == ENDED
    assert waiting.next_deadline_ns() == 0


def test_the_shorter_of_policy_and_request_counts_if_requests_may_say() -> None:
    assert Policy(timeout_ns=9000).deadline_ns(1000, 5) == 6000
    assert Policy(timeout_ns=4000).deadline_ns(1000, 5) == 5000
    assert Policy(timeout_ns=9000, may_override=False).deadline_ns(1000, 5) == 10_000
    assert Policy(may_override=False).deadline_ns(1000, 5) == 0
    assert Policy().deadline_ns(1000, 5) == 6000, "no policy is no limit, not a limit of nothing"


def test_a_delayed_request_is_served_after_all_punctual_ones_of_its_level() -> None:
    waiting = queue(levels=2, level_default=1, policy=Policy(timeout_ns=1000, is_delayed=True))
    late = add(waiting, arrival_ns=0, priority=1)
    punctual = add(waiting, arrival_ns=5000, priority=1)
    below = add(waiting, arrival_ns=5000, priority=2)
    assert waiting.expired(1500) == []
    waiting.check_integrity()
    assert serve_all(waiting) == [punctual, late, below]


def test_delayed_requests_still_share_a_batch() -> None:
    waiting = queue(policy=Policy(timeout_ns=1000, is_delayed=True))
    late = [add(waiting, arrival_ns=0) for _ in range(3)]
    other = add(waiting, arrival_ns=0, signature="other")
    waiting.expired(2000)
    assert waiting.head(10) == late
    assert waiting.head(2) == late[:2]
    waiting.take(late)
    assert waiting.head(10) == [other]


def test_rows_ahead_are_those_of_its_own_level_and_more_urgent_ones() -> None:
    waiting = queue(levels=3, level_default=2)
    for priority, rows in ((1, 1), (2, 10), (3, 100)):
        add(waiting, priority=priority, rows=rows)
    ahead = [waiting.rows_before(make_waiter(priority=priority)) for priority in (1, 2, 3, 0)]
    assert ahead == [1, 11, 111, 11]


def test_a_delayed_level_never_refuses() -> None:
    waiting = queue(levels=2, level_default=1, level_policies={2: Policy(timeout_ns=7000, is_delayed=True)})
    assert waiting.refused_after_ns(make_waiter(timeout_us=3)) == 3000
    assert waiting.refused_after_ns(make_waiter(timeout_us=3, priority=2)) == 0


def test_draining_takes_everyone_out_in_order() -> None:
    waiting = queue(levels=2, level_default=2)
    second, first = add(waiting, priority=2), add(waiting, priority=1)
    assert waiting.drain() == [first, second]
    assert waiting.requests == waiting.rows == 0
    waiting.check_integrity()


@pytest.mark.parametrize("has_deadline", [True, False])
def test_a_stuck_head_does_not_make_those_who_come_and_go_pile_up(has_deadline: bool) -> None:
    # A hung engine with clients that give up and try again: what check_integrity bounds would grow for ever.
    waiting = queue(requests_max=10, policy=Policy(timeout_ns=10**12 if has_deadline else 0, is_delayed=True))
    add(waiting)
    for n in range(3000):
        impatient = make_waiter(arrival_ns=n, signature=("length", n) if n % 2 else FIXED_SHAPES)
        waiting.add(impatient)
        waiting.remove(impatient)
    waiting.check_integrity()
    add(waiting, timeout_us=1)
    waiting.expired(10**13)
    for _ in range(3000):  # the same among the late
        impatient = make_waiter(timeout_us=1)
        waiting.add(impatient)
        waiting.expired(10**13)
        waiting.remove(impatient)
    waiting.check_integrity()


class QueueMachine(RuleBasedStateMachine):
    """Anything may happen in any order; a plain list that is sorted when asked says who is next."""

    waiters = Bundle("waiters")

    @initialize(
        levels=st.integers(0, 3),
        requests_max=st.integers(1, 30),
        delayed=st.sets(st.integers(0, 3)),
        timeout=st.sampled_from([0, 50]),
    )
    def begin(self, levels: int, requests_max: int, delayed: set[int], timeout: int) -> None:
        self.levels = levels
        self.delayed = delayed
        self.requests_max = requests_max
        self.timeout = timeout
        self.queue = Queue(
            model="m",
            requests_max=requests_max,
            levels=levels,
            level_default=1 if levels else 0,
            policy=Policy(timeout_ns=timeout),
            level_policies={n: Policy(timeout_ns=timeout, is_delayed=True) for n in delayed},
        )
        self.now = 0
        self.mine: list[Waiter] = []  # by arrival
        self.late: list[Waiter] = []  # in the order in which they became late

    def _level(self, waiter: Waiter) -> int:
        asked = waiter.request.priority
        return asked if 0 < asked <= self.levels else (1 if self.levels else 0)

    def _in_order(self) -> list[Waiter]:
        punctual = [waiter for waiter in self.mine if waiter not in self.late]
        return [
            waiter
            for level in range(self.levels + 1)
            for line in (punctual, self.late)
            for waiter in line
            if self._level(waiter) == level
        ]

    def _forget(self, gone: list[Waiter]) -> None:
        self.mine = [waiter for waiter in self.mine if waiter not in gone]
        self.late = [waiter for waiter in self.late if waiter not in gone]

    @rule(
        target=waiters,
        rows=st.integers(0, 5),
        signature=st.sampled_from([FIXED_SHAPES, "a", "b", SIGNATURE_ALONE]),
        priority=st.integers(0, 5),
        timeout_us=st.sampled_from([0, 0, 1]),
    )
    def add(self, rows: int, signature: str | None, priority: int, timeout_us: int) -> Waiter:
        waiter = make_waiter(
            rows=rows, arrival_ns=self.now, signature=signature, priority=priority, timeout_us=timeout_us
        )
        if len(self.mine) >= self.requests_max:
            with pytest.raises(Overloaded):
                self.queue.add(waiter)
            waiter.state = ENDED
        else:
            self.queue.add(waiter)
            self.mine.append(waiter)
        return waiter

    @rule(target=waiters, rows=st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def add_all(self, rows: list[int]) -> MultipleResults[Waiter]:
        if not self.queue.takes_at_once(len(rows)):
            assert self.levels or self.timeout or len(self.mine) + len(rows) > self.requests_max
            return multiple()
        added = [make_waiter(rows=own, arrival_ns=self.now, signature="a") for own in rows]
        self.queue.add_all(added)
        self.mine += added
        return multiple(*added)

    @rule(requests_max=st.integers(1, 6))
    def take(self, requests_max: int) -> None:
        head = self.queue.head(requests_max)
        order = self._in_order()
        assert head[:1] == order[:1]
        if head:
            signature = head[0].signature
            assert len(head) <= requests_max
            assert all(waiter.signature == signature for waiter in head)
            assert signature is not SIGNATURE_ALONE or len(head) == 1
            assert head == [waiter for waiter in order if waiter in head], "in order of service"
        self.queue.take(head)
        assert all(waiter.state == RUNNING for waiter in head)
        self._forget(head)

    @rule(waiter=consumes(waiters))
    def remove(self, waiter: Waiter) -> None:
        assert self.queue.remove(waiter) == (waiter in self.mine)
        self._forget([waiter])

    @rule(step=st.integers(0, 2000))
    def expire(self, step: int) -> None:
        self.now += step
        due = sorted(
            (w for w in self.mine if w not in self.late and w.deadline_ns and w.deadline_ns <= self.now),
            key=lambda waiter: waiter.deadline_ns,
        )
        assert self.queue.next_deadline_ns() == min(
            (w.deadline_ns for w in self.mine if w not in self.late and w.deadline_ns), default=0
        )
        gone = self.queue.expired(self.now)
        assert gone == [waiter for waiter in due if self._level(waiter) not in self.delayed]
        self.late += [waiter for waiter in due if self._level(waiter) in self.delayed]
        self._forget(gone)

    @rule()
    def drain(self) -> None:
        assert self.queue.drain() == self._in_order()
        self._forget(list(self.mine))

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "queue"):
            self.queue.check_integrity()
            assert self.queue.requests == len(self.mine)
            assert self.queue.rows == sum(waiter.rows for waiter in self.mine)


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
test_whatever_happens_the_queue_agrees_with_a_sorted_list = QueueMachine.TestCase
