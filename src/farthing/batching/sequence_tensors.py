"""What a model of sequences is told beside its clients' inputs, and what it gives beside their outputs.

Control inputs say of each row whether its sequence starts, ends, is there at all, and which one it is. States are
outputs of one run that are inputs of the sequence's next. Pure: arrays in, arrays out.
"""

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Final

import msgspec
import numpy as np

from farthing.batching.sequence import SequenceId, SequenceWaiter
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.tensors import NUMPY_DTYPES, Tensor, datatype_of, shape_fits

INTEGER_BOUNDS: Final = {
    name: (int(np.iinfo(NUMPY_DTYPES[name]).min), int(np.iinfo(NUMPY_DTYPES[name]).max))
    for name in ("INT32", "UINT32", "INT64", "UINT64")
}
"""What ids a control of each datatype can hold."""

STATE_BYTES_MAX: Final = 64 << 20
"""One state of one sequence: as much as a request may bring. A state whose shape is free may grow from request to
request, and a client could let it grow for ever."""

Row = SequenceWaiter | None
"""A row of a batch: a request, or padding in a slot that has none."""


class Signal(Enum):
    """What a control input says of a row."""

    START = auto()
    END = auto()
    READY = auto()
    ID = auto()


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """One control input."""

    name: str
    signal: Signal
    datatype: str
    shape: tuple[int, ...]
    """Of one row's value; all ones."""
    false: int | float | bytes = 0
    """For `ID`, what padding has."""
    true: int | float = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """An output that is the next run's input."""

    input_name: str
    output_name: str
    datatype: str
    shape: tuple[int, ...]
    """Of one sequence, with a first dimension of 1 where the model batches; -1 is any size."""
    initial: Tensor
    """What a sequence begins with."""


class SequenceTensors(msgspec.Struct, frozen=True, kw_only=True):
    """All controls and states of a model."""

    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
    has_batch_axis: bool = True

    @property
    def has_free_states(self) -> bool:
        """Whether a state's shape may differ between sequences."""
        return any(-1 in state.shape for state in self.states)

    @property
    def initial_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(state.initial.shape for state in self.states)

    def check_id(self, model: str, sequence_id: SequenceId) -> None:
        """Raises `InvalidInput` for an id that the model's control cannot hold."""
        for control in self.controls:
            if control.signal is not Signal.ID or control.datatype == "BYTES":
                continue
            low, high = INTEGER_BOUNDS[control.datatype]
            if isinstance(sequence_id, str) or not low <= sequence_id <= high:
                raise InvalidInput(
                    f"inference request for sequence {sequence_id} to model '{model}': its control "
                    f"'{control.name}' takes the correlation ID as {control.datatype}",
                    hint=f"send a sequence_id from {max(low, 1)} to {high}",
                )

    def inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Controls and states of a batch, row by row."""
        made = {control.name: _control(control, rows) for control in self.controls}
        for state in self.states:
            name = state.input_name
            own = [None if row is None else row.sequence.states.get(name, state.initial) for row in rows]
            blank = state.initial
            if -1 in state.shape:  # padding has the shape of those beside it
                blank = next((_blank(state.initial, part.shape) for part in own if part is not None), blank)
            parts = [blank if part is None else part for part in own]
            made[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return made

    def has_states(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether outputs hold any state at all."""
        return any(state.output_name in outputs for state in self.states)

    def states_after(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The states that one request's own outputs hold. Raises `EngineFailed` if they are not what was declared."""
        left: dict[str, Tensor] = {}
        for state in self.states:
            tensor = outputs.get(state.output_name)
            if tensor is None:
                raise EngineFailed(f"the model gave no state `{state.output_name}`; it gave: {', '.join(outputs)}")
            if datatype_of(tensor) != state.datatype or not shape_fits(tensor.shape, state.shape):
                raise EngineFailed(
                    f"state `{state.output_name}` is {datatype_of(tensor)} {list(tensor.shape)}; configured is "
                    f"{state.datatype} {list(state.shape)}"
                )
            if tensor.nbytes > STATE_BYTES_MAX:
                raise EngineFailed(
                    f"state `{state.output_name}` has grown to {tensor.nbytes} bytes; the limit is {STATE_BYTES_MAX}",
                    hint="end the sequence and start another",
                )
            # A view would keep the whole batch's memory for as long as the sequence rests.
            left[state.input_name] = tensor if tensor.base is None else tensor.copy()
        return left


def _blank(initial: Tensor, shape: tuple[int, ...]) -> Tensor:
    if initial.shape == shape:
        return initial
    return np.full(shape, b"" if initial.dtype.hasobject else 0, initial.dtype)


def _control(control: Control, rows: Sequence[Row]) -> Tensor:
    match control.signal:
        case Signal.ID:
            values = [control.false if row is None else _id(control, row.sequence_id) for row in rows]
        case Signal.START:
            values = [control.true if row is not None and row.is_start else control.false for row in rows]
        case Signal.END:
            values = [control.true if row is not None and row.is_end else control.false for row in rows]
        case Signal.READY:
            values = [control.false if row is None else control.true for row in rows]
    array: Tensor = np.empty(len(rows), NUMPY_DTYPES[control.datatype])
    array[:] = values
    return array.reshape((*array.shape, *control.shape[1:]) if control.shape else ())


def _id(control: Control, sequence_id: SequenceId) -> int | bytes:
    if control.datatype == "BYTES":
        return str(sequence_id).encode()
    assert isinstance(sequence_id, int)
    return sequence_id
