"""What leaves together: decisions at a given time."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.batcher import NOBODY, Limits, Run, Wait, decide
from farthing.batching.row_times import RowTimes
from farthing.batching.sequence_batcher import SequenceRules, decide_batch

DIRECT = SequenceRules(limits=Limits(rows_max=4), slots=4, idle_ns=1, is_direct=True)
PATIENT = SequenceRules(limits=Limits(rows_max=4), slots=4, idle_ns=1, is_direct=True, fill_min=0.75, fill_delay_ns=100)
OLDEST = SequenceRules(
    limits=Limits(rows_max=4, preferred_rows=(2,), delay_ns_max=100), slots=8, idle_ns=1, is_direct=False
)


def decided(rules: SequenceRules, *ready_ns: int, now_ns: int = 0) -> Run | Wait | None:
    return decide_batch(ready_ns, rules, RowTimes(), NOBODY, now_ns)


def test_nothing_ready_is_nothing_to_do() -> None:
    assert decided(DIRECT) is decided(OLDEST) is None


def test_direct_runs_whoever_is_ready_at_once() -> None:
    assert decided(DIRECT, 0) == Run(1)


def test_direct_waits_for_the_share_of_its_slots_it_was_told_to_but_not_for_ever() -> None:
    assert decided(PATIENT, 0, 10, now_ns=50) == Wait(100)
    assert decided(PATIENT, 0, 10, 50, now_ns=50) == Run(3)
    assert decided(PATIENT, 0, 10, now_ns=100) == Run(2)


def test_oldest_fills_a_batch_as_the_dynamic_batcher_does() -> None:
    assert decided(OLDEST, 0, now_ns=50) == Wait(100)
    assert decided(OLDEST, 0, 10, now_ns=50) == Run(2)
    assert decided(OLDEST, 0, now_ns=100) == Run(1)


def test_a_model_without_batches_runs_one_request_at_a_time() -> None:
    alone = SequenceRules(limits=Limits(rows_max=0), slots=8, idle_ns=1, is_direct=False)
    assert decided(alone, 0, 0, 0) == Run(1)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=4).map(sorted),
    st.floats(0, 1),
    st.integers(0, 500),
    st.integers(0, 3000),
)
def test_direct_never_waits_past_its_delay_and_always_runs_all_who_are_ready(
    ready_ns: list[int], fill_min: float, delay_ns: int, now_ns: int
) -> None:
    rules = SequenceRules(
        limits=Limits(rows_max=4), slots=4, idle_ns=1, is_direct=True, fill_min=fill_min, fill_delay_ns=delay_ns
    )
    match decided(rules, *ready_ns, now_ns=now_ns):
        case Run(requests):
            assert requests == len(ready_ns)
        case Wait(until_ns):
            assert now_ns < until_ns == ready_ns[0] + delay_ns
            assert isinstance(decided(rules, *ready_ns, now_ns=until_ns), Run)
        case None:
            raise AssertionError


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9).map(sorted), st.integers(0, 3000))
def test_oldest_decides_what_the_dynamic_batcher_would_for_as_many_lone_rows(ready_ns: list[int], now_ns: int) -> None:
    same = decide([1] * len(ready_ns), ready_ns, OLDEST.limits, RowTimes(), NOBODY, now_ns)
    assert decided(OLDEST, *ready_ns, now_ns=now_ns) == same
