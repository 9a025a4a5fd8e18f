"""More models than memory: real files of known weight under a budget that holds some of them at a time."""

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.runtime.shop import Shop, Stuck, answer_of, ask, lines, reason, settle

from farthing.config.server import ModelControl
from farthing.repository import repository
from farthing.runtime import load_any
from farthing.runtime.resting import RESTING, Resting
from farthing.runtime.room import Room
from farthing.runtime.runtime import Runtime
from farthing.types.errors import DeadlineExceeded, InvalidInput, NotFound, Overloaded, Unavailable
from farthing.types.requests import InferRequest

MIB = 1 << 20
HEAVY = 8
"""MiB of weights of one model; with what an engine needs beside them it is measured as 8 to 10 MiB."""

TWO_FIT = 24 * MIB


def loads(runtime: Runtime, name: str) -> tuple[int, int]:
    return next((sample.loads, sample.evictions) for sample in runtime.model_samples() if sample.name == name)


def in_memory(runtime: Runtime) -> set[str]:
    return {line.name for line in runtime.index(only_ready=True)}


async def held(runtime: Runtime) -> int:
    """What is held once there is room: what other threads of this process take meanwhile is counted as a model's, and
    then one has to go that is still busy when the next is loaded."""
    for _ in range(100):
        memory = runtime.memory_bytes()
        assert memory is not None
        if memory[0] <= memory[1]:
            break
        await asyncio.sleep(0.05)
    assert memory[1] == TWO_FIT
    return memory[0]


@pytest.fixture
def fleet(shop: Shop) -> Shop:
    for factor, name in enumerate("abc", 1):
        shop.put_heavy(name, factor, HEAVY)
    return shop


