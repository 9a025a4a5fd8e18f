"""Chains of models: their requests go together, and are each what they would be alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.runtime.shop import Shop
from tests.runtime.test_ensembles import CHAIN

from farthing.config.pipeline import PipelineGraph, PipelineStep
from farthing.engines.contract import Answer, Batch
from farthing.engines.onnxruntime import OnnxExecutable
from farthing.runtime.chain import links_of
from farthing.runtime.graph import Graph
from farthing.runtime.passage import Passage
from farthing.runtime.runtime import Runtime
from farthing.runtime.trip import Ride, Trip
from farthing.types.errors import EngineFailed, FarthingError, Overloaded
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import TensorSpec

Answered = InferResponse | FarthingError


@pytest.fixture
def chain(shop: Shop) -> Shop:
    shop.put("two", 2)
    shop.put("three", 3)
    shop.configure("chain", CHAIN)
    return shop


@pytest.fixture
def passages() -> Iterator[list[Passage]]:
    """Requests that went by themselves."""
    made: list[Passage] = []
    init = Passage.__init__

    def noted(self: Passage, *args: Any) -> None:
        made.append(self)
        init(self, *args)

    with mock.patch.object(Passage, "__init__", noted):
        yield made


def send(
    runtime: Runtime, model: str, values: list[float], done: Callable[[Answered], None], **more: Any
) -> Callable[[], None]:
    request = InferRequest(model_name=model, inputs={"x": np.array(values, np.float32)[:, None]}, **more)
    served = runtime.resolve(model)
    return served.submit(request, *served.check(request), time.monotonic_ns(), done)


async def all_of(runtime: Runtime, asked: list[tuple[str, list[float]]], **more: Any) -> list[Answered]:
    """What becomes of requests that are sent at once."""
    answers: dict[int, Answered] = {}
    over = asyncio.get_running_loop().create_future()

    def done(place: int, answer: Answered) -> None:
        assert place not in answers, "answered twice"
        answers[place] = answer
        if len(answers) == len(asked):
            over.set_result(None)

    for place, (model, values) in enumerate(asked):
        send(runtime, model, values, lambda answer, place=place: done(place, answer), **more)  # type: ignore[misc]
    await asyncio.wait_for(over, 20)
    return [answers[place] for place in range(len(asked))]


def numbers(answer: Answered) -> list[float]:
    assert isinstance(answer, InferResponse), answer
    found: list[float] = answer.outputs["y"][:, 0].tolist()
    return found


async def test_requests_of_any_rows_go_together_with_those_to_the_models_themselves(
    chain: Shop, passages: list[Passage]
) -> None:
    asked = [(("chain", "two", "three")[n % 3 if n % 4 else 0], [float(n)] * (n % 5 + 1)) for n in range(60)]
    factors = {"chain": 6, "two": 2, "three": 3}
    async with chain.open() as runtime:
        for _ in range(3):
            answers = await all_of(runtime, asked, id="i")
            for (model, values), answer in zip(asked, answers, strict=True):
                assert numbers(answer) == [value * factors[model] for value in values]
                assert (answer.id, answer.model_name) == ("i", model)  # type: ignore[union-attr]
        assert not passages
        for model, of_model in (("chain", ("chain",)), ("two", ("chain", "two")), ("three", ("chain", "three"))):
            mine = [len(values) for name, values in asked if name in of_model]
            (statistics,) = runtime.statistics(model)
            stats = statistics.inference_stats
            assert (stats.success.count, stats.queue.count, stats.fail.count) == (3 * len(mine), 3 * len(mine), 0)
            assert statistics.inference_count == 3 * sum(mine)
            if model == "chain":
                assert statistics.execution_count == 3 * len(mine)
                sizes = {batch.batch_size: batch.compute_infer.count for batch in statistics.batch_stats}
                assert sizes == {rows: 3 * mine.count(rows) for rows in set(mine)}
            else:
                assert statistics.execution_count < 3 * len(mine)


async def test_what_one_batch_made_is_the_next_batch_as_it_is(chain: Shop) -> None:
    made: list[Any] = []
    execute = OnnxExecutable.execute

    def noted(self: OnnxExecutable, batch: Batch, instance: int) -> Answer:
        answer = execute(self, batch, instance)
        made.append((batch.inputs["x"], answer["y"]))  # type: ignore[call-overload]
        return answer

    async with chain.open() as runtime:
        await all_of(runtime, [("chain", [float(n)]) for n in range(16)])
        with mock.patch.object(OnnxExecutable, "execute", noted):
            for _ in range(200):  # how many rows pay is measured, and two models need not always agree on it
                made.clear()
                await all_of(runtime, [("chain", [float(n)]) for n in range(4)])
                if any(later is earlier for _, earlier in made for later, _ in made):
                    return
    raise AssertionError("no batch was ever taken as it was")


@pytest.fixture
def rides() -> Iterator[list[Ride]]:
    """Places that requests had in the queue of a model that is not their first."""
    made: list[Ride] = []
    init = Ride.__init__

    def noted(self: Ride, *args: Any) -> None:
        made.append(self)
        init(self, *args)

    with mock.patch.object(Ride, "__init__", noted):
        yield made


async def test_nothing_is_made_for_each_request_between_the_first_model_and_the_last(
    chain: Shop, passages: list[Passage], rides: list[Ride]
) -> None:
    async with chain.open() as runtime:
        for _ in range(200):  # until it is known how long a batch takes
            rides.clear()
            before = runtime.statistics("three")[0].inference_count
            answers = await all_of(runtime, [("chain", [float(n)]) for n in range(16)])
            assert [numbers(answer) for answer in answers] == [[6 * n] for n in range(16)]
            assert runtime.statistics("three")[0].inference_count == before + 16
            if not rides:
                break
        assert not rides
        assert not passages


async def test_what_is_told_of_a_requests_time_adds_up_to_what_is_counted(chain: Shop) -> None:
    async with chain.open() as runtime:
        told: list[Answered] = []
        for n in range(1, 9):
            told += await all_of(runtime, [("chain", [1.0] * (m % 3 + 1)) for m in range(2 * n)])
        timings = [answer.timing for answer in told if isinstance(answer, InferResponse)]
        stats = runtime.statistics("chain")[0].inference_stats
        assert len(timings) == stats.success.count == 72
        assert (
            sum(timing.queue_ns for timing in timings)
            == stats.queue.ns
            == runtime.resolve("chain").statistics.waited_ns
        )
        assert sum(timing.compute_ns for timing in timings) == stats.compute_infer.ns
        of_models = [runtime.statistics(model)[0].inference_stats for model in ("two", "three")]
        assert (
            sum(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns for s in of_models)
            == stats.compute_infer.ns
        )
        assert sum(s.queue.ns for s in of_models) == stats.queue.ns
        assert all(timing.queue_ns >= 0 for timing in timings)


async def in_pieces(runtime: Runtime, rides: list[Ride], ask: Callable[[], Awaitable[object]]) -> int:
    """Asks until what the first model made in one batch went through the second in several, past its queue."""
    for _ in range(300):
        rides.clear()
        before = [runtime.statistics(model)[0].execution_count for model in ("two", "three")]
        await ask()
        ran = [runtime.statistics(model)[0].execution_count for model in ("two", "three")]
        if ran[0] == before[0] + 1 and ran[1] > before[1] + 1 and not rides:
            return ran[1] - before[1]
    raise AssertionError("it never went through in pieces")


async def test_a_batch_too_large_for_the_next_model_goes_on_in_pieces(chain: Shop, rides: list[Ride]) -> None:
    chain.configure("three", "max_batch_size: 4")
    chain.configure("chain", CHAIN.replace("max_batch_size: 16", "max_batch_size: 4"))
    async with chain.open() as runtime:
        rows = [n % 3 + 1 for n in range(8)]

        async def ask() -> None:
            answers = await all_of(runtime, [("chain", [float(n)] * own) for n, own in enumerate(rows)])
            assert [numbers(answer) for answer in answers] == [[6 * n] * own for n, own in enumerate(rows)]

        assert await in_pieces(runtime, rides, ask) >= sum(rows) / 4
        assert max(batch.batch_size for batch in runtime.statistics("three")[0].batch_stats) <= 4
        assert not runtime.resolve("chain").under_way  # type: ignore[attr-defined]


async def test_who_is_told_may_withdraw_those_of_the_next_piece(chain: Shop, rides: list[Ride]) -> None:
    chain.configure("three", "max_batch_size: 4")
    chain.configure("chain", CHAIN.replace("max_batch_size: 16", "max_batch_size: 4"))
    async with chain.open() as runtime:
        await in_pieces(runtime, rides, lambda: all_of(runtime, [("chain", [1.0])] * 12))
        for _ in range(20):
            told: list[Answered] = []
            withdraws: list[Callable[[], None]] = []
            canceled = runtime.resolve("chain").statistics.failures["CANCELED"]
            ran = runtime.statistics("three")[0].inference_count

            def leave(answer: Answered, told: list[Answered] = told, withdraws: Any = withdraws) -> None:
                told.append(answer)
                for withdraw in withdraws:
                    withdraw()

            withdraws += [send(runtime, "chain", [float(n)], leave) for n in range(12)]
            assert numbers((await all_of(runtime, [("chain", [5.0])]))[0]) == [30]
            assert [numbers(answer) for answer in told] == [[0]]
            assert runtime.resolve("chain").statistics.failures["CANCELED"] == canceled + 11
            assert runtime.statistics("three")[0].inference_count <= ran + 4 + 1, "nothing ran for those who had left"
            assert not runtime.resolve("chain").under_way  # type: ignore[attr-defined]


async def test_one_that_poisons_its_batch_fails_alone_and_is_told_where(chain: Shop) -> None:
    execute = OnnxExecutable.execute

    def poisoned(self: OnnxExecutable, batch: Batch, instance: int) -> Answer:
        if 26 in batch.inputs["x"]:
            raise EngineFailed("it is 26")
        return execute(self, batch, instance)

    async with chain.open() as runtime:
        with mock.patch.object(OnnxExecutable, "execute", poisoned):
            answers = await all_of(runtime, [("chain", [float(n)]) for n in range(16)])
        for n, answer in enumerate(answers):
            if n == 13:
                assert isinstance(answer, EngineFailed)
                assert "in ensemble step `three`: it is 26" in answer.message
            else:
                assert numbers(answer) == [6 * n]
        for model, failed in (("chain", 1), ("two", 0), ("three", 1)):
            assert runtime.statistics(model)[0].inference_stats.fail.count == failed
            assert runtime.statistics(model)[0].inference_stats.success.count == 16 - failed


async def test_who_is_withdrawn_by_an_answer_to_a_neighbour_is_never_told(chain: Shop) -> None:
    """At the end of each of the two batches a neighbour's answer withdraws one that rides in it."""
    for neighbour in ("two", "three", "chain"):
        async with chain.open() as runtime:
            told: list[Answered] = []
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            withdraws: list[Callable[[], None]] = []

            def leave(
                _: Answered, withdraws: list[Callable[[], None]] = withdraws, over: "asyncio.Future[None]" = over
            ) -> None:
                withdraws[0]()
                over.set_result(None)

            send(runtime, neighbour, [1], leave)
            withdraws.append(send(runtime, "chain", [2], told.append))
            await asyncio.wait_for(over, 20)
            answers = await all_of(runtime, [("chain", [3])])
            assert numbers(answers[0]) == [18]
            if neighbour != "three":  # which runs before those that come from `two`
                assert not told
            canceled = runtime.resolve("chain").statistics.failures["CANCELED"]
            assert canceled + len(told) == 1


