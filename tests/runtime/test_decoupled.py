"""Models that answer as often as they like, loaded and unloaded by a runtime."""

import asyncio
from pathlib import Path

import pytest
from tests.runtime.shop import Shop, settle
from tests.runtime.test_stream_subrequests import Talk, told
from tests.runtime.test_subrequests import until

from farthing.config.server import ModelControl
from farthing.types.errors import Unavailable

TWICE = """
from farthing import StreamRequest, Tensor

class Twice:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    def infer(self, inputs, request: StreamRequest):
        return [{"y": inputs["x"]}, {"y": inputs["x"] * 2}]
"""

GATE = """
import asyncio
from pathlib import Path
from farthing import Tensor

class Gate:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    async def infer(self, inputs):
        yield {"y": inputs["x"]}
        while not Path(__file__).with_name("open").exists():
            await asyncio.sleep(0.005)
        yield {"y": inputs["x"] * 2}

    def unload(self):
        Path(__file__).with_name("unloaded").touch()
"""


def put(shop: Shop, name: str, code: str) -> Path:
    folder = shop.folder / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    return folder


async def test_a_model_is_decoupled_if_its_model_toml_says_so(shop: Shop) -> None:
    put(shop, "twice", TWICE)
    (shop.folder / "twice" / "model.toml").write_text("[model_transaction_policy]\ndecoupled = true\n")
    async with shop.open() as runtime:
        assert await told(runtime, "twice", 3) == [3, 6]


async def test_a_model_that_is_unloaded_says_what_it_has_begun_to_say(shop: Shop) -> None:
    folder = put(shop, "gate", GATE)
    async with shop.open(ModelControl.EXPLICIT, load_models=("gate",)) as runtime:
        talk = Talk(runtime, "gate", 3)
        await until(lambda: talk.values == [3])
        await runtime.unload("gate")
        with pytest.raises(Unavailable):
            Talk(runtime, "gate", 3)
        await asyncio.sleep(0.02)
        assert not (folder / "unloaded").exists()
        (folder / "open").touch()
        assert await talk.rest() == [3, 6]
        await settle(runtime)
        assert (folder / "unloaded").exists()
        await runtime.load("gate")
        assert await told(runtime, "gate", 2) == [2, 4]
