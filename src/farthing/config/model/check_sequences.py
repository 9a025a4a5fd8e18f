"""Does `sequence_batching` make sense? What can be refused before the model file is opened.

Called by `check`, pure as it is. Whether controls and states fit the model file is seen when it is loaded.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from farthing.config.model.config import ModelConfig
from farthing.config.model.fields import DataType
from farthing.config.model.scheduling import ControlKind, SequenceControl, SequenceInitialState, SequenceState

CORRELATION_TYPES: Final = (DataType.UINT64, DataType.INT64, DataType.UINT32, DataType.INT32, DataType.STRING)
"""Types a model may take a sequence's id in."""


def sequence_faults(config: ModelConfig) -> Iterator[str]:
    """What is wrong with the block, first things first; nothing where there is no block."""
    sequence = config.sequence_batching
    if sequence is None:
        return
    if sequence.direct and sequence.oldest:
        yield "sequence_batching has direct and oldest; allowed: one of them"
    if sequence.direct and not 0 <= sequence.direct.minimum_slot_utilization <= 1:
        yield f"minimum_slot_utilization is {sequence.direct.minimum_slot_utilization}; allowed: 0 to 1"
    if sequence.oldest and sequence.oldest.max_candidate_sequences < 0:
        yield f"max_candidate_sequences is {sequence.oldest.max_candidate_sequences}; allowed: 0 or more"
    names = [tensor.name for tensor in config.input]
    names += [control.name for control in sequence.control_input]
    names += [state.input_name for state in sequence.state]
    if twice := repeated(names):
        yield f"sequence_batching: `{twice}` is an input more than once (input, control_input, state)"
    if twice := repeated(state.output_name for state in sequence.state):
        yield f"sequence_batching: output `{twice}` is the state of two inputs"
    if twice := repeated(control.kind for entry in sequence.control_input for control in entry.control):
        yield f"sequence_batching: {twice} is given more than once"
    for entry in sequence.control_input:
        where = f"sequence_batching: control_input `{entry.name}`"
        if not entry.name:
            yield "sequence_batching: a control_input has no name"
        if len(entry.control) != 1:
            yield f"{where} has {len(entry.control)} controls; allowed: one"
        for control in entry.control:
            yield from (f"{where}: {fault}" for fault in _control_faults(control))
    for state in sequence.state:
        yield from (f"sequence_batching: state `{state.input_name}`: {fault}" for fault in _state_faults(state))


def _control_faults(control: SequenceControl) -> Iterator[str]:
    values = (control.int32_false_true, control.fp32_false_true, control.bool_false_true)
    given = [pair for pair in values if pair]
    if control.kind is ControlKind.CORRID:
        if given:
            yield f"{control.kind} has values for false and true; it is the sequence's id"
        if control.data_type not in CORRELATION_TYPES:
            yield f"{control.kind} has data_type {control.data_type}; allowed: {', '.join(CORRELATION_TYPES)}"
    elif len(given) != 1:
        yield (
            f"sequence batching control tensor must specify either 'int32_false_true', 'fp32_false_true' or "
            f"'bool_false_true' for {control.kind}; found {len(given)} of them"
        )
    elif len(given[0]) != 2:
        yield f"{control.kind} has {len(given[0])} values; allowed: two, one for false and one for true"


def _state_faults(state: SequenceState) -> Iterator[str]:
    if not state.input_name or not state.output_name:
        yield "input_name and output_name are both needed"
    if state.data_type is DataType.INVALID:
        yield "no data_type"
    if not state.dims:
        yield "dims is empty; give its shape without the batch dimension"
    if any(dim < 1 and dim != -1 for dim in state.dims):
        yield f"dims has {min(state.dims)}; allowed: 1 or more, or -1 for any size"
    if len(state.initial_state) > 1:
        yield f"initial_state has {len(state.initial_state)} entries; allowed: one"
    for initial in state.initial_state:
        yield from (f"initial_state `{initial.name}`: {fault}" for fault in _initial_faults(initial, state))


def _initial_faults(initial: SequenceInitialState, state: SequenceState) -> Iterator[str]:
    if (initial.zero_data is not None) == (initial.data_file is not None):
        yield "needs one of zero_data and data_file"
    if initial.data_type is not state.data_type:
        yield f"data_type is {initial.data_type}, that of the state {state.data_type}"
    fits = len(initial.dims) == len(state.dims) and all(
        dim >= 1 and wanted in (-1, dim) for dim, wanted in zip(initial.dims, state.dims, strict=True)
    )
    if not fits:
        yield f"dims are {list(initial.dims)}, those of the state {list(state.dims)}; all must be 1 or more and fit"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
