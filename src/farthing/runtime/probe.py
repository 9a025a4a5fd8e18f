"""What a freshly loaded model tells when it is tried: are its rows independent, and how long do they take?

Only models that may be run on made-up inputs are tried (`Executable.is_pure`). A first dimension that is free need
not be a batch: it may be time, or the model may normalise over it. So two rows are run apart and together, and only
if the answers agree may strangers' requests share a run. Blocks; belongs on a loader thread.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from farthing.batching.row_times import RowTimes
from farthing.engines.contract import Batch, Executable, Member
from farthing.types.errors import FarthingError
from farthing.types.tensors import Tensor, TensorSpec

MEASURE_S_MAX: Final = 0.25
"""Time spent on measuring row times at load; what it did not reach is learned from real requests."""

ROWS_MEASURED_MAX: Final = 64

FREE_DIMENSION_SIZES: Final = (16, 32, 64, 224)
"""Sizes tried for dimensions that are free apart from the first, until the model accepts one."""

MIXING_TOLERANCE: Final = 1e-6
"""A row beside one neighbour and beside another: the same kernels on the same shapes, so equal but for threads that add
in another order. Relative to the largest value of the output."""

SIZE_TOLERANCE: Final = 0.05
"""A row alone and among others: engines choose other kernels for another batch size (1e-6 is usual in float32, 1e-2 in
bfloat16 or where made-up rows meet a layer norm over nearly equal values). More means that the model itself looks at
the number of rows."""


def has_independent_rows(executable: Executable) -> bool | None:
    """Whether a row's answer is its own, whoever runs beside it; None if the model cannot be tried.

    Row x is run first and last beside y, the same beside z, and alone. A model that mixes rows answers x differently
    beside y and z; one for which the dimension is time does so only when x comes last.
    """
    for size in FREE_DIMENSION_SIZES:
        generator = np.random.default_rng(0)
        x, y, z = (_made_up(executable.inputs, 1, size, generator) for _ in range(3))
        try:
            alone = _execute(executable, x, 1)
            xy, yx, xz, zx = (
                _execute(executable, {name: np.concatenate([one[name], two[name]]) for name in x}, 2)
                for one, two in ((x, y), (y, x), (x, z), (z, x))
            )
        except Exception:  # whatever a made-up input does to it, the model may be fine
            if any(-1 in tensor.shape[1:] for tensor in executable.inputs):
                continue
            return None
        return all(
            all(answer[name].ndim > 0 and answer[name].shape[0] == 2 for answer in (xy, yx, xz, zx))
            and alone[name].ndim > 0
            and alone[name].shape[0] == 1
            and _agree(xy[name][0], xz[name][0], MIXING_TOLERANCE)
            and _agree(yx[name][1], zx[name][1], MIXING_TOLERANCE)
            and _agree(xy[name][0], yx[name][1], SIZE_TOLERANCE)
            and _agree(alone[name][0], xy[name][0], SIZE_TOLERANCE)
            for name in alone
        )
    return None


def measure(executable: Executable, rows_max: int, times: RowTimes) -> None:
    """Runs made-up batches of 1, 2, 4... rows while that pays, for models whose row shapes are fixed."""
    if any(-1 in (tensor.shape[1:] if rows_max else tensor.shape) for tensor in executable.inputs):
        return  # a made-up length would tell nothing of the lengths to come
    generator = np.random.default_rng(0)
    until = time.monotonic() + MEASURE_S_MAX
    rows = 1
    while rows <= min(rows_max or 1, ROWS_MEASURED_MAX) and time.monotonic() < until:
        inputs = _made_up(executable.inputs, rows, 0, generator)
        try:
            for _ in range(4):  # the first pays for warm-up and is the one that is forgotten
                started = time.monotonic_ns()
                _execute(executable, inputs, rows)
                times.observe(rows, time.monotonic_ns() - started)
        except Exception:  # made-up inputs are not to its taste; real ones will tell
            return
        if times.best_rows(rows_max or 1) <= rows:
            return  # more rows do not pay
        rows *= 2


def _execute(executable: Executable, inputs: Mapping[str, Tensor], rows: int) -> Mapping[str, Tensor]:
    answer = executable.execute(
        Batch(inputs, tuple(tensor.name for tensor in executable.outputs), (Member(rows),)), instance=0
    )
    if isinstance(answer, Mapping):
        return answer
    [member] = answer
    if isinstance(member, FarthingError):
        raise member
    return member.outputs


def _made_up(inputs: tuple[TensorSpec, ...], rows: int, size: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Random rows: small numbers that are legal as indices, masks and pixels alike."""
    made: dict[str, Tensor] = {}
    for tensor in inputs:
        tail = tuple(size if dimension < 0 else dimension for dimension in tensor.shape[1:])
        shape = (rows if tensor.shape[0] < 0 else tensor.shape[0], *tail) if tensor.shape else ()
        made[tensor.name] = _values(tensor, shape, generator)
    return made


def _values(tensor: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor:
    dtype: np.dtype[Any] = tensor.dtype
    if tensor.datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        array[...] = b"1"
        return array
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(np.float32).astype(dtype)


def _agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    if a.shape != b.shape:
        return False
    if a.dtype == object:
        return bool((a == b).all())
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * max(scale, 1e-30), equal_nan=True))
