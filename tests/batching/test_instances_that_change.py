"""Instances come and go while requests run, in virtual time: all are answered, and none runs two batches at once."""

import random
from functools import partial

import pytest
from tests.fakes import Answered, FakeExecutable, make_loop, make_waiter

from farthing.batching.queue import Waiter
from farthing.batching.rate_limiter import RateLimiter
from farthing.batching.turns import Demand
from farthing.engines.contract import Answer, Batch
from farthing.types.errors import Unavailable
from farthing.types.requests import InferResponse

MS = 1_000_000


@pytest.mark.parametrize("is_limited", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_number_there_is_everybody_is_answered(seed: int, is_limited: bool) -> None:
    chance = random.Random(seed)
    limiter = RateLimiter({"r": 3})
    turns = limiter.join([Demand(resources={"r": chance.randint(1, 3)}) for _ in range(8)]) if is_limited else None

    def answer(batch: Batch) -> Answer:
        if chance.random() < 0.05:  # its process is down: the instance rests
            raise Unavailable("down", retry_after_s=0.002)
        return {"y": batch.inputs["x"] * 2}

    fake = FakeExecutable(lambda rows: chance.randint(1, 5) * MS, is_pure=False, answer=answer)
    loop, virtual, queue = make_loop(fake, instances=2, rows_max=4, turns=turns)
    answers: dict[int, Answered] = {}
    withdrawn = sent = 0
    is_shrinking = False
    waiters: list[Waiter] = []

    def gone() -> None:
        nonlocal is_shrinking
        is_shrinking = False
        assert all(instance < loop.instances for instance in loop._running)

    def done(number: int, told: Answered) -> None:
        assert number not in answers
        answers[number] = told

    for _ in range(120):
        for _ in range(chance.randint(0, 4)):
            sent += 1
            waiters.append(make_waiter(arrival_ns=virtual.clock.now_ns(), done=partial(done, sent)))
            loop.submit(waiters[-1])
        if waiters and chance.random() < 0.2:
            before = loop.statistics.failures["CANCELED"]
            loop.cancel(waiters.pop(chance.randrange(len(waiters))))
            withdrawn += loop.statistics.failures["CANCELED"] - before
        wanted = chance.randint(1, 8)
        if not is_shrinking and chance.random() < 0.3:
            if wanted > loop.instances:
                loop.grow(wanted)
            elif wanted < loop.instances:
                is_shrinking = True
                loop.shrink(wanted, gone)
        for _ in range(chance.randint(0, 10)):
            virtual.step()
            idle = loop._idle
            assert len(set(idle)) == len(idle)
            assert not set(idle) & loop._running.keys()
            assert all(instance < loop.instances for instance in idle)
            limiter.check_integrity()
    virtual.run()
    assert not is_shrinking
    assert loop.is_empty
    assert sorted(loop._idle) == list(range(loop.instances)), "all are there again"
    assert len(answers) + withdrawn == sent
    assert all(isinstance(told, InferResponse | Unavailable) for told in answers.values())
    queue.check_integrity()