async def test_what_models_hold_is_measured_and_stays_within_the_budget(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        assert in_memory(runtime) == {"b", "c"}, "the one used longest ago made room"
        assert reason(runtime, "a") == RESTING
        for factor, name in enumerate("abc" * 2, 0):
            assert await ask(runtime, name, value=2) == pytest.approx(2 * (factor % 3 + 1))
            assert HEAVY * MIB <= await held(runtime) <= TWO_FIT
            assert name in in_memory(runtime)
        assert runtime.not_ready() == ""
        [usage] = runtime.statistics("c")[0].memory_usage
        assert HEAVY * MIB <= usage.byte_size < 2 * HEAVY * MIB


async def test_a_model_that_was_asked_lately_stays(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        await asyncio.sleep(0.002)  # the clock of use counts milliseconds
        await ask(runtime, "b")
        await ask(runtime, "a")
        assert in_memory(runtime) == {"a", "b"}
        assert loads(runtime, "b") == (1, 0)


async def test_a_resting_model_answers_all_but_inference_without_being_loaded(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        resting = runtime.resolve("a")
        assert isinstance(resting, Resting)
        assert resting.health() == ""
        assert [tensor.name for tensor in resting.spec_now().inputs] == ["x"]
        assert resting.config.backend == "onnxruntime"
        assert runtime.statistics("a")[0].memory_usage == ()
        with pytest.raises(InvalidInput, match="unexpected inference input"):
            await runtime.infer(InferRequest(model_name="a", inputs={"z": np.zeros((1, 1), np.float32)}))
        assert loads(runtime, "a") == (1, 1)


async def test_many_requests_for_a_resting_model_share_one_load(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        answers = await asyncio.gather(*(ask(runtime, "a", value=value) for value in range(50)))
        assert answers == pytest.approx(list(range(50)), rel=1e-4)
        assert loads(runtime, "a") == (2, 1)


async def test_models_thrown_out_in_turns_still_answer_every_request(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        names = ["abc"[turn % 3] for turn in range(60)]
        answers = await asyncio.gather(*(ask(runtime, name) for name in names))
        assert answers == pytest.approx([turn % 3 + 1 for turn in range(60)])
        total = sum(loads(runtime, name)[0] for name in "abc")
        assert total <= 6, "requests that wait for the same model share its load"


@pytest.mark.usefixtures("threads_only")
async def test_a_model_with_requests_under_way_is_not_unloaded(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        with Stuck() as stuck:
            riding = [asyncio.ensure_future(ask(runtime, name)) for name in "bc"]
            await stuck.wait_until_entered()
            waiting = asyncio.ensure_future(answer_of(runtime, "a"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert in_memory(runtime) == {"b", "c"}
            stuck.release.set()
            assert await asyncio.gather(*riding) == pytest.approx([2, 3])
            await waiting


async def test_a_pinned_model_stays_and_what_cannot_fit_beside_it_says_so(fleet: Shop) -> None:
    fleet.put_heavy("vast", 9, 3 * HEAVY)
    async with fleet.open(model_memory_bytes=TWO_FIT, pinned_models=("a",)) as runtime:
        for name in "bcbc":
            await ask(runtime, name)
        assert loads(runtime, "a") == (1, 0)
        assert "beside the models that are never unloaded" in reason(runtime, "vast")
        with pytest.raises(Unavailable, match="not at ready state"):
            await ask(runtime, "vast")


async def test_what_others_take_while_a_model_is_loaded_is_not_counted_as_its_own(fleet: Shop) -> None:
    others: list[bytearray] = []
    doubted: list[weakref.ref[Any]] = []

    def load_beside_others(*args: Any, **settings: Any) -> Any:
        loaded = load_version(*args, **settings)
        if not others and load.call_count == 2:  # the first load of all is not measured
            # four times the model: more than what earlier tests leave behind may free meanwhile
            others.append(bytearray(b"x" * (4 * HEAVY * MIB)))
            doubted.append(weakref.ref(loaded.executable))
        return loaded

    load_version = load_any.load_version
    with mock.patch.object(load_any, "load_version", side_effect=load_beside_others) as load:
        async with fleet.open(model_memory_bytes=TWO_FIT, pinned_models=("a",)) as runtime:
            assert others
            assert load.call_count >= 5, "three models, the first of all not measured, and what was doubted once more"
            [usage] = runtime.statistics("a")[0].memory_usage
            assert HEAVY * MIB <= usage.byte_size < 3 * HEAVY * MIB // 2
            assert await ask(runtime, "b") == pytest.approx(2)
            gc.collect()
            assert doubted[0]() is None, "what was loaded only to be measured is gone"


async def test_a_request_that_has_less_time_than_the_load_takes_is_told_when_to_come_back(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        inputs = {"x": np.ones((1, 1), np.float32)}
        with pytest.raises(DeadlineExceeded, match="which takes") as told:
            await runtime.infer(InferRequest(model_name="a", inputs=inputs, timeout_us=1))
        assert told.value.retry_after_s is not None
        assert told.value.retry_after_s > 0
        assert await ask(runtime, "a") == pytest.approx(1)
        assert loads(runtime, "a") == (2, 1), "it was loaded for whoever comes back"


@pytest.mark.usefixtures("threads_only")
async def test_waiting_requests_are_bounded_in_number_and_time_and_may_leave(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        resting = runtime.resolve("a")
        assert isinstance(resting, Resting)
        resting._requests_max = 2
        with Stuck() as stuck:
            riding = [asyncio.ensure_future(ask(runtime, name)) for name in "bc"]
            await stuck.wait_until_entered()
            leaves = asyncio.ensure_future(ask(runtime, "a"))
            inputs = {"x": np.ones((1, 1), np.float32)}
            late = asyncio.ensure_future(runtime.infer(InferRequest(model_name="a", inputs=inputs, timeout_us=600_000)))
            await asyncio.sleep(0)
            assert resting.statistics.pending_requests == 2
            with pytest.raises(Overloaded, match="2 requests wait for model `a`"):
                await ask(runtime, "a")
            leaves.cancel()
            with pytest.raises(DeadlineExceeded, match="was not loaded in the time"):
                await late
            assert resting.statistics.pending_requests == 0
            stuck.release.set()
            await asyncio.gather(*riding)


async def test_room_that_never_comes_is_told_with_when_to_come_back(fleet: Shop) -> None:
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        with (
            mock.patch("farthing.runtime.room.WAIT_S_MAX", 0.05),
            mock.patch("farthing.runtime.served.ServedVersion.is_busy", True),
            pytest.raises(Overloaded, match="the models in its place are busy"),
        ):
            await ask(runtime, "a")
        assert await ask(runtime, "a") == pytest.approx(1)


async def test_a_model_that_cannot_be_loaded_again_says_why_and_is_tried_again_later(fleet: Shop) -> None:
    file = fleet.folder / "a" / "1" / "model.onnx"
    good = file.read_bytes()
    async with fleet.open(model_memory_bytes=TWO_FIT) as runtime:
        file.write_bytes(b"not onnx")
        with pytest.raises(Unavailable, match="could not be loaded again") as told:
            await ask(runtime, "a")
        assert told.value.retry_after_s
        assert "model.onnx" in reason(runtime, "a")
        assert "model.onnx" in runtime.not_ready()
        attempts = mock.Mock(wraps=Room.load)
        with mock.patch.object(Room, "load", attempts), pytest.raises(Unavailable, match="could not be loaded again"):
            await ask(runtime, "a")
        assert not attempts.called, "a broken model is not tried by every request"
        file.write_bytes(good)
        resting = runtime.resolve("a")
        assert isinstance(resting, Resting)
        resting._try_again_s = 0
        assert await ask(runtime, "a") == pytest.approx(1)
        assert runtime.not_ready() == ""


async def test_a_model_that_was_unloaded_by_hand_is_not_loaded_on_demand(fleet: Shop) -> None:
    async with fleet.open(ModelControl.EXPLICIT, load_models=("*",), model_memory_bytes=TWO_FIT) as runtime:
        assert isinstance(runtime.resolve("a"), Resting)
        for name in "ab":  # one rests, one is in memory
            await runtime.unload(name)
            await settle(runtime)
            assert reason(runtime, name) == "unloaded"
            with pytest.raises(NotFound, match="no available versions"):
                await ask(runtime, name)
        await runtime.load("a")
        assert await ask(runtime, "a") == pytest.approx(1)


async def test_unloading_a_resting_model_answers_those_that_wait(fleet: Shop) -> None:
    async with fleet.open(ModelControl.EXPLICIT, load_models=("*",), model_memory_bytes=TWO_FIT) as runtime:
        resting = runtime.resolve("a")
        assert isinstance(resting, Resting)
        with mock.patch.object(resting, "_wake"):
            waiting = asyncio.ensure_future(ask(runtime, "a"))
            await asyncio.sleep(0)
            await runtime.unload("a")
            with pytest.raises(Unavailable, match="was unloaded"):
                await waiting


async def test_reloading_a_resting_model_hands_on_those_that_wait(fleet: Shop) -> None:
    async with fleet.open(ModelControl.EXPLICIT, load_models=("*",), model_memory_bytes=TWO_FIT) as runtime:
        resting = runtime.resolve("a")
        assert isinstance(resting, Resting)
        with mock.patch.object(resting, "_wake"):
            waiting = asyncio.ensure_future(ask(runtime, "a"))
            await asyncio.sleep(0)
            fleet.put_heavy("a", 7, HEAVY)
            await runtime.load("a")
            assert await waiting == pytest.approx(7)


async def test_an_ensemble_s_steps_are_loaded_when_it_is_asked(fleet: Shop) -> None:
    fleet.configure(
        "both",
        """
        platform: "ensemble"
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ -1, 1 ] }
        ensemble_scheduling {
          step { model_name: "a" model_version: -1
                 input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } }
          step { model_name: "c" model_version: -1
                 input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
        }
        """,
    )
    (fleet.folder / "both" / "1").mkdir()
    async with fleet.open(model_memory_bytes=12 * MIB) as runtime:  # one at a time
        assert await ask(runtime, "both", value=2) == pytest.approx(6)
        assert await ask(runtime, "both", value=3) == pytest.approx(9)
        assert loads(runtime, "both") == (1, 0)
        assert loads(runtime, "a")[0] >= 2


async def test_a_hundred_models_are_each_read_once_and_all_answer(shop: Shop) -> None:
    for number in range(100):
        shop.put(f"m{number:02d}", number)
    looked, loaded = mock.Mock(wraps=repository.model_in_folder), mock.Mock(wraps=load_any.load_version)
    with (
        mock.patch.object(repository, "model_in_folder", looked),
        mock.patch.object(load_any, "load_version", loaded),
    ):
        async with shop.open() as runtime:
            assert (looked.call_count, loaded.call_count) == (100, 100)
            assert runtime.not_ready() == ""
            answers = await asyncio.gather(*(ask(runtime, f"m{number:02d}") for number in range(100)))
            assert answers == list(range(100))
        looked.reset_mock()
        async with shop.open(ModelControl.EXPLICIT) as runtime:
            looked.reset_mock()
            for number in range(100):
                await runtime.load(f"m{number:02d}")
            assert looked.call_count == 100, "a load by name looks at that model alone"


async def test_a_python_model_is_weighed_with_its_process(shop: Shop, tmp_path: Path) -> None:
    folder = shop.folder / "snake" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(
        """
import numpy as np
from farthing import Tensor

class Model:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]

    def load(self):
        self.held = np.ones(16 << 20, np.uint8)

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""
    )
    async with shop.open(model_memory_bytes=512 * MIB) as runtime:
        assert lines(runtime) == [("snake", "1", "READY")], reason(runtime, "snake")
        [usage] = runtime.statistics("snake")[0].memory_usage
        assert 16 * MIB < usage.byte_size < 200 * MIB
