"""Who may start beside frames that are due: cases, and what holds in all of them."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.batcher import Run, Wait
from farthing.batching.frames import TIMER_NS
from farthing.batching.right_of_way import (
    OTHERS_SHARE,
    UNTIL_WOKEN,
    Claim,
    Underway,
    block_ns,
    decide,
    owed_ns,
    slack_ns,
)

MS = 1_000_000


def ask(
    *rows: int,
    due_ms: float = 0,
    others: tuple[Claim, ...] = (),
    running: tuple[Underway, ...] = (),
    block_ms: float = 40,
    owed_ms: float = 0,
    order: int = 5,
) -> Run | Wait:
    """Rows take 10 ms each; it is 1 s past."""
    return decide(
        rows,
        Claim(int(due_ms * MS), 10 * MS, order),
        lambda total: total * 10 * MS,
        others,
        running,
        block_ns=int(block_ms * MS),
        owed_ns=int(owed_ms * MS),
        now_ns=1000 * MS,
    )


def until(end_ms: float, *, is_due: bool = False) -> Underway:
    return Underway(int(end_ms * MS), int(end_ms * MS) + 1000 * MS, is_due)


FRAME = Claim(1100 * MS, 10 * MS, 9)
EARLIER = Claim(0, 10 * MS, 1)


def test_alone_everything_starts() -> None:
    assert ask(1, 1, due_ms=1100) == Run(2)
    assert ask(1, 1) == Run(2)


def test_what_has_no_deadline_lets_a_frame_pass_that_waits_or_runs() -> None:
    assert ask(1, others=(FRAME,)) == UNTIL_WOKEN
    assert ask(1, running=(until(1010, is_due=True),)) == Wait(2010 * MS), "unless that one hangs"


def test_what_has_no_deadline_is_cut_to_the_time_that_frames_have_to_spare() -> None:
    assert ask(1, 1, 1, 1, 1, block_ms=30) == Run(3)
    assert ask(1, 1, 1, running=(until(1010),), block_ms=30) == Run(2), "what is left of another counts"
    assert ask(1, running=(until(1025),), block_ms=30) == UNTIL_WOKEN


def test_what_takes_longer_than_there_is_to_spare_still_runs_when_nothing_else_does() -> None:
    assert ask(8, 8, block_ms=30) == Run(1)


def test_who_came_first_goes_first() -> None:
    assert ask(1, others=(EARLIER,)) == UNTIL_WOKEN
    assert ask(1, others=(Claim(0, 10 * MS, 7),)) == Run(1)


def test_a_frame_waits_for_a_batch_under_way_but_not_beyond_its_last_moment() -> None:
    assert ask(1, due_ms=1100, running=(until(1020),)) == Wait(1090 * MS - TIMER_NS)
    assert ask(1, due_ms=1010, running=(until(1020),)) == Run(1)


def test_the_earliest_deadline_goes_first() -> None:
    assert ask(1, due_ms=1200, others=(FRAME,)) == Wait(1190 * MS - TIMER_NS)
    assert ask(1, due_ms=1050, others=(FRAME,)) == Run(1)


def test_what_frames_owe_to_those_who_waited_is_paid_in_between() -> None:
    assert ask(1, 1, 1, others=(FRAME,), owed_ms=25) == Run(2)
    assert ask(1, due_ms=1100, others=(EARLIER,), owed_ms=9) == Run(1)
    assert ask(1, due_ms=1100, others=(EARLIER,), owed_ms=10) == Wait(1090 * MS - TIMER_NS)


def test_a_batch_that_hangs_holds_nobody_up() -> None:
    assert ask(1, running=(Underway(500 * MS, 999 * MS, True),)) == Run(1)
    assert ask(1, due_ms=1100, running=(Underway(500 * MS, 999 * MS, False),)) == Run(1)


def test_frames_leave_their_share_to_others() -> None:
    assert owed_ns(900) == 100
    assert abs(owed_ns(10**9) / (10**9 + owed_ns(10**9)) - OTHERS_SHARE) < 1e-6
    assert slack_ns(100, 20, 0) == 80
    assert slack_ns(100, 20, 40) == 40, "then a newer one is there"
    assert block_ns([80, 40]) == 20
    assert block_ns([-5]) == block_ns([]) == 0


CLAIMS = st.builds(
    Claim, st.sampled_from([0, 0, 1010 * MS, 1050 * MS, 1500 * MS]), st.integers(1, 50 * MS), st.integers(1, 4)
)
UNDERWAY = st.builds(Underway, st.integers(900 * MS, 1200 * MS), st.sampled_from([990 * MS, 2000 * MS]), st.booleans())


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.sampled_from([0, 900, 1005, 1040, 1100, 3000]),
    st.lists(CLAIMS, max_size=4),
    st.lists(UNDERWAY, max_size=3),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_nobody_waits_for_nothing(
    rows: list[int], due_ms: int, others: list[Claim], running: list[Underway], block_ms: int, owed_ms: int
) -> None:
    answer = ask(*rows, due_ms=due_ms, others=tuple(others), running=tuple(running), block_ms=block_ms, owed_ms=owed_ms)
    if isinstance(answer, Run):
        assert 1 <= answer.requests <= len(rows)
        return
    assert others or running, "there is somebody to wait for"
    if due_ms:
        assert 1000 * MS < answer.until_ns <= due_ms * MS
    if not others:
        assert any(one.given_up_ns > 1000 * MS for one in running)
