"""The life of a busy model in virtual time: whatever goes wrong, everybody gets one answer, and their own."""

import random

import numpy as np
import pytest
from tests.fakes import Answered, FakeExecutable, make_loop, make_waiter

from farthing.batching.batcher import Limits
from farthing.batching.queue import ENDED, FIXED_SHAPES, Policy, Queue, Waiter
from farthing.engines.contract import Answer, Batch, MemberAnswer
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.requests import InferResponse

MS = 1_000_000


class Life:
    """A seeded simulation: arrivals, deadlines, priorities, clients who leave, engines that fail, lie, dawdle."""

    def __init__(self, seed: int, events: int) -> None:
        self.chance = chance = random.Random(seed)
        self.events = events
        levels = chance.choice([0, 0, 3])
        timeout_ns = chance.choice([0, 0, 30 * MS])
        self.queue = Queue(
            model="fake",
            requests_max=chance.choice([5, 50, 500]),
            levels=levels,
            level_default=2 if levels else 0,
            policy=Policy(timeout_ns=timeout_ns, may_override=chance.random() < 0.5),
            level_policies={1: Policy(requests_max=10), 3: Policy(timeout_ns=5 * MS, is_delayed=True)}
            if levels
            else {},
        )
        rows_max = chance.choice([0, 4, 32])
        self.rows_max = rows_max
        delay_ns = chance.choice([None, None, 0, 3 * MS])
        preferred = (2, 4) if delay_ns is not None and rows_max else ()
        fixed_ns, row_ns = chance.choice([0, MS, 5 * MS]), chance.choice([10_000, MS])
        self.hung_at_most = chance.choice([0, 1])
        self.instances = chance.choice([1, 2, 3])
        self.is_pure = chance.random() < 0.5
        self.mean_gap_ns = chance.choice([200_000, MS, 4 * MS])

        def cost_ns(rows: int) -> int | None:
            if self.hung_at_most and chance.random() < 0.0005:
                self.hung_at_most = 0
                return None
            return int((fixed_ns + row_ns * rows) * chance.uniform(0.9, 1.5)) + 1

        self.loop, self.virtual, _ = make_loop(
            FakeExecutable(lambda rows: 1, is_pure=self.is_pure, answer=self.answer),
            rows_max=rows_max,
            instances=self.instances,
            limits=Limits(rows_max=rows_max, preferred_rows=preferred, delay_ns_max=delay_ns),
            queue=self.queue,
            cost_ns=cost_ns,
            is_inline=False,
        )
        self.expected: dict[int, Waiter] = {}  # submitted, neither answered nor withdrawn
        self.succeeded = self.failed = self.cancelled = self.refused = self.submitted = 0
        self.wrong: list[str] = []

    def answer(self, batch: Batch) -> Answer:
        dice = self.chance.random()
        x = batch.inputs["x"]
        if dice < 0.01:
            raise EngineFailed("bad luck")
        if dice < 0.02 and self.rows_max:
            return {"y": x[:-1]}
        if dice < 0.025:
            raise MemoryError
        if dice < 0.1 and not self.is_pure:
            answers: list[MemberAnswer | FarthingError] = []
            start = 0
            for member in batch.members:
                answers.append(MemberAnswer({"y": x[start : start + member.rows] * 2}))
                start += member.rows
            if dice < 0.05:
                answers[self.chance.randrange(len(answers))] = InvalidInput("one of you")
            if dice < 0.03:
                answers.pop()
            return answers
        if (x == -1).any():
            raise InvalidInput("poison")
        return {"y": x * 2}

    def arrive(self) -> None:
        chance = self.chance
        self.submitted += 1
        number = self.submitted
        rows = 1 if chance.random() < 0.7 or not self.rows_max else chance.randint(0, min(self.rows_max, 6))
        value = -1 if chance.random() < 0.005 else number

        def done(answer: Answered) -> None:
            if self.expected.pop(number, None) is None:
                self.wrong.append(f"{number} was not waiting for an answer")
            elif isinstance(answer, InferResponse):
                self.succeeded += 1
                if answer.outputs["y"].tolist() != [[np.float32(2 * value)]] * rows:
                    self.wrong.append(f"{number} got somebody else's rows")
            else:
                self.failed += 1
            if chance.random() < 0.02:  # a client that asks again from inside its answer
                self.arrive()

        waiter = make_waiter(
            value,
            rows=rows,
            arrival_ns=self.virtual.clock.now_ns(),
            signature=(chance.choice([FIXED_SHAPES, FIXED_SHAPES, "long"]) if rows and self.rows_max else None),
            priority=chance.randint(0, 4),
            timeout_us=chance.choice([0, 0, 0, 2_000, 20_000]),
            done=done,
        )
        self.expected[number] = waiter
        try:
            self.loop.submit(waiter)
        except (Overloaded, DeadlineExceeded, Unavailable):
            del self.expected[number]
            self.refused += 1
            return
        if chance.random() < 0.1:
            self.virtual.call_later(chance.expovariate(200), self.leave, number)

    def leave(self, number: int) -> None:
        waiter = self.expected.pop(number, None)
        if waiter is not None:
            self.loop.cancel(waiter)
            assert waiter.state == ENDED
            self.cancelled += 1

    def arrivals(self) -> None:
        if self.submitted < self.events:
            self.arrive()
            gap_s = self.chance.expovariate(1) * self.mean_gap_ns / 1e9
            self.virtual.call_later(0 if self.chance.random() < 0.1 else gap_s, self.arrivals)

    def live(self) -> None:
        self.virtual.call_soon(self.arrivals)
        empty: list[int] = []
        steps = 0
        while self.virtual.step():
            steps += 1
            if len(self.queue._levels) == 1 and self.queue.requests > 60 and steps % 16:
                continue  # long lines are looked at now and then
            self.queue.check_integrity()
            assert len(self.loop._idle) + len(self.loop._running) == self.instances
        # A hung engine may have left some behind: the drain answers those.
        self.loop.when_empty(lambda: empty.append(1))
        self.loop.fail_all(Unavailable("the end"))
        self.virtual.run()
        self.check(is_hung=bool(self.loop._running))

    def check(self, *, is_hung: bool) -> None:
        statistics = self.loop.statistics
        assert not self.wrong
        assert not self.expected, "everybody was answered"
        assert self.submitted == self.succeeded + self.failed + self.cancelled + self.refused
        assert statistics.success_count == self.succeeded
        assert statistics.fail_count == self.failed + self.cancelled + self.refused
        assert statistics.failures[FailureReason.CANCELED] == self.cancelled
        assert statistics.pending_requests == statistics.pending_rows == 0
        assert statistics.running_batches == len(self.loop._running)
        assert is_hung or statistics.running_batches == 0
        assert self.queue.requests == self.queue.rows == 0
        assert self.succeeded > 0


@pytest.mark.parametrize("seed", range(30))
def test_in_a_life_of_accidents_every_request_is_answered_once_and_with_its_own_rows(seed: int) -> None:
    Life(seed, events=4_000).live()
