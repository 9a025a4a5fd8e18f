import pytest

from farthing.telemetry.clock import Clock, ManualClock, MonotonicClock


def test_a_monotonic_clock_never_goes_back() -> None:
    clock: Clock = MonotonicClock()
    readings = [clock.now_ns() for _ in range(100)]
    assert readings == sorted(readings)


def test_a_manual_clock_stands_still_until_it_is_told_otherwise() -> None:
    clock = ManualClock(5)
    seen: Clock = clock
    assert seen.now_ns() == seen.now_ns() == 5
    assert clock.advance(s=1.5, ms=2, us=3, ns=4) == 1_502_003_009
    assert seen.now_ns() == 1_502_003_009


def test_a_manual_clock_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match="cannot go back by 1 ns"):
        ManualClock(10).advance(ns=-1)
