"""The loop of models of sequences that answer often, in virtual time: examples, and a simulated town."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.batching.test_stream_loop import Speaker
from tests.fakes import VirtualInstances, VirtualLoop

from farthing.batching.batcher import Limits
from farthing.batching.queue import ENDED, FIXED_SHAPES
from farthing.batching.sequence import SequenceId
from farthing.batching.sequence_batcher import SequenceRules
from farthing.batching.sequence_stream_loop import AHEAD_RESPONSES_MAX, SequenceStreamLoop, SequenceStreamWaiter
from farthing.batching.sequence_tensors import SequenceTensors, State
from farthing.batching.sequences import Sequences
from farthing.engines.contract import MemberAnswer
from farthing.engines.streaming import Part
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse
from farthing.types.tensors import TensorSpec

MS = 1_000_000
S = 1000 * MS
COUNT = State(
    input_name="before", output_name="after", datatype="FP32", shape=(1, 1), initial=np.zeros((1, 1), np.float32)
)


class House:
    def __init__(
        self,
        *,
        slots: int = 2,
        rows_max: int = 4,
        states: tuple[State, ...] = (),
        instances: int = 1,
        returns_at_once: bool = True,
        idle_ns: int = S,
        **rules: Any,
    ) -> None:
        self.model = Speaker()
        self.model.returns_at_once = returns_at_once
        self.virtual = VirtualLoop()
        self.statistics = ModelStatistics()
        self.sequences = Sequences(
            model="m", instances=instances, slots=slots, idle_ns=idle_ns, requests_max=100,
            is_in_order=rules.get("is_in_order", False),
        )  # fmt: skip
        told = {"is_direct": False, "is_iterative": True, **rules}
        self.loop = SequenceStreamLoop(
            executable=self.model,
            rules=SequenceRules(limits=Limits(rows_max=rows_max, delay_ns_max=0), slots=slots, idle_ns=idle_ns, **told),
            tensors=SequenceTensors(states=states, has_batch_axis=rows_max > 0),
            sequences=self.sequences,
            spec=ModelSpec(
                name="m", version=1, platform="fake", inputs=self.model.inputs,
                outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),), batch_rows_max=rows_max,
            ),
            instances=instances,
            statistics=self.statistics,
            scheduler=self.virtual,
            clock=self.virtual.clock,
            make_instances=partial(VirtualInstances, cost_ns=lambda rows: MS),
        )  # fmt: skip
        self.is_iterative = told["is_iterative"]
        self.heard: list[list[StreamedResponse]] = []

    def ask(self, sequence_id: SequenceId, flags: str = "s", *, timeout_us: int = 0) -> SequenceStreamWaiter:
        heard: list[StreamedResponse] = []
        self.heard.append(heard)
        waiter = SequenceStreamWaiter(
            InferRequest(model_name="m", inputs={}, timeout_us=timeout_us),
            {"x": np.zeros((1, 1), np.float32)},
            1,
            FIXED_SHAPES,
            self.virtual.clock.now_ns(),
            heard.append,
            sequence_id=sequence_id,
            is_start="s" in flags,
            is_end="e" in flags,
            is_iterative=self.is_iterative,
        )
        self.loop.submit(waiter)
        return waiter

    def run(self, ms: float = 5) -> None:
        self.virtual.run(until_ns=self.virtual.clock.now_ns() + int(ms * MS))
        self.sequences.check_integrity()

    def say(self, number: int, y: float, *, after: float | None = None, is_last: bool = False) -> None:
        outputs = {"y": np.full((1, 1), y, np.float32)}
        if after is not None:
            outputs["after"] = np.full((1, 1), after, np.float32)
        self.model.hears[number](Part(MemberAnswer(outputs), is_last))
        self.run()

    def again(self, number: int) -> None:
        self.model.again(number)
        self.run()

    def told(self, number: int) -> list[float]:
        said = [one.answer for one in self.heard[number] if isinstance(one.answer, InferResponse)]
        assert all(list(answer.outputs) == ["y"] for answer in said), "states are the server's business"
        return [float(answer.outputs["y"][0, 0]) for answer in said]


def test_a_request_that_runs_again_shares_its_next_run_with_one_that_came_meanwhile() -> None:
    house = House()
    house.ask(1)
    house.run()
    house.model.again(0)
    house.ask(2)
    house.run()
    assert house.model.batches == [1, 2]
    house.say(1, 7)
    house.say(2, 8, is_last=True)
    house.again(1)
    assert house.told(0) == [8], "it became ready after the other had come"
    assert house.told(1) == [7]
    assert house.model.batches == [1, 2, 1]
    assert house.statistics.execution_count == 2
    assert house.statistics.inference_count == 1


def test_a_client_that_is_behind_holds_back_its_own_next_run_and_nobody_elses() -> None:
    house = House()
    slow, _ = house.ask(1), house.ask(2)
    house.run()
    for y in range(AHEAD_RESPONSES_MAX):
        house.say(0, y)
    house.again(0)
    house.again(1)
    assert house.model.batches == [2, 1]
    house.loop.taken(slow)
    house.run()
    assert house.model.taken == [0]
    house.again(2)
    assert house.model.batches == [2, 1, 1, 1]


def test_states_are_kept_when_the_turn_is_over_and_not_after_a_failure() -> None:
    house = House(states=(COUNT,), is_iterative=False)
    house.ask(1, "s")
    house.ask(1, "")
    house.ask(1, "e")
    house.run()
    house.say(0, 1, after=1)
    assert house.model.batches == [1], "more may be said, and more states left"
    house.say(0, 2, after=2, is_last=True)
    house.say(1, 3, after=3)
    sequence = next(iter(house.sequences._by_id.values()))
    house.model.hears[1](Part(EngineFailed("no"), is_last=True))
    assert sequence.states == {} or float(sequence.states["before"][0, 0]) == 2
    house.run()
    house.say(2, 9, after=9, is_last=True)
    assert [house.told(number) for number in range(3)] == [[1, 2], [3], [9]]
    assert house.sequences.sequences == 0
    assert house.loop.is_empty


def test_in_order_each_request_has_all_its_responses_before_the_next_has_any() -> None:
    house = House(is_in_order=True, is_iterative=False)
    house.ask(1, "se")
    house.ask(2, "se")
    house.run()
    assert house.model.batches == [1]
    house.say(0, 1)
    assert house.model.batches == [1]
    house.say(0, 2, is_last=True)
    assert house.model.batches == [1, 1]


def test_time_may_run_out_between_runs_but_not_within_one() -> None:
    house = House(slots=1, rows_max=1)
    house.ask(1, timeout_us=10_000)
    house.ask(2)
    house.run(15)
    house.again(0)
    assert isinstance(house.heard[0][-1].answer, DeadlineExceeded)
    assert house.model.batches == [1, 1], "the next has its slot"


def test_unloading_waits_for_all_runs_and_a_drain_that_takes_too_long_ends_them() -> None:
    house = House()
    house.ask(1)
    house.ask(2)
    house.run()
    ended: list[bool] = []
    house.loop.when_empty(lambda: ended.append(True))
    house.again(0)
    assert house.model.batches == [2, 1]
    house.again(1)
    house.loop.fail_all(Unavailable("gone"))
    house.run()
    assert ended == [True]
    assert all(isinstance(heard[-1].answer, Unavailable) and heard[-1].is_last for heard in house.heard)
    assert house.sequences.sequences == 0


@pytest.mark.parametrize("seed", range(16))
def test_whatever_happens_everybody_hears_one_last_word_and_nothing_is_left(seed: int) -> None:
    """Models that answer, run again, fail and die; clients that are slow, leave and run out of time."""
    chance = random.Random(seed)
    is_iterative = chance.random() < 0.7
    house = House(
        slots=chance.choice([1, 3, 8]),
        rows_max=chance.choice([1, 4]),
        instances=chance.choice([1, 2]),
        states=(COUNT,) if chance.random() < 0.4 else (),
        is_iterative=is_iterative,
        is_direct=chance.random() < 0.3,
        is_in_order=chance.random() < 0.3,
        returns_at_once=chance.random() < 0.5,
        idle_ns=50 * MS,
    )
    model, asked = house.model, []
    spoken = 0
    open_: list[int] = []
    for turn in range(600):
        if turn < 400 and chance.random() < 0.4:
            id_ = turn if is_iterative or not asked else chance.choice([turn, asked[-1].sequence_id])
            known = any(waiter.sequence_id == id_ for waiter in asked)
            flags = "s" * (not known) + "e" * (chance.random() < 0.5)
            try:
                asked.append(house.ask(id_, flags, timeout_us=chance.choice([0, 0, 40_000])))
            except Exception:  # its sequence has ended
                house.heard.pop()
        if chance.random() < 0.02:
            model.failure = Unavailable("restarting", retry_after_s=0.001)
        house.run(1)
        model.failure = None
        open_ += range(spoken, len(model.hears))
        spoken = len(model.hears)
        for number in chance.sample(open_, min(len(open_), chance.choice([0, 1, 3]))):
            what = chance.random()
            if number in model.cancelled:
                open_.remove(number)
            elif what < 0.4:
                outputs = {"y": np.zeros((1, 1), np.float32)}
                if house.loop._tensors.states:
                    outputs["after"] = np.ones((1, 1), np.float32)
                model.hears[number](Part(MemberAnswer(outputs), is_last=False))
            else:
                open_.remove(number)
                if what < 0.75:
                    model.again(number)
                else:
                    model.hears[number](Part(EngineFailed("no") if what > 0.95 else None, is_last=True))
        for waiter in asked:
            if chance.random() < 0.3:
                house.loop.taken(waiter)
            elif waiter.state != ENDED and chance.random() < 0.01:
                house.loop.cancel(waiter)
                waiter.hear(StreamedResponse(Unavailable("left"), is_last=True))
    for _ in range(5000):
        if house.loop.is_empty:
            break
        house.run(1)
        for number in [*open_, *range(spoken, len(model.hears))]:
            if number not in model.cancelled:
                model.hears[number](Part(None, is_last=True))
        open_, spoken = [], len(model.hears)
        for waiter in asked:
            house.loop.taken(waiter)
    house.run(5000)
    assert house.loop.is_empty
    assert house.sequences.requests == house.sequences.sequences == 0
    assert [sum(one.is_last for one in heard) for heard in house.heard] == [1] * len(house.heard)
    assert len(model.hears) > 5
