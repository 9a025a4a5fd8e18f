"""Models that ask other models: Python models in processes of their own, ONNX models beside them, one runtime."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.models import identity, model, save, tensor_info
from tests.runtime.shop import Shop, Stuck, ask, settle

from farthing.config.server import ModelControl
from farthing.engines.python.engine import PythonModel
from farthing.runtime.runtime import Runtime
from farthing.runtime.served import ServedVersion
from farthing.telemetry.traces import begin_trace
from farthing.types.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.trace import Trace

FACT_MAX_S = 60
"""What must come true does so in milliseconds, but not on a machine whose cores are busy with other tests."""

HEAD = """
    import asyncio, os, threading, time
    import numpy as np
    from farthing import Tensor

    class Model:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 8

        def load(self, context):
            self.models = context.models
"""

WriteModel = Callable[..., None]


@pytest.fixture
def write(shop: Shop) -> WriteModel:
    """Writes a Python model of that `infer`, from `x` to `y`; `others` is what it may ask."""

    def put(name: str, infer: str, *, instances: int = 1, config: str = "") -> None:
        folder = shop.folder / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(dedent(HEAD) + "\n" + _indented(infer))
        shop.configure(
            name,
            f"instance_group {{ count: {instances} kind: KIND_CPU }} {config} "
            'parameters { key: "restart_delay_seconds" value { string_value: "0.01" } }',
        )

    return put


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in dedent(code).splitlines())


async def told(runtime: Runtime, name: str, value: float = 1, **fields: Any) -> InferResponse:
    inputs = {"x": np.full((1, 1), value, np.float32)}
    return await runtime.infer(InferRequest(model_name=name, inputs=inputs, **fields))


def executable_of(runtime: Runtime, name: str) -> PythonModel:
    served = runtime.resolve(name)
    assert isinstance(served, ServedVersion)
    assert isinstance(served.executable, PythonModel)
    return served.executable


CHAIN = """
def infer(self, inputs):
    doubled = self.models["double"]({"x": inputs["x"]})["y"]
    return {"y": self.models["triple", 1]({"x": doubled}, outputs=["y"])["y"]}
"""

SPREAD = """
async def infer(self, inputs):
    ask = [self.models[name].infer_async({"x": inputs["x"]}) for name in ("double", "triple", "chain") * 30]
    answers = await asyncio.gather(*ask)
    return {"y": sum(answer["y"] for answer in answers)}
"""

THREADS = """
def infer(self, inputs):
    sums = []
    def work():
        for _ in range(20):
            sums.append(self.models["double"]({"x": inputs["x"]})["y"])
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"y": sum(sums)}
"""


async def test_a_model_asks_others_one_after_the_other_at_once_and_from_threads(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    shop.put("triple", 3)
    write("chain", CHAIN, instances=2)
    write("spread", SPREAD)
    write("threads", THREADS)
    async with shop.open() as runtime:
        assert await ask(runtime, "chain", value=5) == 30
        assert await ask(runtime, "spread", value=1) == 30 * (2 + 3 + 6)
        assert await ask(runtime, "threads", value=1) == 160 * 2
        answers = await asyncio.gather(*(ask(runtime, name, value=1) for name in ("chain", "spread", "threads") * 5))
        assert answers == [6, 330, 320] * 5
        # What they asked went through the queues, where it met others.
        [double] = runtime.statistics("double")
        assert double.inference_count > double.execution_count


PROBE = """
def infer(self, inputs):
    found = []
    for name, array in (("ghost", inputs["x"]), ("double", inputs["x"][0]), ("double", [1.5]), ("tenfold", inputs["x"])):
        try:
            found.append(self.models[name]({"x": array})["y"])
        except Exception as problem:
            print(type(problem).__name__, problem)
            found.append(type(problem).__name__)
    assert found[:3] == ["ModelNotFound", "InvalidInput", "InvalidInput"], found
    if inputs["x"][0, 0] == 1:
        self.models["ghost"]({"x": inputs["x"]})
    if inputs["x"][0, 0] == 2:
        self.models["double"]({"z": inputs["x"]})
    return {"y": inputs["x"] if isinstance(found[3], str) and found[3] == "ModelNotFound" else found[3]}
