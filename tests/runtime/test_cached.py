"""Models with a response cache, real ones: what hits, what must not, and who rides with whom."""

import asyncio
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.runtime.shop import Shop, Stuck, ask, settle

from farthing.config.model import parse_model_config
from farthing.config.server import ModelControl, SchedulingSettings
from farthing.runtime.runtime import Runtime
from farthing.telemetry.statistics import StatisticsSnapshot
from farthing.types.errors import EngineFailed, Overloaded
from farthing.types.requests import InferRequest

CACHED = "response_cache { enable: true }"
EXPLICIT = ModelControl.EXPLICIT


def stats(runtime: Runtime, name: str = "net") -> StatisticsSnapshot:
    [one] = runtime.statistics(name)
    return one


def counts(runtime: Runtime, name: str = "net") -> tuple[int, int, int, int]:
    """Hits, misses, runs, successes."""
    one = stats(runtime, name)
    found = one.inference_stats
    return found.cache_hit.count, found.cache_miss.count, one.execution_count, found.success.count


def request(value: float = 1, **more: Any) -> InferRequest:
    return InferRequest(model_name="net", inputs={"x": np.full((1, 1), value, np.float32)}, **more)


@pytest.fixture
def cached(shop: Shop) -> Shop:
    shop.put("net", 2)
    shop.configure("net", CACHED)
    return shop


async def test_an_equal_request_is_answered_without_a_run(cached: Shop) -> None:
    async with cached.open() as runtime:
        assert [await ask(runtime, "net", value=value) for value in (3, 3, 4, 3)] == [6, 6, 8, 6]
        assert counts(runtime) == (2, 2, 2, 4)
        [sample] = runtime.model_samples()
        assert sample.statistics.cache_insertions == 2
        assert stats(runtime).inference_stats.queue.count == 2, "a hit does not queue"
        assert stats(runtime).inference_count == 2


async def test_an_answer_carries_its_own_request_s_id(cached: Shop) -> None:
    async with cached.open() as runtime:
        answers = [await runtime.infer(request(id=name)) for name in ("a", "b")]
        assert [answer.id for answer in answers] == ["a", "b"]
        assert answers[1].model_name == "net"
        assert answers[1].model_version == "1"


