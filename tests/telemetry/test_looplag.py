import asyncio
from collections.abc import Callable
from typing import cast

from farthing.telemetry.clock import ManualClock
from farthing.telemetry.looplag import LoopLag


class TurnedLoop:
    """A loop whose timers fire when the test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., None], tuple[object, ...]]] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *arguments: object) -> asyncio.TimerHandle:
        self.timers.append((delay_s, callback, arguments))
        return cast("asyncio.TimerHandle", self)

    def cancel(self) -> None:
        self.timers.clear()

    def fire(self) -> None:
        _, callback, arguments = self.timers.pop(0)
        callback(*arguments)


def test_the_lag_is_how_much_later_than_asked_the_loop_came_round() -> None:
    clock, loop = ManualClock(), TurnedLoop()
    lag = LoopLag(clock, interval_s=0.25)
    lag.start(cast("asyncio.AbstractEventLoop", loop))
    clock.advance(ms=250)
    loop.fire()
    clock.advance(ms=250 + 30)
    loop.fire()
    clock.advance(ms=249)
    loop.fire()
    assert lag.histogram.total_ns == 30_000_000
    assert sum(lag.histogram.buckets) == 3
    assert lag.histogram.buckets[0] == 2
    lag.stop()
    lag.stop()
    assert loop.timers == []


async def test_a_real_loop_is_looked_at() -> None:
    lag = LoopLag(interval_s=0.0)
    lag.start(asyncio.get_running_loop())
    while sum(lag.histogram.buckets) < 3:  # noqa: ASYNC110 (turns the loop; nothing could set an event)
        await asyncio.sleep(0)
    lag.stop()