"""


async def test_what_goes_wrong_is_raised_by_its_kind_and_a_model_that_comes_later_is_found(
    shop: Shop, write: WriteModel
) -> None:
    shop.put("double", 2)
    shop.put("tenfold", 10)
    write("probe", PROBE)
    async with shop.open(ModelControl.EXPLICIT, load_models=("double", "probe")) as runtime:
        with pytest.raises(Unavailable, match=r"model `probe`: .*'ghost' is not found"):
            await ask(runtime, "probe", value=1)
        with pytest.raises(InvalidInput, match="unexpected inference input 'z'"):
            await ask(runtime, "probe", value=2)
        assert await ask(runtime, "probe", value=3) == 3
        await runtime.load("tenfold")
        assert await ask(runtime, "probe", value=3) == 30
        await runtime.unload("tenfold")
        assert await ask(runtime, "probe", value=3) == 3


ASK_OTHER = """
def infer(self, inputs):
    turns = inputs["x"][0, 0]
    return {"y": self.models["OTHER"]({"x": inputs["x"] - 1})["y"] if turns > 0 else inputs["x"] + 100}
"""


async def test_a_circle_without_an_instance_for_each_turn_is_refused_at_once(shop: Shop, write: WriteModel) -> None:
    write("ping", ASK_OTHER.replace("OTHER", "pong"), config="max_batch_size: 1")
    write("pong", ASK_OTHER.replace("OTHER", "ping"), config="max_batch_size: 1")
    write("self", ASK_OTHER.replace("OTHER", "self"), instances=3, config="max_batch_size: 1")
    async with shop.open() as runtime:
        assert await ask(runtime, "ping", value=0) == 100
        assert await ask(runtime, "ping", value=1) == 100
        with pytest.raises(EngineFailed, match="a request to model `ping` would wait for ever"):
            await ask(runtime, "ping", value=2)
        assert await ask(runtime, "self", value=2) == 100
        with pytest.raises(EngineFailed, match="would wait for ever"):
            await ask(runtime, "self", value=3)
        # Many at once: each takes an instance and waits for another. Some are refused, none waits for ever.
        crowd = [ask(runtime, name, value=2) for name in ("self", "self", "ping", "pong") * 5]
        crowd += [ask(runtime, name, value=1) for name in ("ping", "pong") * 5]
        answers = await asyncio.wait_for(asyncio.gather(*crowd, return_exceptions=True), 20)
        assert 100 in answers
        assert all(answer == 100 or isinstance(answer, EngineFailed) for answer in answers)
        assert await ask(runtime, "ping", value=1) == 100


INHERIT = """
def infer(self, inputs, requests):
    first = self.models["double"]({"x": inputs["x"]})["y"]
    for request in requests:
        self.models["double"]({"x": inputs["x"]}, request=request, request_id="mine", timeout_s=2.0, priority=3)
    return {"y": first}
"""


async def test_a_request_is_asked_on_behalf_of_those_that_run(
    shop: Shop, write: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("double", 2)
    write("outer", INHERIT)
    seen: list[InferRequest] = []
    submit = ServedVersion.submit

    def spy(self: ServedVersion, request: InferRequest, *more: Any) -> Any:
        seen.append(request)
        return submit(self, request, *more)

    monkeypatch.setattr(ServedVersion, "submit", spy)
    async with shop.open() as runtime:
        trace = Trace(begin_trace(is_sampled=True))
        await told(runtime, "outer", id="yours", tenant="ann", priority=2, timeout_us=9_000_000, trace=trace)
        outer, whole, one = seen
        assert outer.origin is None
        assert (whole.model_name, whole.tenant, whole.priority) == ("double", "ann", 2)
        asked = [span for span in trace.spans if span.name == "subrequest double"]
        assert [span.context.parent_span_id for span in asked] == [trace.context.span_id] * 2
        assert whole.trace is not None
        assert whole.trace.context == asked[0].context
        assert 0 < whole.timeout_us < 9_000_000
        assert whole.origin is not None
        assert (one.id, one.tenant, one.priority, one.timeout_us) == ("mine", "ann", 3, 2_000_000)


LATE = """
def infer(self, inputs):
    time.sleep(0.03)
    return {"y": self.models["double"]({"x": inputs["x"]})["y"]}
"""


async def test_a_request_whose_time_is_over_asks_no_more(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("late", LATE)
    async with shop.open() as runtime:
        with pytest.raises(DeadlineExceeded, match="time ran out before model `double` was asked"):
            await told(runtime, "late", timeout_us=20_000)


PATIENT = """
async def infer(self, inputs):
    value = inputs["x"][0, 0]
    asking = asyncio.gather(*(self.models["double"].infer_async({"x": inputs["x"]}) for _ in range(4)))
    if value < 0:
        try:
            await asyncio.wait_for(asking, 0.02)
        except asyncio.TimeoutError:
            return {"y": inputs["x"]}
    return {"y": (await asking)[0]["y"]}
