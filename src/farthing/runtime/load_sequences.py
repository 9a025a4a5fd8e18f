"""From `sequence_batching` to what the sequence loop needs: rules, control inputs, states.

Called by `runtime.load` on its thread, in two steps: what the configuration alone tells, before the engine loads the
file, and the whole, held against the file, after. Initial states in files lie in the `initial_state` folder of the
model's own folder and hold one sequence's values in row order.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from farthing.batching.batcher import Limits
from farthing.batching.sequence_batcher import SequenceRules
from farthing.batching.sequence_tensors import STATE_BYTES_MAX, Control, SequenceTensors, Signal, State
from farthing.config.model import WIRE_DATATYPES, ModelConfig, SequenceBatching
from farthing.config.model.scheduling import ControlKind, SequenceControl, SequenceState
from farthing.engines.contract import Executable
from farthing.runtime.tensor_file import read_tensor_file
from farthing.types.errors import LoadFailed
from farthing.types.tensors import NUMPY_DTYPES, Tensor, TensorSpec

INITIAL_STATE_FOLDER: Final = "initial_state"

SIGNALS: Final = {
    ControlKind.START: Signal.START,
    ControlKind.END: Signal.END,
    ControlKind.READY: Signal.READY,
    ControlKind.CORRID: Signal.ID,
}


class SequencePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a loaded model's sequences are run."""

    rules: SequenceRules
    tensors: SequenceTensors

    def control_specs(self) -> tuple[TensorSpec, ...]:
        """Control inputs, which warm-up requests may bring and others may not."""
        return tuple(
            TensorSpec(
                name=control.name,
                datatype=control.datatype,
                shape=(-1, *control.shape[1:]) if self.tensors.has_batch_axis else control.shape,
                is_optional=True,
            )
            for control in self.tensors.controls
        )

    def padding(self, rows: int) -> dict[str, Tensor]:
        """Controls and states of so many rows that belong to no sequence."""
        return self.tensors.inputs([None] * rows)


def state_outputs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """States that the engine must give although no client sees them."""
    sequence = config.sequence_batching
    shown = {output.name for output in config.output}
    front = (-1,) if config.max_batch_size else ()
    return tuple(
        TensorSpec(name=state.output_name, datatype=WIRE_DATATYPES[state.data_type], shape=(*front, *state.dims))
        for state in (sequence.state if sequence else ())
        if state.output_name not in shown
    )


def hidden_names(sequence: SequenceBatching | None) -> tuple[frozenset[str], frozenset[str]]:
    """Inputs and outputs of the model file that are the server's business: controls and states."""
    if sequence is None:
        return frozenset(), frozenset()
    inputs = {control.name for control in sequence.control_input} | {state.input_name for state in sequence.state}
    return frozenset(inputs), frozenset(state.output_name for state in sequence.state)


def sequence_plan(
    name: str, folder: Path, config: ModelConfig, executable: Executable, rows_max: int, *, is_file_known: bool
) -> SequencePlan | None:
    """Rules and tensors, checked against the file; None for a model without sequences. Raises `LoadFailed`.

    `is_file_known` is False for engines that take any input that is configured.
    """
    sequence = config.sequence_batching
    if sequence is None:
        return None
    loaded = {tensor.name: tensor for tensor in executable.inputs} if is_file_known else {}
    given = {tensor.name: tensor for tensor in executable.outputs}
    controls = tuple(
        _control(f"model `{name}`: control_input `{entry.name}`", entry.name, control, loaded, rows_max)
        for entry in sequence.control_input
        for control in entry.control
    )
    states = tuple(_state(f"model `{name}`", state, folder, loaded, given, rows_max) for state in sequence.state)
    return SequencePlan(
        rules=_rules(sequence, rows_max),
        tensors=SequenceTensors(controls=controls, states=states, has_batch_axis=rows_max > 0),
    )


def _rules(sequence: SequenceBatching, rows_max: int) -> SequenceRules:
    idle_ns = sequence.max_sequence_idle_microseconds * 1000
    oldest = sequence.oldest
    if oldest is None:
        direct = sequence.direct
        return SequenceRules(
            limits=Limits(rows_max=rows_max),
            slots=rows_max or 1,
            idle_ns=idle_ns,
            is_direct=True,
            is_iterative=sequence.iterative_sequence,
            fill_min=direct.minimum_slot_utilization if direct else 0.0,
            fill_delay_ns=direct.max_queue_delay_microseconds * 1000 if direct else 0,
        )
    is_delay_said = oldest.max_queue_delay_microseconds > 0 or bool(oldest.preferred_batch_size)
    return SequenceRules(
        limits=Limits(
            rows_max=rows_max,
            preferred_rows=tuple(sorted(oldest.preferred_batch_size)),
            delay_ns_max=oldest.max_queue_delay_microseconds * 1000 if is_delay_said else None,
        ),
        slots=oldest.max_candidate_sequences,
        idle_ns=idle_ns,
        is_direct=False,
        is_iterative=sequence.iterative_sequence,
        is_in_order=oldest.preserve_ordering,
    )


