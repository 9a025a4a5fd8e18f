"""Streams of frames into pipelines of real models: which frames run, where the others end, and that all are told."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.runtime.shop import Shop, Stuck
from tests.runtime.test_pipelines import pipeline, python
from tests.runtime.test_subrequests import until

from farthing.config.server import ModelControl
from farthing.runtime.ensemble import Ensemble
from farthing.runtime.frame_stream import FrameAnswer, FrameStream
from farthing.runtime.runtime import Runtime
from farthing.telemetry.frame_counts import FrameCounts
from farthing.types.errors import InvalidInput, NotFound, Unavailable
from farthing.types.frames import DropReason, FrameOptions, FramePolicy
from farthing.types.requests import InferRequest, InferResponse

CHAIN = """
    inputs = ["a"]
    outputs = ["b"]
    step = [
      { model = "two", inputs = { x = "a" }, outputs = { y = "t" } },
      { model = "LAST", inputs = { x = "t" }, outputs = { y = "b" } },
    ]
"""

HOLD = """
    import time
    from pathlib import Path
    from farthing import Tensor

    HERE = Path(__file__).parent

    class Hold:  # holds every request as long as there is a file
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 8

        def infer(self, inputs):
            (HERE / "seen").touch()
            while (HERE / "held").exists():
                time.sleep(0.002)
            return {"y": inputs["x"] * 3}
