"""A loaded forest: runs batches through ONNX Runtime and applies the link.

A single row, the commonest batch, goes through buffers that are bound to the session once per instance. ONNX Runtime
gets one thread: with more it adds the trees of a row in another order, and the same request could get another
answer. Instances share the session and run side by side.
"""

from typing import Any, Final

import numpy as np
import onnxruntime

from farthing.engines.contract import Batch, ModelSource
from farthing.engines.trees.forest import ZERO_AT_MOST, Forest, Rule
from farthing.engines.trees.interface import Interface, OutputKind
from farthing.engines.trees.links import Transform, transform_of
from farthing.engines.trees.onnx_writer import INPUT, OUTPUT, onnx_bytes
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed
from farthing.types.tensors import Tensor, TensorSpec

_SEVERITY_ERROR: Final = 3


class ForestExecutable:
    """A forest behind the engine contract."""

    batch_rows_max: int | None = None
    is_pure = True
    can_run_on_event_loop = True
    batch_axis = True

    def __init__(self, forest: Forest, interface: Interface, platform: str, source: ModelSource) -> None:
        self.inputs: tuple[TensorSpec, ...] = (interface.input,)
        self.outputs: tuple[TensorSpec, ...] = (interface.output,)
        self.platform = platform
        self._input_name, self._output_name = interface.input.name, interface.output.name
        self._row_shape = (forest.features,)
        self._output_dtype = interface.output.dtype
        self._session = _session(forest, source)
        self._columns = _Columns(forest)
        self._finish = finish_of(forest, interface)
        self._forest = forest
        self._slots: list[_Slot] = []
        self.resize(max(1, source.instances))

    def execute(self, batch: Batch, instance: int) -> dict[str, Tensor]:
        """All rows at once; a row's answer does not depend on the others."""
        rows = batch.inputs[self._input_name]
        if rows.shape[1:] != self._row_shape:
            raise InvalidInput(
                f"input `{self._input_name}` has shape {list(rows.shape)}; {list(self.inputs[0].shape)} is expected"
            )
        try:
            if len(rows) == 1:
                slot = self._slots[instance]
                self._columns.fill(slot.columns, rows)
                self._session.run_with_iobinding(slot.binding)
                sums = slot.sums
            else:
                columns = self._columns.of(rows)
                sums = self._session.run([OUTPUT], {INPUT: columns})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common type of their own
            raise EngineFailed(f"ONNX Runtime failed: {error}") from error
        for step in self._finish:
            sums = step(sums)
        # Always a copy: `sums` may be the slot's, and is written again by the next row.
        return {self._output_name: sums.astype(self._output_dtype)}

    def health(self) -> str:
        """Nothing can go wrong between two calls."""
        return ""

    def resize(self, instances: int) -> None:
        """A slot an instance."""
        while len(self._slots) < instances:
            self._slots.append(_Slot(self._session, self._columns.width, self._forest))
        del self._slots[instances:]

    def close(self) -> None:
        """Frees the session and its buffers."""
        self._slots.clear()
        del self._session


def columns_of(forest: Forest) -> Transform:
    """From rows [rows, features] to the columns that the forest's nodes compare."""
    return _Columns(forest).of


class _Columns:
    """Turns a request's rows into the columns the nodes compare: the features, then the derived ones."""

    def __init__(self, forest: Forest) -> None:
        self.width = forest.features + len(forest.derived)
        self._features = forest.features
        self._dtype = forest.dtype
        self._groups: list[tuple[Rule, Tensor, Tensor]] = []
        for rule in Rule:
            places = [i for i, (r, _) in enumerate(forest.derived) if r is rule]
            if places:
                sources = np.array([forest.derived[i][1] for i in places])
                self._groups.append((rule, sources, np.array(places) + forest.features))

    def fill(self, columns: Tensor, rows: Tensor) -> None:
        """Writes the columns of `rows` into a buffer."""
        if not self._groups:
            np.copyto(columns, rows)
            return
        columns[:, : self._features] = rows
        for rule, sources, places in self._groups:
            columns[:, places] = _derived(rule, columns[:, sources])

    def of(self, rows: Tensor) -> Tensor:
        """The columns of `rows`; the rows themselves where nothing needs doing."""
        if not self._groups:
            return rows.astype(self._dtype, copy=False)
        columns = np.empty((len(rows), self.width), self._dtype)
        self.fill(columns, rows)
        return columns


def _derived(rule: Rule, values: Tensor) -> Tensor:
    if rule is Rule.ZERO_AS_MISSING:
        return np.where(np.abs(values) <= ZERO_AT_MOST, np.nan, values)
    truncated: Tensor = np.trunc(values) if rule is Rule.TRUNCATED else np.floor(values)
    return truncated


class _Slot:
    """One row's buffers, bound to the session; the arrays live as long as the binding that points at them."""

    def __init__(self, session: Any, width: int, forest: Forest) -> None:
        self.columns: Tensor = np.zeros((1, width), forest.dtype)
        self.sums: Tensor = np.zeros((1, forest.targets), forest.dtype)
        self.binding = session.io_binding()
        element = forest.dtype.type
        self.binding.bind_input(INPUT, "cpu", 0, element, self.columns.shape, self.columns.ctypes.data)
        self.binding.bind_output(OUTPUT, "cpu", 0, element, self.sums.shape, self.sums.ctypes.data)


def _session(forest: Forest, source: ModelSource) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    try:
        return onnxruntime.InferenceSession(onnx_bytes(forest), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise LoadFailed(f"{source.path}: ONNX Runtime refuses the trees: {str(error)[:300]}") from error


def finish_of(forest: Forest, interface: Interface) -> list[Transform]:
    """What is done to the sums, in order; empty for most regressions."""
    if interface.kind is OutputKind.RAW:
        return []
    steps: list[Transform] = []
    link = forest.link
    if link.divisor > 1:
        steps.append(lambda sums: sums / link.divisor)
    transform = transform_of(link, as_classes=interface.kind is not OutputKind.PREDICTION)
    if transform is not None:
        steps.append(transform)
    if interface.kind is OutputKind.PROBABILITIES and forest.targets == 1:
        steps.append(lambda p: np.concatenate((1 - p, p), axis=1))
    if interface.kind is OutputKind.CLASS:
        threshold = interface.threshold
        steps.append((lambda p: p > threshold) if forest.targets == 1 else (lambda p: p.argmax(axis=1, keepdims=True)))
    return steps
