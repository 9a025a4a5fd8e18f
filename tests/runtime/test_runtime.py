"""The whole server without a socket: real files through real engines, changed on disk while they serve."""

import asyncio
import hashlib
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tests.models import save, tiny_mlp
from tests.runtime.shop import Shop, Stuck, answer_of, ask, lines, reason, settle

from farthing.config.server import ModelControl
from farthing.engines.onnxruntime import OnnxExecutable
from farthing.runtime.runtime import Runtime
from farthing.telemetry.clock import ManualClock
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import InvalidInput, LoadFailed, NotFound, Unavailable
from farthing.types.requests import InferRequest

EXPLICIT, POLL = ModelControl.EXPLICIT, ModelControl.POLL


# -- starting --------------------------------------------------------------------------------------------------------


async def test_all_models_are_loaded_and_what_is_broken_says_why_while_the_others_serve(shop: Shop) -> None:
    shop.put("good", 2)
    shop.put("bad", 3).write_bytes(b"not onnx")
    shop.configure("ugly", "max_batch_size: {")
    async with shop.open() as runtime:
        assert await ask(runtime, "good") == 2
        assert lines(runtime) == [("bad", "1", "UNAVAILABLE"), ("good", "1", "READY"), ("ugly", "", "UNAVAILABLE")]
        assert "model.onnx" in reason(runtime, "bad")
        assert "config.pbtxt" in reason(runtime, "ugly")
        with pytest.raises(Unavailable, match=r"config\.pbtxt"):
            await ask(runtime, "ugly")
        with pytest.raises(Unavailable, match="not at ready state"):
            await ask(runtime, "bad")
        assert "bad" in runtime.not_ready()
        assert [line.name for line in runtime.index(only_ready=True)] == ["good"]


async def test_readiness_may_be_only_the_server_s_own(shop: Shop) -> None:
    shop.put("bad", 3).write_bytes(b"not onnx")
    async with shop.open(strict_readiness=False) as runtime:
        assert runtime.not_ready() == ""
        runtime.begin_stop()
        assert runtime.not_ready() == "the server is stopping"


async def test_only_models_that_were_named_are_loaded_in_explicit_mode(shop: Shop) -> None:
    shop.put("a", 2)
    shop.put("b", 3)
    async with shop.open(EXPLICIT, load_models=("a", "ghost")) as runtime:
        assert lines(runtime) == [("a", "1", "READY"), ("b", "", ""), ("ghost", "", "UNAVAILABLE")]
        assert "ghost" in runtime.not_ready()
        with pytest.raises(NotFound):
            await ask(runtime, "b")
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        assert (await ask(runtime, "a"), await ask(runtime, "b")) == (2, 3)
        assert runtime.not_ready() == ""


async def test_names_nobody_knows_are_not_found(shop: Shop) -> None:
    shop.put("a", 2)
    async with shop.open() as runtime:
        with pytest.raises(NotFound, match="unknown model: 'z' is not found"):
            await ask(runtime, "z")
        with pytest.raises(NotFound, match="'a' version 7 is not found; versions found: 1"):
            await ask(runtime, "a", "7")
        for odd in ("x", "-1", "1.0", "٣", "9" * 4000):
            with pytest.raises(InvalidInput, match="not a whole number"):
                await ask(runtime, "a", odd)


# -- polling ---------------------------------------------------------------------------------------------------------


async def test_a_look_loads_what_came_reloads_what_changed_and_unloads_what_went(shop: Shop) -> None:
    shop.put("stays", 1)
    shop.put("changes", 2)
    shop.put("goes", 3)
    async with shop.open(POLL) as runtime:
        before = runtime.resolve("stays")
        shop.put("comes", 4)
        shop.put("changes", 5)
        shutil.rmtree(shop.folder / "goes")
        await runtime.look_again()
        assert [await ask(runtime, name) for name in ("stays", "changes", "comes")] == [1, 5, 4]
        with pytest.raises(NotFound):
            await ask(runtime, "goes")
        assert [name for name, _, _ in lines(runtime)] == ["changes", "comes", "stays"]
        assert runtime.resolve("stays") is before, "what did not change is not touched"