async def test_without_the_block_or_without_room_nothing_is_looked_up(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        await ask(runtime, "net")
        await ask(runtime, "net")
        assert counts(runtime) == (0, 0, 2, 2)
    shop.configure("net", CACHED)
    async with shop.open(scheduling=SchedulingSettings(response_cache_bytes=0)) as runtime:
        await ask(runtime, "net")
        await ask(runtime, "net")
        assert counts(runtime) == (0, 0, 2, 2)


async def test_tenants_do_not_see_each_other_s_answers_nor_how_fast_they_come(cached: Shop) -> None:
    async with cached.open() as runtime:
        for tenant in ("a", "b", "a", "b"):
            await runtime.infer(request(tenant=tenant))
        assert counts(runtime) == (2, 2, 2, 4)


async def test_a_reload_never_serves_an_old_answer_and_frees_the_room(cached: Shop) -> None:
    async with cached.open(EXPLICIT, load_models=("*",)) as runtime:
        assert await ask(runtime, "net") == 2
        cached.put("net", 3)
        await runtime.load("net")
        assert await ask(runtime, "net") == 3
        await settle(runtime)
        cache = runtime.catalog.serving.cache
        assert cache.counters.entries == 1
        cache.check_integrity()


async def test_the_cache_can_be_turned_on_by_a_load(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        await runtime.load("net", parse_model_config({"response_cache": {"enable": True}}))
        await ask(runtime, "net")
        await ask(runtime, "net")
        assert counts(runtime)[0] == 1


async def test_versions_have_answers_of_their_own(shop: Shop) -> None:
    shop.put("net", 3, version=2)
    shop.put("net", 2)
    shop.configure("net", CACHED + " version_policy { all { } }")
    async with shop.open() as runtime:
        assert [await ask(runtime, "net", version) for version in ("1", "2", "1", "2")] == [2, 3, 2, 3]


async def test_inputs_larger_than_the_bound_are_not_looked_up(cached: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.runtime.cached.HASHED_BYTES_MAX", 3)
    async with cached.open() as runtime:
        await ask(runtime, "net")
        await ask(runtime, "net")
        assert counts(runtime) == (0, 0, 2, 2)


# -- equal requests under way ----------------------------------------------------------------------------------------


async def started(runtime: Runtime, *requests: InferRequest) -> "list[asyncio.Task[Any]]":
    tasks = [asyncio.create_task(runtime.infer(one)) for one in requests]
    await asyncio.sleep(0)
    return tasks


def value_of(answer: Any) -> float:
    return float(answer.outputs["y"][0, 0])


@pytest.mark.usefixtures("threads_only")
async def test_equal_requests_under_way_share_one_run(cached: Shop) -> None:
    async with cached.open() as runtime:
        with Stuck() as stuck:
            tasks = await started(runtime, *(request(5, id=str(n)) for n in range(10)))
            stuck.release.set()
            answers = await asyncio.gather(*tasks)
        assert [value_of(answer) for answer in answers] == [10] * 10
        assert [answer.id for answer in answers] == [str(n) for n in range(10)]
        assert counts(runtime) == (9, 1, 1, 10)
        [sample] = runtime.model_samples()
        assert sample.statistics.cache_coalesced == 9


@pytest.mark.usefixtures("threads_only")
async def test_who_leaves_takes_nobody_with_them(cached: Shop) -> None:
    async with cached.open() as runtime:
        with Stuck() as stuck:
            tasks = await started(runtime, *(request(5, id=str(n)) for n in range(3)))
            tasks[0].cancel()
            tasks[2].cancel()
            await asyncio.sleep(0)
            stuck.release.set()
            answer = await tasks[1]
        assert (answer.id, value_of(answer)) == ("1", 10)
        found = stats(runtime).inference_stats
        assert (found.success.count, found.fail.count) == (1, 2)


@pytest.mark.usefixtures("threads_only")
async def test_when_all_have_left_the_request_is_withdrawn(cached: Shop) -> None:
    async with cached.open() as runtime:
        with Stuck() as stuck:
            [blocker] = await started(runtime, request(1))
            await stuck.wait_until_entered()
            tasks = await started(runtime, request(5), request(5))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            stuck.release.set()
            await blocker
        assert counts(runtime)[2] == 1, "5 never ran"
        assert await ask(runtime, "net", value=5) == 10


@pytest.mark.usefixtures("threads_only")
async def test_requests_of_another_urgency_or_with_a_deadline_run_by_themselves(cached: Shop) -> None:
    async with cached.open() as runtime:
        with Stuck() as stuck:
            tasks = await started(
                runtime, request(5), request(5, priority=1), request(5, timeout_us=10_000_000), request(5)
            )
            stuck.release.set()
            await asyncio.gather(*tasks)
        assert counts(runtime)[:2] == (1, 3)


FAILS_ONCE = """
    from farthing import Tensor
    import time

    class Moody:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 8
        runs = 0

        def infer(self, inputs, requests):
            self.runs += 1
            if self.runs == 1:
                time.sleep(0.05)
                raise ValueError("not in the mood")
            return {"y": inputs["x"] + self.runs}
"""


def put_python(folder: Path, name: str, code: str, config: str) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(dedent(code))
    (folder / name / "config.pbtxt").write_text(config)


async def test_a_failure_is_its_own_request_s_alone_and_is_not_kept(shop: Shop) -> None:
    put_python(shop.folder, "net", FAILS_ONCE, CACHED)
    async with shop.open() as runtime:
        tasks = await started(runtime, request(1), request(1))
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, EngineFailed)
        assert value_of(second) == 3, "asked again, by itself"
        assert value_of(await runtime.infer(request(1))) == 4, "and only then kept"
        assert value_of(await runtime.infer(request(1))) == 4


@pytest.mark.usefixtures("threads_only")
async def test_a_request_refused_at_the_door_leaves_no_trace(cached: Shop) -> None:
    cached.configure(
        "net", CACHED + "dynamic_batching { default_queue_policy { max_queue_size: 1 } } max_batch_size: 8"
    )
    async with cached.open() as runtime:
        with Stuck() as stuck:
            tasks = await started(runtime, request(1))
            await stuck.wait_until_entered()
            tasks += await started(runtime, request(2))
            with pytest.raises(Overloaded):
                await runtime.infer(request(3))
            stuck.release.set()
            await asyncio.gather(*tasks)
        assert await ask(runtime, "net", value=3) == 6


# -- ensembles -------------------------------------------------------------------------------------------------------

CHAIN = """
platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling { step [
  { model_name: "net" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "mid" } },
  { model_name: "last" model_version: -1 input_map { key: "x" value: "mid" } output_map { key: "y" value: "y" } } ] }
"""


async def test_an_ensemble_is_cached_if_all_its_models_are_and_follows_their_loads(cached: Shop) -> None:
    cached.put("last", 5)
    cached.configure("last", CACHED)
    cached.configure("chain", CHAIN + CACHED)
    (cached.folder / "chain" / "1").mkdir()
    async with cached.open(EXPLICIT, load_models=("*",)) as runtime:
        assert [await ask(runtime, "chain"), await ask(runtime, "chain")] == [10, 10]
        assert counts(runtime, "chain")[:2] == (1, 1)
        cached.put("last", 7)
        await runtime.load("last")
        assert await ask(runtime, "chain") == 14
        await runtime.load("last", parse_model_config({}))
        assert [await ask(runtime, "chain"), await ask(runtime, "chain")] == [14, 14]
        assert counts(runtime, "chain")[:2] == (1, 2), "a step without a cache: nothing is looked up any more"
