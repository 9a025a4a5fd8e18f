from hypothesis import given
from hypothesis import strategies as st

from farthing.telemetry.watchdog import Hung, Running, progress

SECOND = 1_000_000_000
running = st.lists(st.builds(Running, st.sampled_from(["a", "b", "c"]), st.integers(0, 100)))


def test_an_idle_server_is_getting_somewhere() -> None:
    assert progress(10**18, [], 30 * SECOND) is None


def test_a_batch_may_run_up_to_its_limit_and_no_longer() -> None:
    work = [Running("model `a` version 1", 5 * SECOND)]
    assert progress(35 * SECOND, work, 30 * SECOND) is None
    assert progress(35 * SECOND + 1, work, 30 * SECOND) == Hung("model `a` version 1", 30.000000001)


def test_the_one_that_hangs_longest_is_named_with_its_seconds() -> None:
    work = [Running("model `a` version 1", 50 * SECOND), Running("model `b` version 2", 10 * SECOND)]
    hung = progress(100 * SECOND, work, 30 * SECOND)
    assert str(hung) == "model `b` version 2 has been running one batch for 90.0 s"


def test_without_a_limit_nothing_ever_hangs() -> None:
    assert progress(10**18, [Running("a", 0)], 0) is None


@given(running, st.integers(100, 200), st.integers(1, 100))
def test_something_hangs_exactly_when_some_batch_is_over_the_limit(
    work: list[Running], now_ns: int, limit_ns: int
) -> None:
    assert (progress(now_ns, work, limit_ns) is not None) == any(now_ns - one.started_ns > limit_ns for one in work)