"""


class Camera:
    """A stream, and what it was told of its frames."""

    def __init__(
        self, runtime: Runtime, policy: FramePolicy = FramePolicy.ALL, deadline_ms: float = 0, model: str = "chain"
    ) -> None:
        options = FrameOptions(policy=policy, deadline_ns=int(deadline_ms * 1e6))
        self.stream = FrameStream(runtime, model, "", options)
        self.told: list[FrameAnswer] = []

    def shoot(self, *values: float, **more: Any) -> None:
        for value in values:
            inputs = {"a": np.full((1, 1), value, np.float32)}
            request = InferRequest(model_name="chain", inputs=inputs, **more)
            self.stream.offer(request, time.monotonic_ns(), self.told.append)

    async def fates(self, count: int) -> list[float | str]:
        """Of so many frames: the number they became, or why they did not."""
        await until(lambda: len(self.told) >= count)
        assert [answer.number for answer in self.told] == list(range(1, count + 1))
        return [_fate(answer) for answer in self.told]


def _fate(answer: FrameAnswer) -> float | str:
    outcome = answer.outcome
    if isinstance(outcome, InferResponse):
        return float(outcome.outputs["b"][0, 0])
    return outcome.value if isinstance(outcome, DropReason) else type(outcome).__name__


@pytest.fixture
def chain(shop: Shop, threads_only: None) -> Shop:
    shop.put("two", 2)
    shop.put("three", 3)
    pipeline(shop, "chain", CHAIN.replace("LAST", "three"))
    return shop


def held(shop: Shop) -> tuple[Callable[[], None], Callable[[], bool]]:
    """A chain whose last step waits; how to let it go on, and whether it has been reached."""
    shop.put("two", 2)
    python(shop, "hold", HOLD)
    pipeline(shop, "chain", CHAIN.replace("LAST", "hold"))
    here = shop.folder / "hold" / "1"
    (here / "held").touch()
    return (here / "held").unlink, (here / "seen").exists


def frame_counts(runtime: Runtime) -> FrameCounts:
    frames = runtime.resolve("chain").statistics.frames
    assert frames is not None
    return frames


def counts(runtime: Runtime) -> dict[str, int]:
    frames = frame_counts(runtime)
    told = {f"dropped {reason}": count for reason, count in frames.dropped.items() if count}
    assert frames.received == frames.on_time + frames.late + frames.failed + sum(told.values())
    return {"on_time": frames.on_time, "late": frames.late, "failed": frames.failed, **told}


async def test_frames_go_through_all_steps_and_are_answered_in_order(chain: Shop) -> None:
    async with chain.open() as runtime:
        camera = Camera(runtime, deadline_ms=20_000)
        camera.shoot(*range(1, 21))
        assert await camera.fates(20) == [6.0 * value for value in range(1, 21)]
        assert all(answer.is_on_time for answer in camera.told)
        assert counts(runtime) == {"on_time": 20, "late": 0, "failed": 0}
        assert runtime.statistics("chain")[0].inference_count == 20
        summary = camera.stream.summary()
        assert (summary.received, summary.on_time) == (20, 20)
        camera.stream.close()


async def test_the_latest_frame_takes_the_place_of_one_that_has_not_begun(chain: Shop) -> None:
    async with chain.open() as runtime:
        camera = Camera(runtime, FramePolicy.LATEST)
        with Stuck() as stuck:
            camera.shoot(1)
            await stuck.wait_until_entered()
            camera.shoot(2, 3, 4)
            await asyncio.sleep(0)
            assert camera.told == [], "the first is told first"
        assert await camera.fates(4) == [6, "superseded", "superseded", 24]
        assert counts(runtime) == {"on_time": 2, "late": 0, "failed": 0, "dropped superseded": 2}
        camera.stream.close()


async def test_a_frame_begins_when_the_one_before_has_left_the_first_step(shop: Shop) -> None:
    let_go, is_reached = held(shop)
    async with shop.open() as runtime:
        camera = Camera(runtime, FramePolicy.LATEST)
        camera.shoot(1)
        await until(is_reached)
        camera.shoot(2)
        await until(lambda: runtime.statistics("two")[0].inference_count == 2)
        camera.shoot(3, 4)  # as many as there are steps are under way
        let_go()
        assert await camera.fates(4) == [6, 12, "superseded", 24]
        camera.stream.close()


async def test_late_frames_are_dropped_before_the_first_step_and_between_steps(chain: Shop) -> None:
    async with chain.open() as runtime:
        camera = Camera(runtime, deadline_ms=40)
        with Stuck() as stuck:
            camera.shoot(1)
            await stuck.wait_until_entered()
            camera.shoot(2, 3)
            await until(lambda: frame_counts(runtime).dropped[DropReason.LATE] == 2)
        assert await camera.fates(3) == ["late", "late", "late"]
        assert runtime.statistics("two")[0].inference_count <= 1
        assert runtime.statistics("three")[0].inference_count == 0, "what is late after a step begins no other"
        camera.shoot(4, timeout_us=20_000_000)
        assert (await camera.fates(4))[3] == 24
        assert (counts(runtime)["on_time"], counts(runtime)["dropped late"]) == (1, 3)
        camera.stream.close()


async def test_a_frame_that_waits_for_a_later_step_is_dropped_there_when_it_is_late(shop: Shop) -> None:
    let_go, is_reached = held(shop)
    async with shop.open() as runtime:
        patient, hasty = Camera(runtime), Camera(runtime, deadline_ms=60)
        patient.shoot(1)
        await until(is_reached)
        hasty.shoot(2)
        assert await hasty.fates(1) == ["late"]
        let_go()
        assert await patient.fates(1) == [6]
        assert runtime.statistics("hold")[0].inference_count == 1
        patient.stream.close()
        hasty.stream.close()


async def test_streams_share_a_pipeline_with_each_other_and_with_requests(chain: Shop) -> None:
    async with chain.open() as runtime:
        cameras = [Camera(runtime, deadline_ms=20_000) for _ in range(4)]
        for number, camera in enumerate(cameras):
            camera.shoot(*range(number, number + 20))
        plain = [
            runtime.infer(InferRequest(model_name="chain", inputs={"a": np.full((1, 1), value, np.float32)}))
            for value in range(30)
        ]
        assert [float(answer.outputs["b"][0, 0]) for answer in await asyncio.gather(*plain)] == [
            6.0 * value for value in range(30)
        ]
        for number, camera in enumerate(cameras):
            assert await camera.fates(20) == [6.0 * value for value in range(number, number + 20)]
            camera.stream.close()


async def test_who_leaves_takes_frames_along_wherever_they_are(shop: Shop) -> None:
    let_go, is_reached = held(shop)
    async with shop.open() as runtime:
        camera = Camera(runtime)
        camera.shoot(1, 2, 3, 4)
        await until(is_reached)
        camera.stream.close()
        ensemble = runtime.resolve("chain")
        assert isinstance(ensemble, Ensemble)
        assert not ensemble.under_way
        let_go()
        assert counts(runtime)["dropped gone"] == 4
        assert camera.told == []
        other = Camera(runtime)
        other.shoot(5)
        assert await other.fates(1) == [30]
        other.stream.close()


async def test_bad_frames_and_failing_steps_are_told_in_their_turn(shop: Shop) -> None:
    shop.put("two", 2)
    python(shop, "picky", HOLD.replace('(HERE / "seen").touch()', "assert inputs['x'][0, 0] != 4, 'not four'"))
    pipeline(shop, "chain", CHAIN.replace("LAST", "picky"))
    async with shop.open() as runtime:
        camera = Camera(runtime)
        camera.shoot(1)
        await camera.fates(1)
        camera.shoot(2)
        await camera.fates(2)
        bad = InferRequest(model_name="chain", inputs={"z": np.zeros((1, 1), np.float32)})
        camera.stream.offer(bad, time.monotonic_ns(), camera.told.append)
        camera.shoot(3)
        assert await camera.fates(4) == [6, "EngineFailed", "InvalidInput", 18]
        assert isinstance(camera.told[2].outcome, InvalidInput)
        assert counts(runtime) == {"on_time": 2, "late": 0, "failed": 2}
        camera.stream.close()


async def test_a_pipeline_that_is_unloaded_tells_its_frames(shop: Shop) -> None:
    let_go, is_reached = held(shop)
    async with shop.open(ModelControl.EXPLICIT, load_models=("chain",)) as runtime:
        camera = Camera(runtime)
        camera.shoot(1)
        await until(is_reached)
        camera.shoot(2, 3, 4)
        await until(lambda: runtime.statistics("two")[0].inference_count == 2)
        await runtime.unload("chain")
        camera.shoot(5)
        let_go()
        fates = await camera.fates(5)
        assert fates[:4] == [6, 12, "Unavailable", "Unavailable"], "what is under way goes on"
        assert isinstance(camera.told[4].outcome, Unavailable | NotFound)
        camera.stream.close()


async def test_the_steps_of_frames_carry_their_deadline(chain: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with chain.open() as runtime:
        two = runtime.resolve("two")
        seen: list[InferRequest] = []
        submit = two.submit

        def spy(request: InferRequest, *more: Any) -> Any:
            seen.append(request)
            return submit(request, *more)

        monkeypatch.setattr(two, "submit", spy)
        camera = Camera(runtime, deadline_ms=20_000)
        sent_ns = time.monotonic_ns()
        camera.shoot(1)
        await camera.fates(1)
        [asked] = seen
        assert 0 <= asked.due_ns - sent_ns - 20_000_000_000 < 1_000_000_000
        assert 0 < asked.timeout_us <= 20_000_000
        camera.stream.close()
