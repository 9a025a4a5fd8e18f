"""One batch of sequences' requests through one engine: rows with their states in, answers and new states out.

Runs wherever it is called and touches nothing but its arguments; what becomes of the new states belongs to
`sequence_loop`.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np

from farthing.batching.run import NO_PARAMETERS, MemberResult, Ran, as_error, cannot_reschedule
from farthing.batching.sequence import SequenceWaiter
from farthing.batching.sequence_tensors import Row, SequenceTensors
from farthing.engines.contract import Answer, Batch, Executable, Member, MemberAnswer
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.tensors import Tensor, TensorSpec

PADDING: Final = Member(1)
"""What an engine is told of a slot without a request."""

States = Mapping[str, Tensor]


def run_sequences(
    executable: Executable,
    tensors: SequenceTensors,
    outputs: Sequence[TensorSpec],
    rows: Sequence[Row],
    instance: int,
    *,
    rows_are_slots: bool,
    is_iterative: bool = False,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> tuple[Ran, Sequence[States | None]]:
    """Runs a batch. Answers what its requests got (None: they run again, which is for `is_iterative` ones) and the
    states they left (None: the old ones stand); never raises.

    When a batch of several requests fails as a whole and the model keeps nothing of it, each is run by itself in its
    own row, so one that poisons its batch fails alone.
    """
    started = ready = done = now_ns()
    asked = [row for row in rows if row is not None]
    results: Sequence[MemberResult]
    states: Sequence[States | None]
    try:
        batch = gather_rows(tensors, outputs, rows)
        ready = now_ns()
        answer = executable.execute(batch, instance)
        done = now_ns()
        results, states = _hand_back(tensors, outputs, answer, batch, rows, is_iterative=is_iterative)
    except BaseException as error:  # also SystemExit: nothing that user code raises may cost the answers or a thread
        done = now_ns()
        if len(asked) > 1 and executable.is_pure:
            alone = [
                run_sequences(
                    executable,
                    tensors,
                    outputs,
                    _only(rows, place, rows_are_slots=rows_are_slots),
                    instance,
                    rows_are_slots=rows_are_slots,
                    is_iterative=is_iterative,
                )
                for place, row in enumerate(rows)
                if row is not None
            ]
            results, states = [ran.results[0] for ran, _ in alone], [left[0] for _, left in alone]
        else:
            results, states = [as_error(error)] * len(asked), [None] * len(asked)
    return Ran(results, started, ready - started, done - ready, now_ns() - done), states


def _only(rows: Sequence[Row], place: int, *, rows_are_slots: bool) -> list[Row]:
    """One request by itself, in its own row where rows are slots."""
    if not rows_are_slots:
        return [rows[place]]
    return [row if index == place else None for index, row in enumerate(rows)]


def gather_rows(tensors: SequenceTensors, outputs: Sequence[TensorSpec], rows: Sequence[Row]) -> Batch:
    """The batch of these rows, with their controls and states."""
    first = next(row for row in rows if row is not None)
    inputs = dict(first.inputs)
    if len(rows) > 1:
        for name, sample in first.inputs.items():
            blank = _blank(sample) if None in rows else sample
            inputs[name] = np.concatenate([blank if row is None else row.inputs[name] for row in rows])
    inputs.update(tensors.inputs(rows))
    members = tuple(PADDING if row is None else _member(row) for row in rows)
    wanted = _wanted(outputs, rows)
    wanted += tuple(state.output_name for state in tensors.states if state.output_name not in wanted)
    return Batch(inputs, wanted, members, rows)


def _member(row: SequenceWaiter) -> Member:
    parameters = row.request.parameters
    if row.is_iterative:  # whose id the client may not have given, and which starts once
        parameters = {**parameters, "sequence_id": row.sequence_id, "sequence_start": row.is_start}
    return Member(row.rows, row.request.id, parameters)


def _blank(sample: Tensor) -> Tensor:
    return np.full(sample.shape, b"", object) if sample.dtype.hasobject else np.zeros_like(sample)


def _wanted(outputs: Sequence[TensorSpec], rows: Sequence[Row]) -> tuple[str, ...]:
    """Names that at least one request asked for, in the model's order."""
    names: set[str] = set()
    for row in rows:
        if row is None:
            continue
        if not row.request.outputs:
            return tuple(spec.name for spec in outputs)
        names.update(asked.name for asked in row.request.outputs)
    return tuple(spec.name for spec in outputs if spec.name in names)


def _hand_back(
    tensors: SequenceTensors,
    outputs: Sequence[TensorSpec],
    answer: Answer,
    batch: Batch,
    rows: Sequence[Row],
    *,
    is_iterative: bool,
) -> tuple[list[MemberResult], list[States | None]]:
    each = _by_rows(answer, batch, len(rows), has_batch_axis=tensors.has_batch_axis)
    shown = {spec.name for spec in outputs}
    results: list[MemberResult] = []
    states: list[States | None] = []
    for row, one in zip(rows, each, strict=True):
        if row is None:
            continue
        left: States | None = None
        result: MemberResult
        if isinstance(one, FarthingError):
            result = one
        elif one.is_rescheduled and not is_iterative:
            result = cannot_reschedule()
        else:
            try:
                if not one.is_rescheduled or tensors.has_states(one.outputs):
                    left = tensors.states_after(one.outputs)
                result = None if one.is_rescheduled else _shown(one, shown)
            except EngineFailed as failed:
                result = failed
        results.append(result)
        states.append(left)
    return results, states


def _shown(one: MemberAnswer, shown: Collection[str]) -> MemberResult:
    return {name: tensor for name, tensor in one.outputs.items() if name in shown}, one.parameters


def _by_rows(
    answer: Answer, batch: Batch, rows: int, *, has_batch_axis: bool
) -> Sequence[MemberAnswer | FarthingError]:
    """Each row's own outputs."""
    if not isinstance(answer, Mapping):
        if len(answer) != rows:
            raise EngineFailed(f"the model gave {len(answer)} answers to {rows} requests")
        return [one if isinstance(one, FarthingError) else _complete(one, batch) for one in answer]
    whole = _complete(MemberAnswer(answer, NO_PARAMETERS), batch)
    if isinstance(whole, FarthingError):
        raise whole
    if not has_batch_axis:
        return [whole]
    for name, tensor in answer.items():
        if tensor.shape[:1] != (rows,):
            raise EngineFailed(
                f"output `{name}` has shape {list(tensor.shape)}, but {rows} rows went in",
                hint="a model that batches answers one row for each row; else set max_batch_size to 0",
            )
    if rows == 1:
        return [whole]
    return [MemberAnswer({name: tensor[row : row + 1] for name, tensor in answer.items()}) for row in range(rows)]


def _complete(one: MemberAnswer, batch: Batch) -> MemberAnswer | EngineFailed:
    for name in () if one.is_rescheduled else batch.outputs:
        if name not in one.outputs:
            return EngineFailed(f"the model gave no output `{name}`; it gave: {', '.join(one.outputs) or 'none'}")
    return one
