"""How fast a loaded model runs with the machine to itself: every instance on its own thread, batches back to back.

The engines' contract and nothing else, so it measures what a server runs. Who is measured for how long is
`optimizer.race`'s.
"""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from farthing.engines.contract import Batch, Executable, Member
from farthing.optimizer.race import Turn
from farthing.optimizer.samples import Samples
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import EngineFailed
from farthing.types.tensors import Tensor

ROWS_IN_TURN = 64
"""Rows of data that runs take turns with: one batch over and over would stay in the caches, and flatter."""


def batches_of(
    samples: Samples, rows: int, outputs: Sequence[str], *, has_batch_axis: bool, axes: BatchAxes | None = None
) -> list[Batch]:
    """Batches of so many rows that have all samples between them, the last filled up from the first."""
    count = len(samples)
    starts = range(0, min(count, max(ROWS_IN_TURN, rows)), rows)
    return [
        batch_of(samples, [(start + i) % count for i in range(rows)], outputs, has_batch_axis=has_batch_axis, axes=axes)
        for start in starts
    ]


def batch_of(
    samples: Samples,
    rows: Sequence[int],
    outputs: Sequence[str],
    *,
    has_batch_axis: bool,
    axes: BatchAxes | None = None,
) -> Batch:
    """These rows as one batch; without a batch axis or `axes` the first of them."""
    members = tuple([Member(1)] * len(rows))
    if has_batch_axis:
        inputs = {name: array[list(rows)] for name, array in samples.inputs.items()}
    elif axes is not None:
        inputs = {
            name: np.concatenate([array[row] for row in rows], axes.inputs[name])
            if name in axes.inputs
            else np.asarray(array[rows[0]], order="C")
            for name, array in samples.inputs.items()
        }
    else:
        inputs = {name: np.asarray(array[rows[0]], order="C") for name, array in samples.inputs.items()}
    return Batch(inputs, tuple(outputs), members)


def answers(
    executable: Executable,
    samples: Samples,
    *,
    rows: int,
    has_batch_axis: bool,
    axes: BatchAxes | None = None,
    wanted: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Outputs for all samples, [samples, ...]; those `wanted`, or all. Raises what the engine and `check` raise.

    `rows` at a time, along the first axis or along `axes`; one by one if there are neither.
    """
    names = tuple(wanted) or tuple(spec.name for spec in executable.outputs)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    step = rows if has_batch_axis or axes is not None else 1
    for start in range(0, len(samples), step):
        check()
        taken = range(start, min(start + step, len(samples)))
        answer = run(executable, batch_of(samples, taken, names, has_batch_axis=has_batch_axis, axes=axes), 0)
        for name in names:
            tensor = answer[name]
            axis = 0 if axes is None else axes.outputs.get(name, 0)
            has_rows = has_batch_axis or axes is not None
            if has_rows and (tensor.ndim <= axis or tensor.shape[axis] != len(taken)):
                raise EngineFailed(f"output `{name}` has shape {list(tensor.shape)} for {len(taken)} rows")
            if axes is not None:  # each as if it had run alone, where the axis has one row
                tensor = np.expand_dims(np.moveaxis(tensor, axis, 0), axis + 1)
            parts[name].append(tensor if has_rows else tensor[None])
    try:
        return {name: np.concatenate(tensors) for name, tensors in parts.items()}
    except ValueError as error:
        raise EngineFailed(
            f"outputs differ in shape from sample to sample: {error}",
            hint="optimizing needs outputs of one shape; pad the inputs to one length",
        ) from error


def run(executable: Executable, batch: Batch, instance: int) -> dict[str, Tensor]:
    """One batch; engines that answer member by member are not for measuring."""
    answer = executable.execute(batch, instance)
    if not isinstance(answer, dict):
        raise EngineFailed("this engine answers request by request, and cannot be compared")
    return answer


Work = tuple[Executable, Sequence[Batch], int]
"""What runs, on which batches in turn, in how many instances at once."""


def take_turn(executable: Executable, batches: Sequence[Batch], *, instances: int, seconds: float) -> Turn:
    """Runs for so long, at least three times an instance (once, if a run is longer than the turn)."""
    [turn] = take_turns([(executable, batches, instances)], seconds=seconds)
    return turn


def take_turns(work: Sequence[Work], *, seconds: float) -> list[Turn]:
    """The same for several models at full load together; nobody ends before all have run often enough."""
    for executable, batches, _ in work:
        run(executable, batches[0], 0)  # what a first run of a shape costs is paid once in a server's life
    times: list[list[list[int]]] = [[[] for _ in range(instances)] for _, _, instances in work]
    failed: list[Exception] = []
    workers = sum(instances for _, _, instances in work)
    begin = threading.Barrier(workers + 1)
    deadline = [0]
    enough: set[tuple[int, int]] = set()

    def go(model: int, instance: int) -> None:
        executable, batches, _ = work[model]
        at, mine = instance, times[model][instance]
        begin.wait()
        try:
            while not failed:
                before = time.perf_counter_ns()
                run(executable, batches[at % len(batches)], instance)
                now = time.perf_counter_ns()
                mine.append(now - before)
                at += 1
                if len(mine) >= 3 or now - before > seconds * 1e9:
                    enough.add((model, instance))
                if now >= deadline[0] and len(enough) == workers:
                    return
        except Exception as error:
            failed.append(error)

    threads = [
        threading.Thread(target=go, args=(model, instance), daemon=True)
        for model, (_, _, instances) in enumerate(work)
        for instance in range(instances)
    ]
    for thread in threads:
        thread.start()
    deadline[0] = time.perf_counter_ns() + int(seconds * 1e9)
    begin.wait()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [_turn_of(mine, len(batches[0].members)) for mine, (_, batches, _) in zip(times, work, strict=True)]


def _turn_of(times: Sequence[Sequence[int]], rows: int) -> Turn:
    """What the runs of a model's instances, in nanoseconds, come to."""
    # Each instance's own rate, summed: they do not end at the same moment.
    rate = sum(len(mine) * rows / (sum(mine) / 1e9) for mine in times)
    everything = np.array([t for mine in times for t in mine], np.float64) / 1e6
    slow = float(np.quantile(everything, 0.99)) if len(everything) >= 100 else float(everything.max())
    return Turn(rows_per_s=rate, run_ms_p99=slow, runs=len(everything))
