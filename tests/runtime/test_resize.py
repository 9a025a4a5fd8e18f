"""More and fewer instances while requests run: none is lost, the model is never away, the rest is not loaded again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.models import save, tiny_mlp
from tests.runtime.shop import Shop, Stuck, ask

from farthing.config.model import parse_model_config
from farthing.config.server import ModelControl
from farthing.engines.contract import Batch, Executable, Member, ModelSource, Resizable
from farthing.engines.onnxruntime import OnnxRuntime
from farthing.engines.openvino import OpenVino
from farthing.runtime.runtime import Runtime
from farthing.runtime.served import ServedVersion
from farthing.types.errors import LoadFailed
from farthing.types.requests import InferRequest

EXPLICIT, POLL = ModelControl.EXPLICIT, ModelControl.POLL


def config(count: int, **more: Any) -> Any:
    return parse_model_config({"instance_group": [{"count": count, "kind": "KIND_CPU"}], **more})


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


def version(runtime: Runtime) -> ServedVersion:
    served = runtime.resolve("net")
    assert isinstance(served, ServedVersion)
    return served


@pytest.mark.usefixtures("threads_only")
async def test_more_instances_take_what_waits(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: 1")
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        before = version(runtime)
        with Stuck() as stuck:
            asked = [asyncio.create_task(ask(runtime, "net", value=n)) for n in range(3)]
            await stuck.wait_until_entered()
            assert before.statistics.running_batches == 1
            await runtime.load("net", config(3, max_batch_size=1))
            await until(lambda: before.statistics.running_batches == 3)
            stuck.release.set()
            assert await asyncio.gather(*asked) == [0, 2, 4]
        assert version(runtime) is before, "it was not loaded again"
        [group] = before.config.instance_group
        assert (group.count, group.name) == (3, "net_0")


@pytest.mark.usefixtures("threads_only")
async def test_instances_that_go_finish_what_they_run(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: 1 instance_group { count: 3 kind: KIND_CPU }")
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        served = version(runtime)
        with Stuck() as stuck:
            asked = [asyncio.create_task(ask(runtime, "net", value=n)) for n in range(5)]
            await stuck.wait_until_entered()
            loading = asyncio.create_task(runtime.load("net", config(1, max_batch_size=1)))
            await until(lambda: served.loop.instances == 1)
            assert not loading.done(), "two of them still run"
            assert not runtime.not_ready()
            stuck.release.set()
            assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8]
            await loading
        assert version(runtime) is served
        assert await ask(runtime, "net") == 2
        assert served.statistics.running_batches == 0


@pytest.mark.usefixtures("threads_only")
async def test_one_that_hangs_makes_it_a_load(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: 1 instance_group { count: 2 kind: KIND_CPU }")
    async with shop.open(EXPLICIT, load_models=("*",), exit_timeout_s=0.05) as runtime:
        before = version(runtime)
        with Stuck() as stuck:
            asked = [asyncio.create_task(ask(runtime, "net", value=n)) for n in range(2)]
            await stuck.wait_until_entered()
            await until(lambda: before.statistics.running_batches == 2)
            asyncio.get_running_loop().call_later(0.2, stuck.release.set)  # the new one is tried out before it serves
            await runtime.load("net", config(1, max_batch_size=1))
            assert version(runtime) is not before
            await asyncio.gather(*asked, return_exceptions=True)
            assert await ask(runtime, "net") == 2


async def test_editing_the_file_changes_instances_when_polling(shop: Shop) -> None:
    shop.put("net", 2)
    shop.configure("net", "max_batch_size: 8")
    async with shop.open(POLL) as runtime:
        served = version(runtime)
        shop.configure("net", "max_batch_size: 8 instance_group { count: 4 kind: KIND_CPU }")
        await runtime.look_again()
        assert (version(runtime), served.loop.instances) == (served, 4)
        shop.configure("net", "max_batch_size: 4 instance_group { count: 2 kind: KIND_CPU }")
        await runtime.look_again()
        assert version(runtime) is not served, "something else changed too"
        served = version(runtime)
        shop.put("net", 3)
        shop.configure("net", "max_batch_size: 4 instance_group { count: 1 kind: KIND_CPU }")
        await runtime.look_again()
        assert version(runtime) is not served, "so did the model"
        assert await ask(runtime, "net") == 3


async def test_loading_the_same_again_is_a_load(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        before = version(runtime)
        await runtime.load("net")
        assert version(runtime) is not before


async def test_what_cannot_be_had_changes_nothing(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        before = version(runtime)
        with pytest.raises(LoadFailed, match="asks for 1000 instances"):
            await runtime.load("net", config(1000))
        assert version(runtime) is before
        assert before.loop.instances == 1
        assert await ask(runtime, "net") == 2


PYTHON = """
    import os, time
    from pathlib import Path
    from farthing import Tensor

    class Counts:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 1

        def load(self, context):
            if Path(__file__).parents[2].joinpath("refuse").exists():
                raise RuntimeError("no more of me")

        def infer(self, inputs, requests):
            time.sleep(0.02)
            return {"y": inputs["x"] * 0 + os.getpid()}