def _control(
    where: str, name: str, control: SequenceControl, loaded: Mapping[str, TensorSpec], rows_max: int
) -> Control:
    false: Any
    true: Any
    if control.kind is ControlKind.CORRID:
        datatype = WIRE_DATATYPES[control.data_type]
        false, true = (b"" if datatype == "BYTES" else 0), 0
    elif control.int32_false_true:
        datatype, (false, true) = "INT32", control.int32_false_true
    elif control.fp32_false_true:
        datatype, (false, true) = "FP32", control.fp32_false_true
    else:
        datatype, (false, true) = "BOOL", control.bool_false_true
    shape: tuple[int, ...] = (1, 1) if rows_max else (1,)
    if loaded:
        known = _known(where, name, loaded, "input")
        # One value a row: as many dimensions as the file has.
        shape = (1,) * len(known.shape)
        has_rows = not rows_max or known.shape[:1] == (-1,)
        if known.datatype != datatype or any(dim not in (-1, 1) for dim in known.shape) or not has_rows:
            raise LoadFailed(
                f"{where} is configured as {datatype} with one value a row, the model file says {known.datatype} "
                f"{list(known.shape)}"
            )
    return Control(name=name, signal=SIGNALS[control.kind], datatype=datatype, shape=shape, false=false, true=true)


def _state(
    where: str,
    state: SequenceState,
    folder: Path,
    loaded: Mapping[str, TensorSpec],
    given: Mapping[str, TensorSpec],
    rows_max: int,
) -> State:
    datatype = WIRE_DATATYPES[state.data_type]
    shape = (1, *state.dims) if rows_max else tuple(state.dims)
    found = [("input", state.input_name, _known(where, state.input_name, loaded, "input"))] if loaded else []
    found.append(("output", state.output_name, _known(where, state.output_name, given, "output")))
    for kind, name, known in found:
        has_rows = not rows_max or known.shape[:1] == (-1,)
        fits = (
            has_rows
            and len(known.shape) == len(shape)
            and all(k == -1 or s in (-1, k) for s, k in zip(shape, known.shape, strict=True))
        )
        if known.datatype != datatype or not fits:
            raise LoadFailed(
                f"{where}: state {kind} `{name}` is configured as {datatype} {list(state.dims)}"
                f"{' behind the batch dimension' if rows_max else ''}, the model file says {known.datatype} "
                f"{list(known.shape)}"
            )
    return State(
        input_name=state.input_name,
        output_name=state.output_name,
        datatype=datatype,
        shape=shape,
        initial=_initial(f"{where}: initial_state of `{state.input_name}`", state, folder, datatype, shape),
    )


def _known(where: str, name: str, tensors: Mapping[str, TensorSpec], kind: str) -> TensorSpec:
    known = tensors.get(name)
    if known is None:
        raise LoadFailed(f"{where}: the model file has no {kind} `{name}`; it has: {', '.join(tensors) or 'none'}")
    return known


def _initial(where: str, state: SequenceState, folder: Path, datatype: str, shape: tuple[int, ...]) -> Tensor:
    """What a sequence begins with; without being told zeros, one of each dimension of any size, as Triton has it."""
    front = shape[: len(shape) - len(state.dims)]
    told = state.initial_state[0] if state.initial_state else None
    concrete = (*front, *(told.dims if told else (1 if dim < 0 else dim for dim in state.dims)))
    dtype = NUMPY_DTYPES[datatype]
    if math.prod(concrete) * dtype.itemsize > STATE_BYTES_MAX:
        raise LoadFailed(f"{where} has dims {list(concrete)}: more than {STATE_BYTES_MAX} bytes")
    if told is None or told.data_file is None:
        return np.full(concrete, b"" if datatype == "BYTES" else 0, dtype)
    flat = read_tensor_file(folder / INITIAL_STATE_FOLDER, told.data_file, datatype, where, STATE_BYTES_MAX)
    if flat.size != math.prod(concrete):
        raise LoadFailed(
            f"{where}: data_file `{told.data_file}` holds {flat.size} elements; a state of {list(concrete)} has "
            f"{math.prod(concrete)}"
        )
    return flat.reshape(concrete)
