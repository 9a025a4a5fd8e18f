"""Real models that share resources by their `rate_limiter` blocks."""

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.models import running_sum, save
from tests.runtime.shop import Shop, Stuck, ask
from tests.runtime.test_stream_subrequests import Talk, told
from tests.runtime.test_subrequests import until

from farthing.config.model import parse_model_config
from farthing.config.server import ModelControl, RateLimit, SchedulingSettings
from farthing.runtime.runtime import Runtime
from farthing.runtime.serve_loaded import demands
from farthing.types.errors import LoadFailed
from farthing.types.requests import InferRequest

ON = SchedulingSettings(rate_limit=RateLimit.EXECUTION_COUNT)


def group(count: int = 1, wants: int = 1, priority: int = 0) -> str:
    return (
        f"instance_group {{ count: {count} kind: KIND_CPU rate_limiter {{ priority: {priority} "
        f'resources [ {{ name: "licence" global: true count: {wants} }} ] }} }}'
    )


def running(runtime: Runtime, name: str) -> int:
    return runtime.resolve(name).statistics.running_batches


def two_models(shop: Shop) -> None:
    for name, factor in (("one", 2), ("two", 3)):
        shop.put(name, factor)
        shop.configure(name, group())


@pytest.mark.usefixtures("threads_only")
@pytest.mark.parametrize(("scheduling", "together"), [(ON, 1), (SchedulingSettings(), 2)])
async def test_models_run_together_only_where_there_is_enough_for_both(
    shop: Shop, scheduling: SchedulingSettings, together: int
) -> None:
    two_models(shop)
    async with shop.open(scheduling=scheduling) as runtime:
        with Stuck() as stuck:
            asked = [asyncio.create_task(ask(runtime, name)) for name in ("one", "two")]
            await stuck.wait_until_entered()
            await asyncio.sleep(0.01)
            assert running(runtime, "one") + running(runtime, "two") == together
            stuck.release.set()
            assert await asyncio.gather(*asked) == [2, 3]


@pytest.mark.usefixtures("threads_only")
async def test_an_operator_may_have_more_and_a_client_may_leave_the_line(shop: Shop) -> None:
    two_models(shop)
    settings = SchedulingSettings(rate_limit=RateLimit.EXECUTION_COUNT, resources={"licence": 2})
    shop.put("three", 4)
    shop.configure("three", group(count=2))
    async with shop.open(scheduling=settings) as runtime:
        with Stuck() as stuck:
            asked = [asyncio.create_task(ask(runtime, name)) for name in ("one", "two", "three")]
            await stuck.wait_until_entered()
            await asyncio.sleep(0.01)
            assert [running(runtime, name) for name in ("one", "two", "three")] == [1, 1, 0]
            asked[2].cancel()
            await asyncio.sleep(0)
            assert runtime.resolve("three").statistics.failures["CANCELED"] == 1
            stuck.release.set()
            assert await asyncio.gather(*asked[:2]) == [2, 3]
        assert await ask(runtime, "three") == 4


async def test_sequences_take_turns_too(shop: Shop) -> None:
    shop.put("one", 2)
    shop.configure("one", group())
    save(shop.folder / "sum", running_sum())
    shop.configure(
        "sum",
        "max_batch_size: 4 sequence_batching { oldest { } "
        'control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] }, '
        '{ name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ] '
        'state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ] } ' + group(),
    )

    async def add(runtime: Runtime, number: int, value: float, **parameters: Any) -> float:
        request = InferRequest(
            model_name="sum",
            inputs={"x": np.full((1, 1), value, np.float32)},
            parameters={"sequence_id": number, **parameters},
        )
        return float((await runtime.infer(request)).outputs["y"][0, 0])

    async def sums(runtime: Runtime, number: int) -> list[float]:
        first = await add(runtime, number, number, sequence_start=True)
        return [first, await add(runtime, number, 1), await add(runtime, number, 1, sequence_end=True)]

    async with shop.open(scheduling=ON) as runtime:
        others = asyncio.gather(*(ask(runtime, "one", value=n) for n in range(20)))
        found = await asyncio.gather(*(sums(runtime, number) for number in range(1, 11)))
        assert found == [[number, number + 1, number + 2] for number in range(1, 11)]
        assert await others == [2 * n for n in range(20)]


async def test_demands_that_cannot_be_met_are_refused_at_load(shop: Shop) -> None:
    shop.put("one", 2)
    shop.configure("one", group(wants=3))
    settings = SchedulingSettings(rate_limit=RateLimit.EXECUTION_COUNT, resources={"licence": 2})
    async with shop.open(ModelControl.EXPLICIT, scheduling=settings) as runtime:
        with pytest.raises(LoadFailed, match="model `one`: an instance wants 3 of resource `licence`; there are 2"):
            await runtime.load("one")
        shop.configure("one", group(wants=0))
        with pytest.raises(LoadFailed, match="rate limiter resource `licence` has count 0"):
            await runtime.load("one")
        shop.configure("one", group(wants=2))
        await runtime.load("one")
        assert await ask(runtime, "one") == 2


COUNT = """
from farthing import Tensor

class Count:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    def infer(self, inputs):
        for i in range(int(inputs["x"][0, 0])):
            yield {"y": inputs["x"] * 0 + i}
"""


async def test_a_class_that_yields_holds_what_it_needs_until_its_requests_are_answered(shop: Shop) -> None:
    shop.put("one", 2)
    shop.configure("one", group())
    (shop.folder / "count" / "1").mkdir(parents=True)
    (shop.folder / "count" / "1" / "model.py").write_text(COUNT)
    shop.configure("count", group())
    async with shop.open(scheduling=ON) as runtime:
        limiter = runtime.catalog.serving.limiter
        assert limiter is not None
        talk = Talk(runtime, "count", 40, takes=False)
        await until(lambda: len(talk.values) == 32)
        waiting = [asyncio.create_task(ask(runtime, "one")), asyncio.create_task(told(runtime, "count", 2))]
        one = runtime.resolve("one").statistics
        await until(lambda: one.pending_requests == 1)
        assert not any(task.done() for task in waiting)
        assert talk.stream is not None
        for _ in range(8):
            talk.stream.taken()
        assert len(await talk.rest()) == 40
        assert await asyncio.gather(*waiting) == [2, [0, 1]]
        await until(lambda: not limiter._held or not any(limiter._held.values()))
        limiter.check_integrity()


async def test_demands_change_with_the_instances(shop: Shop) -> None:
    shop.put("one", 2)
    shop.configure("one", group(wants=1))
    async with shop.open(ModelControl.POLL, scheduling=ON) as runtime:
        served = runtime.resolve("one")
        shop.configure("one", group(wants=5, count=2))
        await runtime.look_again()
        assert runtime.resolve("one") is served
        limiter = runtime.catalog.serving.limiter
        assert limiter is not None
        assert limiter.totals == {"licence": 5}
        assert await asyncio.gather(*(ask(runtime, "one") for _ in range(5))) == [2] * 5
        limiter.check_integrity()


def test_every_instance_of_a_group_wants_what_its_group_says() -> None:
    config = parse_model_config(
        {
            "instance_group": [
                {"count": 2, "rate_limiter": {"resources": [{"name": "a", "count": 1}], "priority": 3}},
                {"name": "others"},
            ]
        }
    )
    assert [(dict(one.resources), one.priority) for one in demands(config)] == [({"a": 1}, 3)] * 2 + [({}, 1)]