@pytest.mark.parametrize(
    "config",
    [
        "max_batch_size: 8 dynamic_batching { preserve_ordering: true }",
        "max_batch_size: 16 response_cache { enable: true }",
        "max_batch_size: 16 dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
        "max_batch_size: 16 dynamic_batching { default_queue_policy { default_timeout_microseconds: 9000000 } }",
        "max_batch_size: 16 dynamic_batching { max_queue_delay_microseconds: 2000 }",
    ],
)
@pytest.mark.parametrize("model", ["two", "three"])
async def test_models_out_of_the_ordinary_may_stand_anywhere(chain: Shop, model: str, config: str) -> None:
    chain.configure(model, config)
    chain.configure("chain", CHAIN.replace("max_batch_size: 16", "max_batch_size: 8"))
    async with chain.open() as runtime:
        for _ in range(2):
            answers = await all_of(runtime, [("chain", [float(n)]) for n in range(12)])
            assert [numbers(answer) for answer in answers] == [[6 * n] for n in range(12)]
        (statistics,) = runtime.statistics("chain")
        assert (statistics.inference_count, statistics.inference_stats.success.count) == (24, 24)


async def test_who_finds_no_room_on_the_way_is_refused_alone(chain: Shop) -> None:
    chain.configure("three", "max_batch_size: 16 dynamic_batching { default_queue_policy { max_queue_size: 2 } }")
    async with chain.open() as runtime:
        await all_of(runtime, [("chain", [1.0])] * 2)
        await all_of(runtime, [("two", [1.0] * 16)] * 9)  # so that it takes batches
        answers = await all_of(runtime, [("chain", [float(n)]) for n in range(16)])
        refused = [answer for answer in answers if isinstance(answer, Overloaded)]
        assert refused, "none of them came together"
        assert all("in ensemble step `three`" in error.message for error in refused)
        assert runtime.resolve("chain").statistics.failures["REJECTED"] == len(refused)
        assert not runtime.resolve("chain").under_way  # type: ignore[attr-defined]