async def test_a_model_that_breaks_serves_on_and_goes_when_it_is_deleted(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(POLL) as runtime:
        shop.configure("net", "max_batch_size: {")
        for _ in range(3):
            await runtime.look_again()
            assert await ask(runtime, "net") == 2
            assert runtime.not_ready() == ""
        shutil.rmtree(shop.folder / "net")
        await runtime.look_again()
        assert lines(runtime) == []


async def test_a_broken_model_that_is_mended_is_loaded(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: {")
    async with shop.open(POLL) as runtime:
        assert lines(runtime) == [("net", "", "UNAVAILABLE")]
        shop.configure("net", "max_batch_size: 4")
        await runtime.look_again()
        assert await ask(runtime, "net") == 2
        assert lines(runtime) == [("net", "1", "READY")]
        assert runtime.not_ready() == ""


async def test_a_broken_model_that_is_deleted_is_forgotten(shop: Shop) -> None:
    shop.configure("net", "max_batch_size: {")
    async with shop.open(POLL) as runtime:
        assert lines(runtime) == [("net", "", "UNAVAILABLE")]
        shutil.rmtree(shop.folder / "net")
        await runtime.look_again()
        assert lines(runtime) == []
        assert runtime.not_ready() == ""


async def test_a_disk_that_is_away_for_a_moment_reloads_nothing(shop: Shop, tmp_path: Path) -> None:
    shop.put("net", 2)
    async with shop.open(POLL) as runtime:
        before = runtime.resolve("net")
        shop.folder.rename(tmp_path / "away")
        for _ in range(2):
            await runtime.look_again()
            assert await ask(runtime, "net") == 2
        (tmp_path / "away").rename(shop.folder)
        await runtime.look_again()
        assert runtime.resolve("net") is before
        assert lines(runtime) == [("net", "1", "READY")]


async def test_a_model_with_the_same_name_as_another_is_a_problem_until_one_is_gone(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(POLL) as runtime:
        shop.put("other", 3)
        shop.configure("other", 'name: "net"')
        await runtime.look_again()
        assert await ask(runtime, "net") == 2
        shutil.rmtree(shop.folder / "other")
        await runtime.look_again()
        assert await ask(runtime, "net") == 2
        assert runtime.not_ready() == ""


async def test_polling_looks_by_itself(shop: Shop) -> None:
    looked = asyncio.Event()

    async def look(self: Runtime) -> None:
        looked.set()
        raise OSError("a look that fails is not the last")

    with mock.patch.object(Runtime, "look_again", look):
        async with shop.open(POLL, poll_s=0.001):
            for _ in range(2):
                looked.clear()
                await asyncio.wait_for(looked.wait(), 20)


# -- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads_only")
@pytest.mark.parametrize("is_unloaded", [False, True])
async def test_a_batch_that_takes_too_long_is_reported_even_on_its_way_out(shop: Shop, is_unloaded: bool) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",), hang_timeout_s=10.0) as runtime:
        clock = ManualClock()
        runtime._clock = clock
        with Stuck() as stuck:
            riding = asyncio.ensure_future(ask(runtime, "net"))
            await stuck.wait_until_entered()
            if is_unloaded:
                await runtime.unload("net")
            [running] = runtime.catalog.running()
            clock.advance(ns=running.started_ns)
            clock.advance(s=10)
            assert runtime.hung() is None
            clock.advance(s=1)
            assert str(runtime.hung()) == "model `net` version 1 has been running one batch for 11.0 s"
            stuck.release.set()
            await riding
        await settle(runtime)
        assert runtime.hung() is None


async def test_trouble_of_an_engine_is_the_server_s(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        with mock.patch.object(OnnxExecutable, "health", return_value="its process keeps dying"):
            assert runtime.not_ready() == "model `net` version 1: its process keeps dying"
        assert runtime.not_ready() == ""


async def test_nothing_can_be_loaded_while_stopping(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        runtime.begin_stop()
        assert await ask(runtime, "net") == 2, "requests are still answered"
        with pytest.raises(Unavailable, match="Server is stopping"):
            await runtime.load("net")


# -- requests --------------------------------------------------------------------------------------------------------


async def test_many_requests_at_once_each_get_their_own_answer(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        answers = await asyncio.gather(*(ask(runtime, "net", value=value) for value in range(500)))
        assert answers == [2 * value for value in range(500)]
        [statistics] = runtime.statistics("net")
        assert statistics.inference_count == 500
        assert statistics.execution_count <= 500
        assert sum(one.batch_size * one.compute_infer.count for one in statistics.batch_stats) == 500


async def test_what_does_not_fit_is_counted_as_the_client_s_mistake(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        with pytest.raises(InvalidInput):
            await runtime.infer(InferRequest(model_name="net", inputs={"x": np.zeros((1, 2), np.float32)}))
        assert runtime.resolve("net").statistics.failures[FailureReason.INVALID] == 1


@pytest.mark.usefixtures("threads_only")
async def test_a_request_whose_waiter_gives_up_is_withdrawn(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        with Stuck() as stuck:
            first = asyncio.ensure_future(ask(runtime, "net"))
            await stuck.wait_until_entered()
            second = asyncio.ensure_future(ask(runtime, "net"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert runtime.resolve("net").loop._queue.requests == 0
            stuck.release.set()
            assert await first == 2
        assert runtime.resolve("net").statistics.failures[FailureReason.CANCELED] == 1


async def test_a_reshape_is_undone_on_the_way_back(shop: Shop) -> None:
    save(shop.folder / "mlp", tiny_mlp())
    shop.configure(
        "mlp",
        """max_batch_size: 4
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4, 8 ] reshape { shape: [ 32 ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 2, 4 ] reshape { shape: [ 8 ] } } ]""",
    )
    async with shop.open() as runtime:
        answer = await runtime.infer(InferRequest(model_name="mlp", inputs={"x": np.ones((3, 4, 8), np.float32)}))
        assert answer.outputs["y"].shape == (3, 2, 4)


async def test_zero_rows_are_answered_with_zero_rows(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open() as runtime:
        answer = await runtime.infer(InferRequest(model_name="net", inputs={"x": np.zeros((0, 1), np.float32)}))
        assert answer.outputs["y"].shape == (0, 1)


async def test_two_instances_serve_at_once(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: 8 instance_group [ { count: 2 kind: KIND_CPU } ]")
    async with shop.open() as runtime:
        assert await asyncio.gather(*(ask(runtime, "net", value=n) for n in range(50))) == [2 * n for n in range(50)]


async def test_a_python_model_serves_and_is_let_go(shop: Shop) -> None:
    (shop.folder / "doubler").mkdir()
    (shop.folder / "doubler" / "1").mkdir()
    (shop.folder / "doubler" / "1" / "model.py").write_text(
        """
from farthing import Tensor

class Doubler:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 4

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""
    )
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        assert runtime.resolve("doubler").spec.batch_rows_max == 4
        assert await asyncio.gather(*(ask(runtime, "doubler", value=n) for n in range(9))) == [2 * n for n in range(9)]
        await runtime.unload("doubler")
        await settle(runtime)


async def test_a_forest_serves(shop: Shop) -> None:
    import lightgbm

    rows = np.random.default_rng(0).standard_normal((200, 3))
    booster = lightgbm.train(
        {"objective": "regression", "verbose": -1, "num_leaves": 4, "num_threads": 1},
        lightgbm.Dataset(rows, rows.sum(axis=1)),
        num_boost_round=5,
    )
    (shop.folder / "forest" / "1").mkdir(parents=True)
    booster.save_model(shop.folder / "forest" / "1" / "model.txt")
    async with shop.open() as runtime:
        spec = runtime.resolve("forest").spec
        [x], [y] = spec.inputs, spec.outputs
        inputs = {x.name: rows[:5].astype(x.dtype)}
        answer = await runtime.infer(InferRequest(model_name="forest", inputs=inputs))
        assert answer.outputs[y.name].ravel() == pytest.approx(booster.predict(rows[:5]), rel=1e-5)


async def test_the_answer_says_which_version_gave_it_and_where_its_time_went(shop: Shop) -> None:
    shop.put("net", 2, 7)
    async with shop.open() as runtime:
        answer = await answer_of(runtime, "net")
        assert (answer.model_name, answer.model_version) == ("net", "7")
        assert answer.timing.compute_ns > 0
        assert answer.timing.batch_requests == 1


async def test_a_model_whose_file_is_not_what_its_checksum_says_is_not_loaded(shop: Shop) -> None:
    file = shop.put("net", 2)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    agent = (
        'model_repository_agents { agents { name: "checksum" parameters { key: "SHA256:1/model.onnx" value: "%s" } } }'
    )
    shop.configure("net", agent % digest)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        assert await ask(runtime, "net") == 2
        shop.put("net", 3)
        with pytest.raises(LoadFailed, match="the file was damaged or changed"):
            await runtime.load("net")
        assert await ask(runtime, "net") == 2, "what serves goes on serving"