"""


async def pids(runtime: Runtime, requests: int = 12) -> set[float]:
    def one() -> Any:
        return runtime.infer(InferRequest(model_name="net", inputs={"x": np.zeros((1, 1), np.float32)}))

    answers = await asyncio.gather(*(one() for _ in range(requests)))
    return {float(answer.outputs["y"][0, 0]) for answer in answers}


async def test_processes_of_python_models_come_and_go_under_load(shop: Shop) -> None:
    (shop.folder / "net" / "1").mkdir(parents=True)
    (shop.folder / "net" / "1" / "model.py").write_text(dedent(PYTHON))
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        first = await pids(runtime)
        assert len(first) == 1
        load = asyncio.create_task(pids(runtime, 40))
        await runtime.load("net", config(3))
        assert first < await pids(runtime), "the one there was, and others"
        await load
        load = asyncio.create_task(pids(runtime, 40))
        await asyncio.sleep(0)
        await runtime.load("net", config(1))
        await load
        assert await pids(runtime) == first
        assert len(version(runtime).executable.pids) == 1  # type: ignore[attr-defined]


async def test_a_process_that_does_not_start_leaves_the_others(shop: Shop) -> None:
    (shop.folder / "net" / "1").mkdir(parents=True)
    (shop.folder / "net" / "1" / "model.py").write_text(dedent(PYTHON))
    async with shop.open(EXPLICIT, load_models=("net",)) as runtime:
        first = await pids(runtime)
        (shop.folder / "refuse").touch()
        with pytest.raises(LoadFailed, match="no more of me"):
            await runtime.load("net", config(2))
        assert await pids(runtime) == first
        assert version(runtime).loop.instances == 1
        (shop.folder / "refuse").unlink()
        await runtime.load("net", config(2))
        assert first < await pids(runtime)


# -- engines ---------------------------------------------------------------------------------------------------------


def answers_of(executable: Executable, instances: int) -> None:
    x = np.ones((1, 32), np.float32)
    [name] = [spec.name for spec in executable.outputs]
    found = [
        executable.execute(Batch({executable.inputs[0].name: x}, (name,), (Member(1),)), instance)
        for instance in range(instances)
    ]
    for answer in found:
        np.testing.assert_array_equal(answer[name], found[0][name])  # type: ignore[call-overload]


@pytest.mark.parametrize("engine", [OnnxRuntime(), OpenVino()], ids=lambda engine: str(engine.name))
def test_every_engine_s_new_instances_answer_as_the_first(tmp_path: Path, engine: Any) -> None:
    if engine.name == "openvino":
        pytest.importorskip("openvino")
    save(tmp_path / "m", tiny_mlp())
    path = tmp_path / "m" / "1" / "model.onnx"
    executable = engine.load(ModelSource(name="m", version=1, path=path, folder=tmp_path / "m"))
    assert isinstance(executable, Resizable)
    for instances in (3, 1, 2):
        executable.resize(instances)
        answers_of(executable, instances)
    executable.close()
