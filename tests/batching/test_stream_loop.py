"""The loop of models that answer as often as they like, in virtual time, on a model the test speaks for."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeExecutable, VirtualInstances, VirtualLoop

from farthing.batching.batcher import Limits
from farthing.batching.queue import FIXED_SHAPES, Queue
from farthing.batching.rate_limiter import RateLimiter, Turns
from farthing.batching.stream_loop import StreamLoop, StreamWaiter
from farthing.batching.turns import Demand
from farthing.engines.contract import Batch, MemberAnswer
from farthing.engines.streaming import Hear, Part
from farthing.telemetry.statistics import RESPONSES_COUNTED_MAX, ModelStatistics
from farthing.types.errors import EngineFailed, FarthingError, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse


class Speaker(FakeExecutable):
    """A model that says to each request what the test says."""

    is_decoupled = True
    returns_at_once = False

    def __init__(self) -> None:
        super().__init__(is_pure=False, can_run_on_event_loop=False)
        self.hears: list[Hear] = []
        self.cancelled: list[int] = []
        self.taken: list[int] = []
        self.failure: FarthingError | None = None

    def begin(self, batch: Batch, instance: int, hears: Sequence[Hear]) -> "Begun":
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(batch.members))
        self.hears += hears
        return Begun(self, len(self.hears) - len(hears))

    def say(self, number: int, value: float | None = None, *, is_last: bool = False) -> None:
        answer = None if value is None else MemberAnswer({"y": np.full((1, 1), value, np.float32)})
        self.hears[number](Part(answer, is_last))

    def again(self, number: int) -> None:
        self.hears[number](Part(None, is_last=False, is_rescheduled=True))


class Begun:
    def __init__(self, speaker: Speaker, first: int) -> None:
        self._speaker = speaker
        self._first = first

    def wait(self) -> None:
        pass

    def cancel(self, member: int) -> None:
        self._speaker.cancelled.append(self._first + member)

    def take(self, member: int) -> None:
        self._speaker.taken.append(self._first + member)


class House:
    def __init__(
        self, rows_max: int = 1, streams_max: int = 2, turns: Turns | None = None, virtual: VirtualLoop | None = None
    ) -> None:
        self.model = Speaker()
        self.virtual = virtual or VirtualLoop()
        self.statistics = ModelStatistics()
        spec = ModelSpec(
            name="fake", version=1, platform="fake", inputs=self.model.inputs, outputs=self.model.outputs,
            batch_rows_max=rows_max,
        )  # fmt: skip
        self.loop = StreamLoop(
            executable=self.model,
            streams_max=streams_max,
            spec=spec,
            instances=1,
            limits=Limits(rows_max=rows_max),
            queue=Queue(model="fake", requests_max=100),
            statistics=self.statistics,
            scheduler=self.virtual,
            clock=self.virtual.clock,
            make_instances=partial(VirtualInstances, cost_ns=lambda rows: 1_000_000),
            turns=turns,
        )
        self.heard: list[list[StreamedResponse]] = []

    def ask(self) -> StreamWaiter:
        heard: list[StreamedResponse] = []
        self.heard.append(heard)
        request = InferRequest(model_name="fake", inputs={"x": np.zeros((1, 1), np.float32)})
        now = self.virtual.clock.now_ns()
        waiter = StreamWaiter(request, request.inputs, 1, FIXED_SHAPES, now, heard.append)
        self.loop.submit(waiter)
        self.virtual.run()
        return waiter

    def say(self, *args: Any, **more: Any) -> None:
        self.model.say(*args, **more)
        self.virtual.run()

    def snapshot(self) -> Any:
        return self.statistics.snapshot("fake", "1")


def test_so_many_are_answered_at_a_time_and_the_others_wait() -> None:
    house = House(streams_max=2)
    for _ in range(4):
        house.ask()
    assert house.model.batches == [1, 1]
    assert house.statistics.pending_requests == 2
    assert not list(house.loop.running())  # nothing hangs: the others have to wait
    house.say(0, 1.0)
    house.say(0, is_last=True)
    assert house.model.batches == [1, 1, 1]
    house.say(1, is_last=True)
    house.say(2, is_last=True)
    house.say(3, is_last=True)
    assert house.loop.is_empty
    assert [[said.is_last for said in heard] for heard in house.heard] == [[False, True], [True], [True], [True]]


def test_each_request_is_counted_once_and_each_response_by_its_place() -> None:
    house = House(rows_max=1, streams_max=10)
    house.ask()
    house.ask()
    for value in range(RESPONSES_COUNTED_MAX + 44):
        house.say(0, float(value))
    assert not house.statistics.success_count
    house.say(0, 1.0, is_last=True)
    house.model.hears[1](Part(EngineFailed("no"), is_last=False))
    house.say(1, is_last=True)
    counted = house.snapshot()
    assert (counted.inference_stats.success.count, counted.inference_stats.fail.count) == (1, 1)
    assert (counted.inference_count, counted.execution_count) == (1, 1)
    assert counted.response_stats["0"].success.count == 1
    assert counted.response_stats["0"].fail.count == 1
    assert counted.response_stats["1"].empty_response.count == 1
    assert len(counted.response_stats) == RESPONSES_COUNTED_MAX
    assert counted.response_stats[str(RESPONSES_COUNTED_MAX - 1)].success.count == 46


def test_whoever_leaves_is_told_to_the_model_and_hears_no_more() -> None:
    house = House(streams_max=2)
    waiters = [house.ask() for _ in range(3)]
    house.loop.taken(waiters[0])
    house.loop.taken(waiters[2])  # which has not begun
    assert house.model.taken == [0]
    house.loop.cancel(waiters[2])
    house.loop.cancel(waiters[0])
    house.loop.cancel(waiters[0])
    assert house.model.cancelled == [0]
    house.say(0, 1.0)
    house.say(1, is_last=True)
    assert house.heard[0] == house.heard[2] == []
    assert house.loop.is_empty
    assert house.snapshot().inference_stats.fail.count == 2


def test_a_batch_that_cannot_begin_is_answered_with_why() -> None:
    house = House()
    house.model.failure = Unavailable("down", retry_after_s=1)
    house.ask()
    assert house.heard == [[StreamedResponse(house.model.failure, is_last=True)]]
    house.model.failure = None
    house.ask()
    house.say(0, 2.0, is_last=True)
    [[said]] = house.heard[1:]
    assert isinstance(said.answer, InferResponse)
    assert said.answer.outputs["y"].tolist() == [[2.0]]


def test_a_drain_out_of_time_ends_all_of_them() -> None:
    house = House(streams_max=1)
    house.ask()
    house.ask()
    ended: list[int] = []
    house.loop.when_empty(lambda: ended.append(1))
    house.virtual.run()
    assert not ended
    house.loop.fail_all(Unavailable("over"))
    house.virtual.run()
    assert ended == [1]
    assert [isinstance(heard[-1].answer, Unavailable) for heard in house.heard] == [True, True]
    assert house.model.cancelled == [0]
    with pytest.raises(Unavailable):
        house.ask()


def test_one_client_s_trouble_is_its_own() -> None:
    house = House()

    def fails(said: StreamedResponse) -> None:
        raise ZeroDivisionError

    waiter = house.ask()
    waiter.hear = fails
    house.say(0, 1.0)
    assert house.model.cancelled == [0]
    assert house.loop.is_empty


@pytest.mark.parametrize("returns_at_once", [False, True])
def test_what_a_batch_needs_is_held_until_the_model_is_through_with_it(returns_at_once: bool) -> None:
    limiter = RateLimiter({})
    virtual = VirtualLoop()
    house, other = (House(turns=limiter.join([Demand(resources={"licence": 1})]), virtual=virtual) for _ in range(2))
    house.model.returns_at_once = returns_at_once
    house.ask()
    other.ask()
    house.ask()
    house.virtual.run()
    limiter.check_integrity()
    # A model that has returned is through, but for generators, which go on: their next batch waits too.
    assert house.model.batches == ([1] if returns_at_once else [1, 1])
    assert other.model.batches == ([] if returns_at_once else [1])
    house.say(0, 1.0, is_last=True)
    limiter.check_integrity()
    assert other.model.batches == [1]
    assert house.model.batches == [1, 1]


def test_who_is_to_run_again_where_nobody_can_is_told_so() -> None:
    house = House()
    house.ask()
    house.model.again(0)
    house.virtual.run()
    [said] = house.heard[0]
    assert said.is_last
    assert "not configured to handle such a flag" in str(said.answer)
    assert house.loop.is_empty
