"""Ensembles and pipelines with a step that answers more than once: each response goes on through the later steps."""

import asyncio
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.runtime.shop import Shop, ask, reason
from tests.runtime.test_stream_subrequests import Talk, told
from tests.runtime.test_subrequests import until

from farthing.config.server import ModelControl
from farthing.runtime.runtime import Runtime
from farthing.runtime.served_streams import check_any
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput

COUNT = """
from pathlib import Path
from farthing import Tensor

class Count:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    def infer(self, inputs):
        for i in range(int(inputs["x"][0, 0])):
            yield {"y": inputs["x"] * 0 + i}
            made = Path(__file__).with_name("made")
            made.with_suffix(".new").write_text(str(i + 1))
            made.with_suffix(".new").replace(made)  # whoever reads it meanwhile finds a number
"""
UNEVEN = """
import time
from farthing import Tensor
from farthing.types.errors import InvalidInput

class Uneven:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 1

    def infer(self, inputs):
        x = float(inputs["x"][0, 0])
        if x == 13:
            raise InvalidInput("not thirteen")
        time.sleep(0.02 if x % 2 == 0 else 0)
        return {"y": inputs["x"] * 10}
"""


def step(model: str, reads: str, makes: str) -> str:
    return f'[[step]]\nmodel = "{model}"\ninputs = {{ x = "{reads}" }}\noutputs = {{ y = "{makes}" }}\n'


def pipeline(*steps: tuple[str, str, str], outputs: str = "y", more: str = "") -> str:
    listed = ", ".join(f'"{name}"' for name in outputs.split())
    return f'inputs = ["x"]\noutputs = [{listed}]\n{more}\n' + "".join(step(*one) for one in steps)


