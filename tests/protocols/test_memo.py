"""The bounded table of answers worked out before."""

from farthing.protocols.memo import Memo


def test_it_remembers_and_forgets_the_oldest_when_full() -> None:
    memo: Memo[int, str] = Memo(2)
    assert memo.get(1) is None
    assert memo.remember(1, "a") == "a"
    memo.remember(2, "b")
    memo.remember(3, "c")
    assert dict(memo) == {2: "b", 3: "c"}


def test_it_never_grows_beyond_its_bound() -> None:
    memo: Memo[int, int] = Memo(10)
    for number in range(1000):
        memo.remember(number, number)
        assert len(memo) <= 10
