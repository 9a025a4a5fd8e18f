"""Does a busy model reach its best rate by itself? Simulated clients against cost curves as they were measured."""

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from tests.fakes import Answered, FakeExecutable, make_loop, make_waiter

from farthing.batching.batcher import NOBODY, Callers, decide

MS = 1_000_000


CURVES: dict[str, Callable[[int], float]] = {
    "fixed cost": lambda rows: 10.0,
    "linear cost": lambda rows: 10.0 * rows,
    "MiniLM": lambda rows: 2.83 + 3.27 * rows,  # 6.1 ms for 1, 29 ms for 8 on two cores
    "EfficientNet": lambda rows: 5.1 + 5.9 * (rows - 1),  # 5.1 ms for 1, 46.4 ms for 8: batching costs
    "tiny": lambda rows: 0.005 + 0.0002 * rows,
    "falls off a cache": lambda rows: 4 + 0.2 * rows + (0.5 * (rows - 16) if rows > 16 else 0),
}


def closed_loop_rate(curve: str, clients: int, *, return_ns: int, seconds: float = 4.0, seed: int = 0) -> float:
    """Rows a second that so many clients reach, who send again `return_ns` after their answer, more or less."""
    chance = random.Random(seed)

    def cost_ns(rows: int) -> int:
        return int(CURVES[curve](rows) * MS * (1 + 0.01 * chance.random()))

    is_tiny = CURVES[curve](1) < 0.06
    loop, virtual, _ = make_loop(FakeExecutable(cost_ns), rows_max=1024, cost_ns=cost_ns, is_inline=is_tiny)
    seconds = seconds if not is_tiny else 0.05
    began = virtual.clock.now_ns()
    counted_from, end = began + int(0.4e9 * seconds), began + int(1e9 * seconds)
    answered = 0

    def send() -> None:
        loop.submit(make_waiter(arrival_ns=virtual.clock.now_ns(), done=done))

    def done(answer: Answered) -> None:
        nonlocal answered
        now = virtual.clock.now_ns()
        answered += now >= counted_from
        virtual.at(now + int(return_ns * chance.uniform(0.5, 1.5)), send)

    for _ in range(clients):
        virtual.at(began + chance.randrange(MS), send)
    virtual.run(until_ns=end)
    return answered / ((end - counted_from) / 1e9)


@pytest.mark.parametrize("clients", [2, 8, 16, 64])
@pytest.mark.parametrize("curve", CURVES)
def test_a_busy_model_reaches_95_percent_of_its_best_rate(curve: str, clients: int) -> None:
    # What so many clients can reach is the best of the curve up to as many rows, the way back and forth included.
    return_ns = 100_000 if CURVES[curve](1) > 1 else 1_000
    best = max(1e3 * rows / (CURVES[curve](rows) + return_ns / MS) for rows in range(1, clients + 1))
    if curve == "tiny":
        best = max(1e3 * rows / CURVES[curve](rows) for rows in range(1, 2))  # never waits: at least its own rate
    assert closed_loop_rate(curve, clients, return_ns=return_ns) >= 0.95 * best


@pytest.mark.parametrize("curve", CURVES)
def test_one_client_is_as_fast_as_the_model(curve: str) -> None:
    return_ns = 1_000
    best = 1e3 / (CURVES[curve](1) * 1.005 + return_ns / MS)
    assert closed_loop_rate(curve, 1, return_ns=return_ns) >= 0.98 * best


def open_loop_mean_ms(curve: str, load: float, *, requests: int = 4000, seed: int = 0) -> float:
    """Mean time to an answer for Poisson arrivals at this share of the model's best rate."""
    chance = random.Random(seed)

    def cost_ns(rows: int) -> int:
        return int(CURVES[curve](rows) * MS * (1 + 0.05 * chance.random()))

    loop, virtual, _ = make_loop(FakeExecutable(cost_ns), rows_max=64)
    best = max(1e3 * rows / CURVES[curve](rows) for rows in range(1, 65))
    spent_ns = 0

    def send() -> None:
        began = virtual.clock.now_ns()

        def done(answer: Answered) -> None:
            nonlocal spent_ns
            spent_ns += virtual.clock.now_ns() - began

        loop.submit(make_waiter(arrival_ns=began, done=done))

    due_ns = virtual.clock.now_ns()
    for _ in range(requests):
        due_ns += int(chance.expovariate(load * best) * 1e9)
        virtual.at(due_ns, send)
    virtual.run()
    return spent_ns / requests / MS


def never_waiting(rows: Any, arrivals: Any, limits: Any, times: Any, callers: Callers, now: int) -> Any:
    return decide(rows, arrivals, limits, times, NOBODY, now)


@pytest.mark.parametrize("load", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("curve", ["fixed cost", "linear cost", "MiniLM", "EfficientNet"])
def test_independent_arrivals_hardly_pay_for_waits_that_were_in_vain(curve: str, load: float) -> None:
    seeds = range(3)
    with mock.patch("farthing.batching.loop.decide", never_waiting):
        least = sum(open_loop_mean_ms(curve, load, seed=seed) for seed in seeds)
    assert sum(open_loop_mean_ms(curve, load, seed=seed) for seed in seeds) <= 1.06 * least
