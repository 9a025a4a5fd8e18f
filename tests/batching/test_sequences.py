"""Who holds a slot, who waits for one, whose request is next: examples, and properties over any history."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farthing.batching.queue import ENDED, FIXED_SHAPES, RUNNING, WAITING
from farthing.batching.sequence import SequenceId, SequenceWaiter
from farthing.batching.sequences import Sequences
from farthing.types.errors import InvalidInput, Overloaded
from farthing.types.requests import InferRequest

S = 1_000_000_000


def table(*, instances: int = 1, slots: int = 2, idle_ns: int = S, requests_max: int = 100) -> Sequences:
    return Sequences(model="m", instances=instances, slots=slots, idle_ns=idle_ns, requests_max=requests_max)


def waiter(
    sequence_id: SequenceId, flags: str = "", *, now_ns: int = 0, timeout_us: int = 0, signature: object = FIXED_SHAPES
) -> SequenceWaiter:
    """A request; `flags` holds "s" for START, "e" for END, "i" for one that is all of its sequence."""
    return SequenceWaiter(
        InferRequest(model_name="m", inputs={}, timeout_us=timeout_us),
        {},
        1,
        signature,
        now_ns,
        lambda answer: None,
        sequence_id=sequence_id,
        is_start="s" in flags,
        is_end="e" in flags,
        is_iterative="i" in flags,
    )


def add(sequences: Sequences, *ones: tuple[SequenceId, str], now_ns: int = 0) -> list[SequenceWaiter]:
    made = [waiter(sequence_id, flags, now_ns=now_ns) for sequence_id, flags in ones]
    for one in made:
        sequences.add(one)
        sequences.check_integrity()
    return made


def run(sequences: Sequences, instance: int = 0, now_ns: int = 0, most: int = 100) -> list[SequenceWaiter]:
    """Runs what may run, at once."""
    ready, _ = sequences.runnable(instance, most)
    sequences.take(ready)
    sequences.finished(ready, now_ns)
    sequences.check_integrity()
    return ready


def test_requests_of_one_sequence_run_one_after_the_other_in_order() -> None:
    sequences = table()
    made = add(sequences, (1, "s"), (1, ""), (1, "e"))
    assert [run(sequences) for _ in range(4)] == [[made[0]], [made[1]], [made[2]], []]
    assert sequences.sequences == 0


def test_a_request_that_runs_holds_back_the_next_of_its_sequence() -> None:
    sequences = table()
    first, _ = add(sequences, (1, "s"), (1, ""))
    sequences.take([first])
    assert sequences.runnable(0, 9) == ([], [])


def test_different_sequences_may_share_a_run() -> None:
    sequences = table(slots=3)
    made = add(sequences, (1, "s"), ("1", "s"), (2, "s"))
    assert run(sequences) == made


def test_requests_of_other_shapes_wait_for_the_next_run() -> None:
    sequences = table(slots=3)
    a, b, c = waiter(1, "s", signature="a"), waiter(2, "s", signature="b"), waiter(3, "s", signature="a")
    for one in (a, b, c):
        sequences.add(one)
    assert run(sequences) == [a, c]
    assert run(sequences) == [b]


def test_sequences_whose_states_have_other_shapes_do_not_share_a_run() -> None:
    sequences = table()
    a, b = add(sequences, (1, "s"), (2, "s"))
    a.sequence.state_shapes = ((1, 3),)
    assert sequences.runnable(0, 9)[0] == [a]
    b.sequence.state_shapes = ((1, 3),)
    assert sequences.runnable(0, 9)[0] == [a, b]


@pytest.mark.parametrize("flags", ["", "e"])
def test_a_sequence_that_never_started_cannot_be_continued(flags: str) -> None:
    told = "inference request for sequence 7 to model 'm' must specify the START flag on the first request"
    with pytest.raises(InvalidInput, match=told):
        table().add(waiter(7, flags))


def test_a_sequence_whose_end_is_queued_takes_no_more_requests() -> None:
    sequences = table()
    add(sequences, (7, "s"), (7, "e"))
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        sequences.add(waiter(7))


def test_a_sequence_without_a_slot_waits_until_another_ends() -> None:
    sequences = table(slots=1)
    a, b, c = add(sequences, (1, "s"), (2, "s"), (3, "s"))
    assert run(sequences) == [a]
    assert run(sequences) == []
    assert (sequences.active, sequences.backlog) == (1, 2)
    (end,) = add(sequences, (1, "e"))
    assert run(sequences) == [end]
    assert run(sequences) == [b]
    sequences.end_idle(S)
    assert run(sequences) == [c]


def test_a_new_sequence_goes_to_the_instance_that_holds_the_fewest() -> None:
    sequences = table(instances=2, slots=2)
    made = add(sequences, *((number, "s") for number in range(1, 5)))
    assert [(one.sequence.instance, one.sequence.slot) for one in made] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_the_lowest_free_slot_is_taken_again_so_that_direct_batches_stay_short() -> None:
    sequences = table(slots=4)
    made = add(sequences, (1, "s"), (2, "s"), (3, "s"))
    assert [one.sequence.slot for one in made] == [0, 1, 2]
    add(sequences, (1, "e"), (2, "e"))
    run(sequences)
    run(sequences)
    assert [one.sequence.slot for one in add(sequences, (4, "s"), (5, "s"), (6, "s"))] == [0, 1, 3]


def test_more_than_the_backlog_holds_is_turned_away_and_changes_nothing() -> None:
    sequences = table(slots=1, requests_max=2)
    add(sequences, (1, "s"), (2, "s"), (3, "s"))
    for one in (waiter(4, "s"), waiter(2), waiter(3, "s"), waiter(1, "s")):
        with pytest.raises(Overloaded, match="2 requests of sequences wait for model `m` to get a slot") as full:
            sequences.add(one)
        assert full.value.retry_after_s
        sequences.check_integrity()


def test_a_full_backlog_does_not_turn_away_those_who_could_make_room() -> None:
    sequences = table(slots=1, requests_max=2)
    first, second, third = add(sequences, (1, "s"), (2, "s"), (3, "s"))
    assert run(sequences) == [first]
    (end,) = add(sequences, (1, "e"))
    assert [run(sequences) for _ in range(2)] == [[end], [second]]
    assert third.state == WAITING


def test_those_with_a_slot_have_a_bound_too() -> None:
    sequences = table(slots=2, requests_max=2)
    add(sequences, (1, "s"), (1, ""))
    for one in (waiter(1), waiter(2, "s")):
        with pytest.raises(Overloaded, match="2 requests of sequences wait for model `m`\n"):
            sequences.add(one)
        sequences.check_integrity()


def test_a_sequence_ends_once_nothing_came_for_too_long_counted_from_its_last_answer() -> None:
    sequences = table(idle_ns=S)
    add(sequences, (1, "s"))
    run(sequences, now_ns=5 * S)
    assert sequences.next_deadline_ns() == 6 * S
    assert sequences.end_idle(6 * S - 1) == 0
    assert sequences.end_idle(6 * S) == 1
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        sequences.add(waiter(1))


def test_a_sequence_that_waits_or_runs_is_never_idle() -> None:
    sequences = table(slots=1)
    running, _ = add(sequences, (1, "s"), (2, "s"))
    sequences.take([running])
    assert sequences.next_deadline_ns() == 0
    assert sequences.end_idle(1000 * S) == 0


def test_starting_over_leaves_the_old_requests_their_state_and_the_slot_stays() -> None:
    sequences = table(slots=1)
    made = add(sequences, (1, "s"), (1, ""), (2, "s"), (1, "s"), (1, "e"))
    assert made[0].sequence is made[1].sequence is not made[3].sequence is made[4].sequence
    assert [run(sequences)[0] for _ in range(5)] == [made[0], made[1], made[3], made[4], made[2]]


def test_starting_over_at_rest_begins_at_once() -> None:
    sequences = table(slots=1)
    add(sequences, (1, "s"), (2, "s"))
    run(sequences)
    (again,) = add(sequences, (1, "s"))
    assert run(sequences) == [again]


def test_an_id_used_again_after_its_end_waits_its_turn_like_any_other() -> None:
    sequences = table(slots=2)
    made = add(sequences, (1, "se"), (1, "s"), (2, "s"), (3, "s"))
    assert sequences.runnable(0, 9)[0] == [made[0], made[2]], "the second 1 must not run beside the first"
    run(sequences)
    assert run(sequences) == [made[3]]
    assert sequences.backlog == 1


def test_what_follows_a_start_that_never_ran_never_runs_either() -> None:
    sequences = table()
    start, middle, end = add(sequences, (1, "s"), (1, ""), (1, "e"))
    assert sequences.remove(start, 0)
    assert sequences.orphans() == [middle, end]
    assert sequences.orphans() == []
    assert {one.state for one in (start, middle, end)} == {ENDED}
    assert sequences.sequences == sequences.requests == 0
    sequences.check_integrity()


def test_an_end_that_never_ran_ends_its_sequence_all_the_same() -> None:
    sequences = table()
    start, end = add(sequences, (1, "s"), (1, "e"))
    sequences.remove(end, 0)
    assert run(sequences) == [start]
    assert sequences.sequences == 0


def test_a_request_in_the_middle_that_left_is_as_if_it_had_never_come() -> None:
    sequences = table()
    add(sequences, (1, "s"))
    run(sequences)
    (middle,) = add(sequences, (1, ""), now_ns=S)
    sequences.remove(middle, 2 * S)
    assert sequences.next_deadline_ns() == 3 * S


def test_a_requests_own_timeout_takes_it_out() -> None:
    sequences = table(slots=1)
    add(sequences, (1, "s"))
    late = waiter(2, "s", timeout_us=1000)
    sequences.add(late)
    assert sequences.next_deadline_ns() == 1_000_000
    assert sequences.expired(999_999) == []
    assert sequences.expired(1_000_000) == [late]
    assert sequences.backlog == 0


def test_timeouts_of_those_who_ran_are_forgotten() -> None:
    sequences = table(idle_ns=1000 * S)
    sequences.add(waiter(1, "s"))
    for _ in range(2000):
        run(sequences)
        sequences.add(waiter(1, timeout_us=10**12))
        sequences.check_integrity()


def test_a_drain_hands_out_everyone_who_waits_and_ends_what_rests() -> None:
    sequences = table(slots=2)
    made = add(sequences, (1, "s"), (1, ""), (2, "s"), (3, "s"), (3, "s"))
    sequences.take([made[0]])
    assert set(sequences.drain()) == set(made[1:])
    assert sequences.sequences == 1
    sequences.finished([made[0]], 0)
    assert sequences.sequences == 0
    sequences.check_integrity()


def test_who_runs_again_comes_behind_all_that_are_ready() -> None:
    sequences = table(slots=3)
    made = add(sequences, (1, "si"), (2, "si"), (3, "si"))
    for first, second in ((0, 1), (2, 0), (1, 2)):
        ready, _ = sequences.runnable(0, 2)
        assert ready == [made[first], made[second]]
        sequences.take(ready)
        for one in ready:
            sequences.again(one, 0)
        sequences.check_integrity()
    assert not any(one.is_start for one in made)
    assert sequences.sequences == 3


def test_an_iterative_sequence_ends_with_its_request_and_its_slot_goes_on() -> None:
    sequences = table(slots=1)
    one, two = add(sequences, (1, "si"), (2, "si"))
    sequences.take([one])
    sequences.again(one, 0)
    with pytest.raises(InvalidInput, match="START"):
        sequences.add(waiter(1, "i"))
    assert run(sequences) == [one]
    assert run(sequences) == [two]
    assert sequences.sequences == 0


def test_one_that_is_held_runs_again_when_it_is_let_go_on() -> None:
    sequences = table()
    [one] = add(sequences, (1, "si"))
    sequences.take([one])
    sequences.again(one, 0, is_held=True)
    sequences.check_integrity()
    assert not sequences.has_ready(0)
    sequences.go_on(one, 5)
    assert sequences.runnable(0, 1) == ([one], [5])


def test_a_timeout_counts_between_runs_too_and_has_one_place_however_many_runs_there_are() -> None:
    sequences = table()
    one = waiter(1, "si", timeout_us=1000)
    sequences.add(one)
    for at in range(1000):
        assert not sequences.expired(at)
        sequences.take([one])
        sequences.again(one, at)
        sequences.check_integrity()
    assert sequences.expired(1_000_000) == [one]
    assert sequences.sequences == 0


def test_in_order_nobody_runs_before_whoever_has_been_ready_for_longer() -> None:
    for is_in_order, first in ((False, [0, 2]), (True, [0])):
        sequences = Sequences(model="m", instances=1, slots=3, idle_ns=S, requests_max=9, is_in_order=is_in_order)
        made = [waiter(number, "s", signature=shape) for number, shape in ((1, "a"), (2, "b"), (3, "a"))]
        for one in made:
            sequences.add(one)
        assert run(sequences) == [made[place] for place in first]


def test_ids_given_to_those_without_are_nobodys() -> None:
    sequences = table(slots=9)
    add(sequences, (2, "s"), (3, "s"))
    assert [sequences.new_id() for _ in range(3)] == [1, 4, 5]


class AnyHistory(RuleBasedStateMachine):
    """Requests come, run, leave and time out in any order; a model of each id's series says what must hold."""

    @initialize(
        instances=st.integers(1, 3), slots=st.integers(1, 3), requests_max=st.integers(1, 12), most=st.integers(1, 4)
    )
    def begin(self, instances: int, slots: int, requests_max: int, most: int) -> None:
        self.sequences = table(instances=instances, slots=slots, requests_max=requests_max)
        self.instances, self.most, self.requests_max = instances, most, requests_max
        self.slots = instances * slots
        self.now_ns = 0
        self.running: dict[int, list[SequenceWaiter]] = {}
        self.sent: list[SequenceWaiter] = []
        self.ran: list[SequenceWaiter] = []
        self.orphans: list[SequenceWaiter] = []

    @rule(sequence_id=st.integers(1, 5), flags=st.sampled_from(["s", "", "", "", "e", "se"]), timed=st.booleans())
    def comes(self, sequence_id: int, flags: str, timed: bool) -> None:
        one = waiter(sequence_id, flags, now_ns=self.now_ns, timeout_us=500_000 if timed else 0)
        waiting = self.sequences.requests
        try:
            self.sequences.add(one)
        except Overloaded:
            assert waiting >= self.requests_max
        except InvalidInput:
            assert not one.is_start
        else:
            self.sent.append(one)

    @rule(sequence_id=st.integers(11, 13), timed=st.booleans())
    def an_iterative_one_comes(self, sequence_id: int, timed: bool) -> None:
        one = waiter(sequence_id, "si", now_ns=self.now_ns, timeout_us=500_000 if timed else 0)
        try:
            self.sequences.add(one)
        except Overloaded:
            assert self.sequences.requests >= self.requests_max
        else:
            self.sent.append(one)

    @rule(data=st.data())
    @precondition(lambda self: any(one.is_held for one in self.sent))
    def goes_on(self, data: st.DataObject) -> None:
        self.sequences.go_on(data.draw(st.sampled_from([one for one in self.sent if one.is_held])), self.now_ns)

    @rule(instance=st.integers(0, 2))
    def leaves_for_the_engine(self, instance: int) -> None:
        if instance >= self.instances or instance in self.running:
            return
        ready, since = self.sequences.runnable(instance, self.most)
        assert since == sorted(since), "who could run first is first"
        if not ready:
            return
        self.sequences.take(ready)
        for one in ready:
            assert one.sequence.instance == instance, "a sequence stays with its instance"
            others = [w for batch in self.running.values() for w in batch]
            assert all(other.sequence is not one.sequence for other in others)
            assert all(other.sequence_id != one.sequence_id for other in others), "one id, one request at a time"
        assert len({one.sequence.slot for one in ready}) == len(ready)
        self.running[instance] = ready

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def comes_back(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(self.running)))
        done = self.running.pop(instance)
        again = [one for one in done if one.is_iterative and data.draw(st.booleans())]
        for one in again:
            self.sequences.again(one, self.now_ns, is_held=data.draw(st.booleans()))
        done = [one for one in done if one not in again]
        self.sequences.finished(done, self.now_ns)
        self.ran += done
        self._look_at_the_clock()  # as the loop does after each run: one's time may have run out while it ran

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.sent))
        was_waiting = one.state == WAITING
        assert self.sequences.remove(one, self.now_ns) == was_waiting
        self.orphans += self.sequences.orphans()

    @rule(ms=st.sampled_from([1, 200, 600, 1200]))
    def time_passes(self, ms: int) -> None:
        self.now_ns += ms * 1_000_000
        before = {one.sequence for one in self.sent if one.state in (WAITING, RUNNING)}
        self._look_at_the_clock()
        assert all(one.sequence in before for one in self.sent if one.state == WAITING)

    def _look_at_the_clock(self) -> None:
        self.sequences.expired(self.now_ns)
        self.orphans += self.sequences.orphans()
        self.sequences.end_idle(self.now_ns)

    @invariant()
    def is_sound(self) -> None:
        sequences = self.sequences
        sequences.check_integrity()
        assert sequences.active <= self.slots
        due_ns = sequences.next_deadline_ns()
        assert not due_ns or due_ns > self.now_ns

    @invariant()
    def order_is_kept(self) -> None:
        """Of each series those that ran did so in the order they came, the START first."""
        by_series: dict[int, list[int]] = {}
        place = {id(one): number for number, one in enumerate(self.sent)}
        for one in self.ran:
            by_series.setdefault(id(one.sequence), []).append(place[id(one)])
        assert all(places == sorted(places) for places in by_series.values())
        firsts = [self.sent[places[0]] for places in by_series.values()]
        assert all(first.is_start or first.runs for first in firsts)

    def teardown(self) -> None:
        """Nobody starves: when all sequences end or fall silent, everyone who waits is served in the end."""
        if not hasattr(self, "sequences"):
            return
        while self.running:
            self.sequences.finished(self.running.popitem()[1], self.now_ns)
        for one in self.sent:
            if one.is_held:
                self.sequences.go_on(one, self.now_ns)
        for _ in range(10 * (len(self.sent) + 1)):
            for instance in range(self.instances):
                ready, _ = self.sequences.runnable(instance, self.most)
                self.sequences.take(ready)
                self.sequences.finished(ready, self.now_ns)
            self.now_ns += S
            self.sequences.end_idle(self.now_ns)
        assert self.sequences.requests == self.sequences.sequences == 0
        assert WAITING not in {one.state for one in self.sent}


TestAnyHistory: Callable[[], None] = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)  # type: ignore[attr-defined]