async def test_who_is_refused_may_withdraw_those_behind(chain: Shop) -> None:
    chain.configure("three", "max_batch_size: 16 dynamic_batching { default_queue_policy { max_queue_size: 1 } }")
    async with chain.open() as runtime:
        await all_of(runtime, [("two", [1.0] * 16)] * 9)
        withdraws: list[Callable[[], None]] = []
        told: list[Answered] = []

        def leave(answer: Answered) -> None:
            told.append(answer)
            for withdraw in withdraws:
                withdraw()

        withdraws += [send(runtime, "chain", [float(n)], leave) for n in range(16)]
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert len(told) == 1, "the others were withdrawn, by the first who was told"
        runtime.resolve("three").loop._queue.check_integrity()  # type: ignore[attr-defined]
        assert runtime.resolve("three").loop.is_empty  # type: ignore[attr-defined]
        assert numbers((await all_of(runtime, [("chain", [5.0])]))[0]) == [30]


async def test_requests_with_a_deadline_or_a_priority_go_by_themselves(chain: Shop, passages: list[Passage]) -> None:
    async with chain.open() as runtime:
        for place, more in enumerate(({"timeout_us": 9_000_000}, {"priority": 1}, {"origin": chain}), 1):
            request = InferRequest(model_name="chain", inputs={"x": np.ones((1, 1), np.float32)}, **more)  # type: ignore[arg-type]
            assert numbers(await runtime.infer(request)) == [6]
            assert len(passages) == place


