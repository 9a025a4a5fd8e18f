"""Other ways to sum a forest than ONNX Runtime: as machine code, or by XGBoost itself.

`parameters { key: "runtime" value { string_value: "xgboost" } }` of a model's configuration asks for one, a plan of
`farthing optimize` too: which is fastest depends on forest, rows and cores. The file is parsed and checked as ever
before a library sees it, and links and shapes are ours whoever sums.

200 trees of depth 6 on 32 features, rows a second of one thread at 1, 8 and 1,024 rows: ONNX Runtime 128,000, 456,000
and 195,000; machine code 104,000, 625,000 and 247,000; XGBoost 7,000, 49,000 and 574,000. LightGBM's own library, with
40,000, 146,000 and 89,000, is left out.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from farthing.engines.contract import Batch, ModelSource
from farthing.engines.cores import threads_per_instance
from farthing.engines.failure import reason_of, shown
from farthing.engines.trees.executable import columns_of, finish_of
from farthing.engines.trees.forest import BadModel, Forest
from farthing.engines.trees.interface import Interface
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed
from farthing.types.tensors import Tensor, TensorSpec

Summing = Callable[[Tensor], Tensor]
"""Rows [rows, features] -> sums [rows, targets]."""

USUAL: Final = "onnxruntime"
RUNTIMES: Final = (USUAL, "compiled", "xgboost")


def runtime_of(source: ModelSource) -> str:
    """Which one the configuration asks for. Raises `LoadFailed`."""
    runtime = source.parameters.get("runtime", USUAL)
    if runtime not in RUNTIMES:
        raise LoadFailed(
            f"{source.path}: parameter `runtime` is `{shown(runtime)}`; allowed: {', '.join(RUNTIMES)}",
        )
    return runtime


class SummedForest:
    """A forest behind the engine contract, summed by somebody else."""

    batch_rows_max: int | None = None
    is_pure = True
    can_run_on_event_loop = True
    batch_axis = True

    def __init__(
        self, forest: Forest, interface: Interface, platform: str, source: ModelSource, raw: bytes, runtime: str
    ) -> None:
        """Raises `BadModel`, `LoadFailed`."""
        self.inputs: tuple[TensorSpec, ...] = (interface.input,)
        self.outputs: tuple[TensorSpec, ...] = (interface.output,)
        self.platform = platform
        self._input_name, self._output_name = interface.input.name, interface.output.name
        self._row_shape = (forest.features,)
        self._targets = forest.targets
        self._finish = finish_of(forest, interface)
        try:
            self._sum = _MAKERS[runtime](forest, raw, platform, threads_per_instance(source))
        except ImportError as error:
            raise LoadFailed(
                f"{source.path}: runtime {runtime} cannot be imported: {error}", hint="pip install 'farthing[trees]'"
            ) from error

    def execute(self, batch: Batch, instance: int) -> dict[str, Tensor]:
        """All rows at once; a row's answer does not depend on the others."""
        rows = batch.inputs[self._input_name]
        if rows.shape[1:] != self._row_shape:
            raise InvalidInput(
                f"input `{self._input_name}` has shape {list(rows.shape)}; {list(self.inputs[0].shape)} is expected"
            )
        try:
            sums = self._sum(rows).reshape(len(rows), self._targets)
        except Exception as error:  # each library has its own
            raise EngineFailed(f"the forest failed: {reason_of(error)}") from error
        for step in self._finish:
            sums = step(sums)
        return {self._output_name: sums.astype(self.outputs[0].dtype)}

    def health(self) -> str:
        """Nothing can go wrong between two calls."""
        return ""

    def resize(self, instances: int) -> None:
        """Nothing: any number of threads may call."""

    def close(self) -> None:
        """Lets go of the library's model, or of the code."""
        del self._sum


def _compiled(forest: Forest, raw: bytes, platform: str, threads: int) -> Summing:
    from farthing.engines.trees.compiled import CompiledForest

    code, columns = CompiledForest(forest), columns_of(forest)
    return lambda rows: code.sums(columns(rows))


def _xgboost(forest: Forest, raw: bytes, platform: str, threads: int) -> Summing:
    import xgboost

    if not platform.startswith("xgboost"):
        raise BadModel("runtime xgboost runs XGBoost's own models")
    if forest.members or forest.derived:
        raise BadModel("decisions on sets of categories are left to ONNX Runtime")
    booster: Any = xgboost.Booster({"nthread": threads})
    booster.load_model(bytearray(raw))
    booster.set_param({"nthread": threads})
    return lambda rows: np.asarray(booster.inplace_predict(rows, predict_type="margin"))


_MAKERS: Final = {"compiled": _compiled, "xgboost": _xgboost}