PIPELINES = {
    "middle": pipeline(("double", "x", "n"), ("count", "n", "i"), ("triple", "i", "y")),
    "only": pipeline(("count", "x", "y")),
    "nested": pipeline(("count", "x", "i"), ("count", "i", "j"), ("triple", "j", "y")),
    "around": pipeline(("double", "x", "twice"), ("count", "x", "y"), ("add", "y", "sum"), outputs="y sum twice"),
    "unsorted": pipeline(("count", "x", "i"), ("uneven", "i", "y")),
    "one_by_one": pipeline(("count", "x", "i"), ("uneven", "i", "y"), more="max_inflight_requests = 1"),
    "outer": pipeline(("middle", "x", "i"), ("double", "i", "y")),
}
ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling { step [
  { model_name: "count" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "i" } },
  { model_name: "triple" model_version: -1 input_map { key: "x" value: "i" } output_map { key: "y" value: "y" } }
] }
"""


def put_python(shop: Shop, name: str, code: str) -> None:
    folder = shop.folder / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(dedent(code))


def put_pipeline(shop: Shop, name: str, text: str) -> None:
    (shop.folder / name).mkdir()
    (shop.folder / name / "pipeline.toml").write_text(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("streams") / "models")
    put_python(shop, "count", COUNT)
    put_python(shop, "uneven", UNEVEN)
    shop.configure("uneven", "instance_group { count: 2 kind: KIND_CPU }")
    for name, factor in (("double", 2), ("triple", 3), ("add", 1)):
        shop.put(name, factor)
    for name, text in PIPELINES.items():
        put_pipeline(shop, name, text)
    shop.configure("triton", ENSEMBLE)
    (shop.folder / "triton" / "1").mkdir()
    return shop


async def test_each_response_is_an_answer_in_its_order(shop: Shop) -> None:
    async with shop.open() as runtime:
        assert await told(runtime, "middle", 2) == [0, 3, 6, 9]
        assert await told(runtime, "only", 3) == [0, 1, 2]
        assert await told(runtime, "triton", 3) == [0, 3, 6]
        assert await told(runtime, "nested", 4) == [0, 0, 3, 0, 3, 6], (
            "and each of those may be answered more than once"
        )
        assert await told(runtime, "outer", 2) == [0, 6, 12, 18], "ensembles are models too"
        assert await told(runtime, "unsorted", 7) == [0, 10, 20, 30, 40, 50, 60], "the odd ones are done first"
        assert await told(runtime, "one_by_one", 4) == [0, 10, 20, 30]
        assert await told(runtime, "middle", 0) == []
        many = await asyncio.gather(*(told(runtime, "middle", n) for n in range(1, 9)))
        assert many == [[3 * i for i in range(2 * n)] for n in range(1, 9)]
        await all_outputs(runtime)
        await what_is_counted(runtime)
        await what_is_refused(runtime)
        await failures(runtime)
        await slow_clients(runtime, shop.folder / "count" / "1" / "made")


async def all_outputs(runtime: Runtime) -> None:
    """What was there before the step comes with every answer; a client may ask for less."""
    talk = Talk(runtime, "around", 2)
    await talk.rest()
    answers = [said.answer.outputs for said in talk.said if isinstance(said.answer, InferResponse)]
    assert [{name: float(one[name][0, 0]) for name in one} for one in answers] == [
        {"y": 0, "sum": 0, "twice": 4},
        {"y": 1, "sum": 1, "twice": 4},
    ]
    talk = Talk(runtime, "around", 2, outputs=(RequestedOutput("y"),))
    assert await talk.rest() == [0, 1]
    assert isinstance(first := talk.said[0].answer, InferResponse)
    assert list(first.outputs) == ["y"]


async def what_is_counted(runtime: Runtime) -> None:
    statistics = runtime.resolve("middle").statistics
    before, responses = statistics.success_count, statistics.copy().responses
    await told(runtime, "middle", 1)
    assert statistics.success_count == before + 1
    assert statistics.responses[0]["success"][0] == responses[0]["success"][0] + 1
    assert statistics.responses[2]["empty_response"][0] == responses[2].get("empty_response", [0])[0] + 1
    assert runtime.resolve("middle").config.model_transaction_policy.decoupled


async def what_is_refused(runtime: Runtime) -> None:
    with pytest.raises(FarthingError, match="decoupled"):
        await ask(runtime, "middle")
    request = InferRequest(model_name="middle", inputs={"z": np.zeros((1, 1), np.float32)})
    with pytest.raises(FarthingError, match="unexpected inference input"):
        check_any(runtime.resolve("middle"), request)


async def failures(runtime: Runtime) -> None:
    """A step that fails ends the whole request, behind the answers before it."""
    talk = Talk(runtime, "one_by_one", 100)
    with pytest.raises(FarthingError, match=r"in ensemble step `uneven`.*not thirteen"):
        await talk.rest()
    assert talk.values == [10 * i for i in range(13)]
    await until(lambda: runtime.resolve("count").statistics.failures["CANCELED"] >= 1)
    assert await told(runtime, "one_by_one", 2) == [0, 10]

    served: Any = runtime.resolve("middle")
    request = InferRequest(model_name="middle", inputs={"x": np.full((1, 1), 5, np.float32)})

    def hear(said: object) -> None:
        raise RuntimeError("the client's trouble")

    served.stream(request, *served.check_stream(request), 0, hear)
    await until(lambda: not served.under_way)


async def slow_clients(runtime: Runtime, made: Path) -> None:
    """Whoever takes nothing holds back the model, and is withdrawn from everything when it leaves."""
    talk = Talk(runtime, "middle", 500, takes=False)
    await until(lambda: len(talk.values) == 32)
    assert await told(runtime, "middle", 1) == [0, 3], "nobody else waits for it"
    assert len(talk.values) == 32
    assert talk.stream is not None
    for _ in range(10):
        talk.stream.taken()
    await until(lambda: len(talk.values) == 42)
    assert int(contents(made)) <= 44
    talk.stream.withdraw()
    assert not runtime.resolve("middle").under_way  # type: ignore[attr-defined]
    assert await told(runtime, "only", 1) == [0]


def contents(file: Path) -> str:
    return file.read_text()


async def test_a_graph_whose_responses_nobody_can_match_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "models")
    put_python(shop, "count", COUNT)
    shop.put("double", 2)
    two = pipeline(("count", "x", "i"), ("count", "x", "j"), ("double", "i", "y"), ("double", "j", "z"), outputs="y z")
    put_pipeline(shop, "two", two)
    each = 'inputs = ["x"]\noutputs = ["y"]\n[[step]]\nmodel = "count"\neach = { x = "x" }\noutputs = { y = "y" }\n'
    put_pipeline(shop, "each", each)
    async with shop.open() as runtime:
        assert "neither step reads of the other" in reason(runtime, "two")
        assert "may answer an item more than once, or never" in reason(runtime, "each")


async def test_unloading_waits_for_the_answers_of_those_under_way(shop: Shop) -> None:
    async with shop.open(ModelControl.EXPLICIT, load_models=("*",)) as runtime:
        talk: Any = Talk(runtime, "middle", 40, takes=False)
        await until(lambda: len(talk.values) == 32)
        await runtime.unload("middle")
        with pytest.raises(FarthingError):
            runtime.resolve("middle")
        await until(lambda: talk.stream.taken() or talk.said[-1].is_last)
        assert len(await talk.rest()) == 80