async def test_ending_all_answers_those_that_wait_and_they_are_gone_from_their_models(chain: Shop) -> None:
    async with chain.open() as runtime:
        told: list[Answered] = []
        send(runtime, "chain", [1], told.append)
        served = runtime.resolve("chain")
        (trip,) = served.under_way  # type: ignore[attr-defined]
        assert isinstance(trip, Trip)
        served.fail_all(EngineFailed("over"))
        assert [str(answer) for answer in told] == [str(EngineFailed("over"))]
        assert runtime.resolve("two").loop.is_empty  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert len(told) == 1


def test_only_steps_that_read_nothing_but_the_one_before_are_a_chain(tmp_path: Path) -> None:
    def places(steps: list[tuple[str, str]], outputs: tuple[str, ...]) -> list[int]:
        graph = PipelineGraph(
            inputs=("a",),
            outputs=outputs,
            step=tuple(
                PipelineStep(model="m", inputs={f"i{n}": name for n, name in enumerate(reads)}, outputs={"o": makes})
                for reads, makes in steps
            ),
        )
        row = TensorSpec(name="a", datatype="FP32", shape=(-1, 1))
        spec = ModelSpec(name="e", version=1, platform="", inputs=(row,), outputs=(), batch_rows_max=4)
        return [link.place for link in links_of(Graph(graph), spec)]

    assert places([("b", "c"), ("a", "b")], ("c",)) == [1, 0]
    assert places([("a", "b"), ("b", "c"), ("c", "d")], ("d",)) == [0, 1, 2]
    assert places([("a", "b")], ("b",)) == [], "one model is none"
    assert places([("a", "b"), ("ab", "c")], ("c",)) == [], "it reads the client's tensor too"
    assert places([("a", "b"), ("b", "c")], ("b", "c")) == [], "the first step's output is asked for"
    assert places([("a", "b"), ("b", "c"), ("b", "d"), ("cd", "e")], ("e",)) == []
    assert places([("a", "b"), ("b", "c"), ("a", "d")], ("c", "d")) == []
