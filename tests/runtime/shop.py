"""A runtime over a folder of real ONNX files, in three modes of control."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
from onnx import helper
from tests.models import model, save, tensor_info

from farthing.config.server import AdmissionLimits, ModelControl, ServerConfig
from farthing.engines.contract import Batch
from farthing.engines.onnxruntime import OnnxExecutable
from farthing.engines.registry import default_filenames
from farthing.repository import Repository
from farthing.runtime.runtime import Runtime
from farthing.types.requests import InferRequest, InferResponse


def times(factor: float) -> bytes:
    """`y` = `x` * factor, FP32 [batch, 1]."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    weights = {"factor": np.array([factor], np.float32)}
    return model([node], [tensor_info("x", "FP32", ["batch", 1])], [tensor_info("y", "FP32", ["batch", 1])], weights)


def heavy(factor: float, mib: int) -> bytes:
    """The same, by so many mebibytes of weights."""
    side = round((mib << 18) ** 0.5)
    nodes = [
        helper.make_node("MatMul", ["x", "spread"], ["wide"]),
        helper.make_node("MatMul", ["wide", "w"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["y"], axes=[1]),
    ]
    weights = {"spread": np.ones((1, side), np.float32), "w": np.full((side, side), factor / side, np.float32)}
    return model(nodes, [tensor_info("x", "FP32", ["batch", 1])], [tensor_info("y", "FP32", ["batch", 1])], weights)


class Shop:
    """A model repository on disk that tests change, and requests to what is served of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._age = 0

    def put(self, name: str, factor: float, version: int = 1) -> Path:
        """Writes a model version that multiplies."""
        save(self.folder / name, times(factor))
        written = self.folder / name / "1" / "model.onnx"
        path = self.folder / name / str(version) / "model.onnx"
        if version != 1:
            path.parent.mkdir(exist_ok=True)
            written.rename(path)
            if not any(written.parent.iterdir()):
                written.parent.rmdir()
        return path

    def put_heavy(self, name: str, factor: float, mib: int) -> Path:
        """Writes a model of a certain weight."""
        save(self.folder / name, heavy(factor, mib))
        return self.folder / name / "1" / "model.onnx"

    def configure(self, name: str, text: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "config.pbtxt").write_text(text)

    @asynccontextmanager
    async def open(self, control: ModelControl = ModelControl.NONE, **settings: Any) -> AsyncIterator[Runtime]:
        config = msgspec.structs.replace(
            ServerConfig(model_control=control, poll_s=3600, exit_timeout_s=5.0, admission=AdmissionLimits()),
            **settings,
        )
        runtime = Runtime(Repository([self.folder], default_filenames=default_filenames()), config)
        try:
            await runtime.start()
            yield runtime
        finally:
            await runtime.close()


async def ask(runtime: Runtime, name: str, version: str = "", value: float = 1) -> float:
    """What `name` makes of one number."""
    answer = await answer_of(runtime, name, version, value)
    return float(answer.outputs["y"][0, 0])


async def answer_of(runtime: Runtime, name: str, version: str = "", value: float = 1) -> InferResponse:
    inputs = {"x": np.full((1, 1), value, np.float32)}
    return await runtime.infer(InferRequest(model_name=name, model_version=version, inputs=inputs))


def lines(runtime: Runtime) -> list[tuple[str, str, str]]:
    return [(line.name, line.version, line.state) for line in runtime.index()]


def reason(runtime: Runtime, name: str) -> str:
    return next(line.reason for line in runtime.index() if line.name == name)


async def settle(runtime: Runtime) -> None:
    """Until every version that was let go is closed."""
    while runtime.catalog._endings:
        await asyncio.gather(*runtime.catalog._endings)


class Stuck:
    """Holds every run of ONNX Runtime until told."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self._execute = OnnxExecutable.execute

    def __enter__(self) -> "Stuck":
        stuck = self

        def execute(self: OnnxExecutable, batch: Batch, instance: int) -> Any:
            stuck.entered.set()
            assert stuck.release.wait(20)
            return stuck._execute(self, batch, instance)

        self._patch = mock.patch.object(OnnxExecutable, "execute", execute)
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._patch.stop()

    async def wait_until_entered(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 20)
