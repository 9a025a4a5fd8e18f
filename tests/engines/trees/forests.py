"""Loading and running forests as the runtime would, for the tests in this folder."""

import json
from pathlib import Path

import numpy as np

from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.trees import Trees
from farthing.engines.trees.executable import ForestExecutable
from farthing.types.tensors import Tensor, TensorSpec

DATA = Path(__file__).parents[1] / "data" / "trees"


def load(path: Path, *, datatype: str = "", **parameters: str) -> ForestExecutable:
    """The model of a file; `datatype` is what a configuration would declare for input and output."""

    def declared(name: str) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name=name, datatype=datatype, shape=(-1, -1)),) if datatype else ()

    return Trees().load(
        ModelSource(
            name="forest",
            version=1,
            path=path,
            folder=path.parent,
            inputs=declared("input__0"),
            outputs=declared("output__0"),
            parameters=parameters,
        )
    )


def predict(model: ForestExecutable, rows: Tensor) -> Tensor:
    """One batch, one member."""
    (given,), (wanted,) = model.inputs, model.outputs
    batch = Batch({given.name: rows.astype(given.dtype)}, (wanted.name,), (Member(len(rows)),))
    answer = model.execute(batch, 0)[wanted.name]
    assert answer.shape == (len(rows), wanted.shape[1])
    assert answer.dtype == wanted.dtype
    assert answer.flags.c_contiguous
    return answer


def expected(name: str) -> dict[str, Tensor]:
    """`rows`, `raw` and `prediction` as `make_models.py` wrote them."""
    text = json.loads((DATA / f"{name}.expected.json").read_text())
    return {key: np.array([[float(v) for v in row] for row in rows]) for key, rows in text.items()}


def ulps(found: Tensor, wanted: Tensor) -> float:
    """The largest difference in units of the last place."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    spacing = np.spacing(np.maximum(np.abs(found), np.abs(wanted)))
    return float(np.max(np.where(found == wanted, 0, np.abs(found - wanted) / spacing)))
