"""One batch through one engine: gather rows, execute, hand rows back.

Runs wherever it is called, on an instance's thread or on the event loop, and touches nothing but its arguments; who
runs when belongs to `batching.loop`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from farthing.batching.queue import Waiter
from farthing.batching.rider import own_rows, shared_rows
from farthing.engines.contract import Answer, Batch, Executable, Member, MemberAnswer
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.requests import Parameter
from farthing.types.tensors import Tensor, TensorSpec

NO_PARAMETERS: Final[Mapping[str, Parameter]] = {}

MemberResult = tuple[Mapping[str, Tensor], Mapping[str, Parameter]] | FarthingError | None
"""One request's outputs and response parameters, or its error; None: a rider's rows, in the batch's outputs."""


class Ran:
    """What came of a batch: a result a request, in order, and where the time went (nanoseconds)."""

    __slots__ = ("compute_ns", "input_ns", "output_ns", "results", "started_ns", "whole")

    def __init__(
        self,
        results: Sequence[MemberResult],
        started_ns: int,
        input_ns: int,
        compute_ns: int,
        output_ns: int,
        whole: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`whole`: the batch's outputs, where riders go on with them."""
        self.whole = whole
        self.results = results
        self.started_ns = started_ns
        self.input_ns = input_ns
        self.compute_ns = compute_ns
        self.output_ns = output_ns


def run_in_parts(
    executable: Executable,
    outputs: Sequence[TensorSpec],
    waiters: Sequence[Waiter],
    instance: int,
    *,
    has_batch_axis: bool,
    part_rows: int,
    axes: BatchAxes | None = None,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> Ran:
    """Runs requests that were handed over together, in runs of about `part_rows` rows, one after the other."""
    rans, first, rows = [], 0, 0
    for end, waiter in enumerate(waiters, 1):
        rows += waiter.rows
        if rows >= part_rows or end == len(waiters):
            part = waiters if end - first == len(waiters) else waiters[first:end]
            rans.append(
                run_batch(executable, outputs, part, instance, has_batch_axis=has_batch_axis, axes=axes, now_ns=now_ns)
            )
            first, rows = end, 0
    if len(rans) == 1:
        return rans[0]
    return Ran(
        [result for ran in rans for result in ran.results],
        rans[0].started_ns,
        sum([ran.input_ns for ran in rans]),
        sum([ran.compute_ns for ran in rans]),
        sum([ran.output_ns for ran in rans]),
    )


def run_batch(
    executable: Executable,
    outputs: Sequence[TensorSpec],
    waiters: Sequence[Waiter],
    instance: int,
    *,
    has_batch_axis: bool,
    axes: BatchAxes | None = None,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> Ran:
    """Runs requests together, rows along `axes` (None: the first). Never raises: what fails becomes their error.

    When a batch of several fails as a whole and the model may be run again at will, each request is run by itself,
    so one that poisons its batch fails alone.
    """
    started = now_ns()
    ready = done = started
    whole = None
    try:
        batch = gather(outputs, waiters, axes)
        ready = now_ns()
        answer = executable.execute(batch, instance)
        done = now_ns()
        results = _hand_back(answer, batch, outputs, waiters, has_batch_axis=has_batch_axis, axes=axes)
        if None in results:
            assert isinstance(answer, Mapping)
            whole = answer
    except BaseException as error:  # also SystemExit: nothing that user code raises may cost the answers or a thread
        done = now_ns()
        if len(waiters) > 1 and executable.is_pure:
            results = [
                _alone(executable, outputs, one, instance, has_batch_axis=has_batch_axis, axes=axes) for one in waiters
            ]
        else:
            results = [as_error(error)] * len(waiters)
    return Ran(results, started, ready - started, done - ready, now_ns() - done, whole)


def run_whole(
    executable: Executable, batch: Batch, rows: int, instance: int, *, now_ns: Callable[[], int] = time.monotonic_ns
) -> Ran | None:
    """Runs a batch that nobody had to put together, and takes nothing of it apart. Never raises.

    None if anything but all `rows` of each output came of it: `run_batch` can tell what is wrong, and with whom.
    """
    started = now_ns()
    try:
        answer = executable.execute(batch, instance)
    except BaseException:  # as in `run_batch`
        return None
    done = now_ns()
    if not isinstance(answer, Mapping) or any(name not in answer for name in batch.outputs):
        return None
    for tensor in answer.values():
        if tensor.ndim == 0 or len(tensor) != rows:
            return None
    return Ran((), started, 0, done - started, now_ns() - done, answer)


def _alone(
    executable: Executable,
    outputs: Sequence[TensorSpec],
    one: Waiter,
    instance: int,
    *,
    has_batch_axis: bool,
    axes: BatchAxes | None,
) -> MemberResult:
    ran = run_batch(executable, outputs, (one,), instance, has_batch_axis=has_batch_axis, axes=axes)
    return ran.results[0] if ran.whole is None else (ran.whole, NO_PARAMETERS)


def as_error(error: BaseException) -> FarthingError:
    """Any exception as one that has a status."""
    if isinstance(error, FarthingError):
        return error
    failed = EngineFailed(f"the engine failed: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def cannot_reschedule() -> EngineFailed:
    """What is told to a request whose model wants to run it again, and may not; the first half is Triton's words."""
    return EngineFailed(
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
        "such a flag",
        hint="set sequence_batching { iterative_sequence: true }",
    )


def gather(outputs: Sequence[TensorSpec], waiters: Sequence[Waiter], axes: BatchAxes | None = None) -> Batch:
    """The batch of these requests, their rows one after the other."""
    first = waiters[0]
    wanted = _wanted(outputs, waiters)
    inputs = shared_rows(waiters)
    if len(waiters) == 1:
        request = first.request
        return Batch(
            first.inputs if inputs is None else inputs,
            wanted,
            (Member(first.rows, request.id, request.parameters),),
            waiters,
        )
    if axes is not None:
        inputs = {
            name: np.concatenate([w.inputs[name] for w in waiters], axes.inputs[name])
            if name in axes.inputs
            else tensor
            for name, tensor in first.inputs.items()
        }
    elif inputs is None:
        inputs = {
            name: np.concatenate([w.inputs[name] if w.start < 0 else own_rows(w, name) for w in waiters])
            for name in first.inputs
        }
    return Batch(inputs, wanted, tuple(members_of(waiters)), waiters)


def members_of(waiters: Sequence[Waiter]) -> Iterator[Member]:
    """What the model may know of each."""
    request, member = None, Member(-1)
    for waiter in waiters:
        if waiter.request is not request or waiter.rows != member.rows:  # riders ask the same
            request = waiter.request
            member = Member(waiter.rows, request.id, request.parameters)
        yield member


def _wanted(outputs: Sequence[TensorSpec], waiters: Sequence[Waiter]) -> tuple[str, ...]:
    """Names that at least one request asked for, in the model's order."""
    names: set[str] = set()
    seen = None
    for waiter in waiters:
        wanted = waiter.request.outputs
        if not wanted:
            return tuple([spec.name for spec in outputs])
        if wanted is not seen:
            names.update([asked.name for asked in wanted])
            seen = wanted
    return tuple([spec.name for spec in outputs if spec.name in names])


def _hand_back(
    answer: Answer,
    batch: Batch,
    outputs: Sequence[TensorSpec],
    waiters: Sequence[Waiter],
    *,
    has_batch_axis: bool,
    axes: BatchAxes | None,
) -> list[MemberResult]:
    if not isinstance(answer, Mapping):
        if len(answer) != len(waiters):
            raise EngineFailed(f"the model gave {len(answer)} answers to {len(waiters)} requests")
        return [_member_result(one, waiter, batch) for one, waiter in zip(answer, waiters, strict=True)]
    for name in batch.outputs:
        if name not in answer:
            raise EngineFailed(f"the model gave no output `{name}`; it gave: {', '.join(answer) or 'none'}")
    if len(waiters) == 1 and (not has_batch_axis or axes is not None or waiters[0].rows == 0):
        return [(answer, NO_PARAMETERS)]
    if axes is not None:
        return _apart_along(axes.outputs, answer, waiters)
    total = sum([waiter.rows for waiter in waiters])
    for name, tensor in answer.items():
        if has_batch_axis and (tensor.ndim == 0 or tensor.shape[0] != total):
            raise EngineFailed(
                f"output `{name}` has shape {list(tensor.shape)}, but {total} rows went in",
                hint="a model that batches answers one row for each row; else set max_batch_size to 0",
            )
    going_on = [waiter.goes_on for waiter in waiters]
    if has_batch_axis and True in going_on:
        return [None] * len(waiters) if False not in going_on else _apart(answer, waiters)
    if len(waiters) == 1:
        return [(answer, NO_PARAMETERS)]
    results: list[MemberResult] = []
    start = 0
    if len(answer) == 1:
        [(name, tensor)] = answer.items()
        for waiter in waiters:
            results.append(({name: tensor[start : start + waiter.rows]}, NO_PARAMETERS))
            start += waiter.rows
        return results
    for waiter in waiters:
        end = start + waiter.rows
        results.append(({name: tensor[start:end] for name, tensor in answer.items()}, NO_PARAMETERS))
        start = end
    return results


def _apart_along(
    axes: Mapping[str, int], answer: Mapping[str, Tensor], waiters: Sequence[Waiter]
) -> list[MemberResult]:
    """Everybody's rows of outputs that do not lead with them."""
    total = sum([waiter.rows for waiter in waiters])
    for name, tensor in answer.items():
        axis = axes[name]
        if tensor.ndim <= axis or tensor.shape[axis] != total:
            raise EngineFailed(
                f"output `{name}` has shape {list(tensor.shape)}, but {total} rows went in, along axis {axis}",
                hint="the model's plan does not hold: make it again with `farthing optimize`, or delete it",
            )
    fronts = [(name, tensor, (slice(None),) * axes[name]) for name, tensor in answer.items()]
    results: list[MemberResult] = []
    start = 0
    for waiter in waiters:
        own = slice(start, start + waiter.rows)
        results.append(({name: tensor[(*front, own)] for name, tensor, front in fronts}, NO_PARAMETERS))
        start += waiter.rows
    return results


def _apart(answer: Mapping[str, Tensor], waiters: Sequence[Waiter]) -> list[MemberResult]:
    """Everybody's rows but the riders'."""
    results: list[MemberResult] = []
    start = 0
    for waiter in waiters:
        end = start + waiter.rows
        if waiter.goes_on:
            results.append(None)
        else:
            results.append(({name: tensor[start:end] for name, tensor in answer.items()}, NO_PARAMETERS))
        start = end
    return results


def _member_result(one: MemberAnswer | FarthingError, waiter: Waiter, batch: Batch) -> MemberResult:
    if isinstance(one, FarthingError):
        return one
    if one.is_rescheduled:
        return cannot_reschedule()
    for name in [asked.name for asked in waiter.request.outputs] or batch.outputs:
        if name not in one.outputs:
            return EngineFailed(f"the model gave no output `{name}`; it gave: {', '.join(one.outputs) or 'none'}")
    return (one.outputs, one.parameters)