"""


@pytest.mark.usefixtures("threads_only")
async def test_who_leaves_or_dies_takes_its_requests_along(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    shop.configure("double", "max_batch_size: 1")
    write("patient", PATIENT)
    async with shop.open() as runtime:
        double, patient = runtime.resolve("double"), executable_of(runtime, "patient")
        with Stuck() as stuck:
            # Somebody else's runs, so that all four wait, and are taken back.
            running = asyncio.ensure_future(ask(runtime, "double", value=3))
            await stuck.wait_until_entered()
            assert await ask(runtime, "patient", value=-1) == -1
            await until(lambda: double.statistics.pending_requests == 0)

            dying = asyncio.ensure_future(ask(runtime, "patient", value=1))
            await until(lambda: double.statistics.pending_requests == 4)
            [pid] = patient.pids
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineFailed, match="SIGKILL"):
                await dying
            await until(lambda: double.statistics.pending_requests == 0)
        assert await running == 6
        await until(lambda: patient.health() == "")
        assert await ask(runtime, "patient", value=4) == 8
        assert not runtime._subrequests._waits
        assert not runtime._subrequests._withdraws


@pytest.mark.usefixtures("threads_only")
async def test_a_model_that_is_unloaded_answers_what_it_was_asked_and_then_is_not_there(
    shop: Shop, write: WriteModel
) -> None:
    shop.put("double", 2)
    shop.configure("double", "max_batch_size: 1")
    write("patient", PATIENT, instances=2)
    async with shop.open(ModelControl.EXPLICIT, load_models=("*",)) as runtime:
        double = runtime.resolve("double")
        with Stuck() as stuck:
            asked = asyncio.ensure_future(ask(runtime, "patient", value=5))
            await stuck.wait_until_entered()
            await until(lambda: double.statistics.pending_requests > 0)
            await runtime.unload("double")
            with pytest.raises(Unavailable):
                await ask(runtime, "patient", value=-1)
            stuck.release.set()
            assert await asked == 10
        await settle(runtime)
        with pytest.raises(Unavailable, match="'double'"):
            await ask(runtime, "patient", value=5)


async def test_the_model_of_the_reference_page_compares_two_others(shop: Shop) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python-models.md").read_text()
    [shown] = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "infer_async" in code]
    for name, sign in (("effnet-lite0", 1), ("effnet-int8", -1)):
        means = [helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0)]
        means.append(helper.make_node("Mul", ["means", "sign"], ["logits"]))
        shapes = tensor_info("images", "FP32", ["b", 3, 224, 224]), tensor_info("logits", "FP32", ["b", 3])
        save(shop.folder / name, model(means, [shapes[0]], [shapes[1]], {"sign": np.float32([sign])}))
    (shop.folder / "shown" / "1").mkdir(parents=True)
    (shop.folder / "shown" / "1" / "model.py").write_text(shown)
    images = np.zeros((2, 3, 224, 224), np.float32)
    images[1, 2] = 1
    async with shop.open() as runtime:
        answer = await runtime.infer(InferRequest(model_name="shown", inputs={"images": images}))
        assert answer.outputs["agree"].tolist() == [[True], [False]]


LARGE = """
def infer(self, inputs):
    size = 25_000_000
    large = np.arange(size, dtype=np.float32).reshape(1, size)
    once = self.models["same"]({"x": large})["y"]
    assert not once.flags.owndata and once.flags.writeable
    again = self.models["same"]({"x": once})["y"]
    once[0, 7] = 0  # the model's own by now
    assert (large == again).all()
    for _ in range(3):
        again = self.models["same"]({"x": again})["y"]
    return {"y": again[:, -1:]}
"""


async def test_tensors_of_100_megabytes_go_there_and_back(shop: Shop, write: WriteModel) -> None:
    save(shop.folder / "same", identity("FP32", ("batch", "n")))
    write("large", LARGE)
    async with shop.open() as runtime:
        assert await ask(runtime, "large") == np.float32(24_999_999)


BUSY = """
def infer(self, inputs):
    try:
        return {"y": self.models["double"]({"x": inputs["x"]})["y"]}
    except Exception as problem:
        problem.message = "told on: " + problem.message
        raise
"""


@pytest.mark.usefixtures("threads_only")
async def test_a_full_queue_of_the_other_model_is_told_as_such(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    shop.configure("double", "dynamic_batching { default_queue_policy { max_queue_size: 1 } }")
    write("busy", BUSY, instances=1)
    async with shop.open() as runtime:
        with Stuck() as stuck:
            first = asyncio.ensure_future(ask(runtime, "double"))
            await stuck.wait_until_entered()
            second = asyncio.ensure_future(ask(runtime, "double"))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match=r"told on: .*queue"):
                await ask(runtime, "busy")
        assert await asyncio.gather(first, second) == [2, 2]


async def until(fact: Callable[[], bool]) -> None:
    """Waits for what happens on another thread or process."""
    async with asyncio.timeout(FACT_MAX_S):
        while not fact():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)
