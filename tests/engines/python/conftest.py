"""Models written to a folder and loaded in real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.python import Python
from farthing.engines.python.engine import PythonModel
from farthing.types.tensors import Tensor

LoadModel = Callable[..., PythonModel]
RunAlone = Callable[..., Any]


@pytest.fixture
def load_model(tmp_path: Path) -> Iterator[LoadModel]:
    """Loads a model of that source, in Triton's layout; it is closed after the test."""
    loaded: list[PythonModel] = []

    def load(code: str, *, name: str = "mine", parameters: dict[str, str] | None = None, **fields: Any) -> PythonModel:
        folder = tmp_path / name
        path = folder / "1" / "model.py"
        path.parent.mkdir(parents=True)
        path.write_text(dedent(code))
        # A restart at once and a close that does not dawdle, unless the test is about these.
        knobs = {"restart_delay_seconds": "0.01", "unload_timeout_seconds": "5", **(parameters or {})}
        source = ModelSource(name=name, version=1, path=path, folder=folder, parameters=knobs, **fields)
        model = Python().load(source)
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.close()


@pytest.fixture
def run_alone() -> RunAlone:
    """Runs a batch of one request and returns its outputs."""

    def run(model: PythonModel, instance: int = 0, **inputs: Tensor) -> Any:
        rows = len(next(iter(inputs.values())))
        outputs = tuple(spec.name for spec in model.outputs)
        answer = model.execute(Batch(inputs, outputs, (Member(rows=rows),)), instance)
        return answer if isinstance(answer, dict) else answer[0]  # type: ignore[index]

    return run
