"""The warm-up requests of a model's configuration, run on every instance before the model is ready.

Blocks; belongs on a loader thread. Data files lie in the `warmup` folder of the model's own folder and hold a tensor's
bytes, or one row's, which then is repeated.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from farthing.config.model import WIRE_DATATYPES, DataType, ModelConfig, ModelWarmup
from farthing.config.model.fields import WarmupInput
from farthing.engines.contract import Batch, Executable, Member
from farthing.runtime.tensor_file import read_tensor_file
from farthing.types.errors import FarthingError, LoadFailed
from farthing.types.models import ModelSpec
from farthing.types.tensors import NUMPY_DTYPES, Tensor, TensorSpec, shape_fits

WARMUP_BYTES_MAX: Final = 1 << 30
"""One warm-up tensor; a mistyped dimension must not cost the machine's memory."""

WARMUP_RUNS_MAX: Final = 1000
"""Runs of one warm-up request on one instance; models are warm after a handful."""

WARMUP_FOLDER: Final = "warmup"


def warm_up(
    config: ModelConfig,
    folder: Path,
    spec: ModelSpec,
    executable: Executable,
    *,
    instances: Iterable[int],
    reshapes: Mapping[str, tuple[int, ...]],
    beside: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> None:
    """Runs every sample as often as it asks for on each of these instances. Raises `LoadFailed` naming the sample.

    `beside` gives tensors of so many rows that the model needs and a sample may leave out.
    """
    for place, sample in enumerate(config.model_warmup):
        where = f"model `{spec.name}`: model_warmup `{sample.name or place}`"
        if sample.count > WARMUP_RUNS_MAX:
            raise LoadFailed(f"{where}: count is {sample.count}; allowed: up to {WARMUP_RUNS_MAX}")
        rows = max(sample.batch_size, 1)
        if rows > max(spec.batch_rows_max, 1):
            raise LoadFailed(f"{where}: batch_size is {rows}; allowed: up to {max(spec.batch_rows_max, 1)}")
        inputs = {
            name: tensor.reshape(tuple(rows if i == 0 and spec.batch_rows_max else d for i, d in enumerate(wanted)))
            if (wanted := reshapes.get(name)) is not None
            else tensor
            for name, tensor in _tensors(sample, rows, folder, spec, where).items()
        }
        if beside is not None:
            inputs = {**beside(rows), **inputs}
        batch = Batch(inputs, tuple(tensor.name for tensor in spec.outputs), (Member(rows),))
        for instance in instances:
            for _ in range(max(sample.count, 1)):
                _run(executable, batch, instance, where)


def _run(executable: Executable, batch: Batch, instance: int, where: str) -> None:
    try:
        answer = executable.execute(batch, instance)
    except FarthingError as error:
        raise LoadFailed(f"{where}: {error.message}", hint=error.hint) from error
    failed = [one for one in answer if isinstance(one, FarthingError)] if not isinstance(answer, Mapping) else []
    if failed:
        raise LoadFailed(f"{where}: {failed[0].message}", hint=failed[0].hint)


def _tensors(sample: ModelWarmup, rows: int, folder: Path, spec: ModelSpec, where: str) -> dict[str, Tensor]:
    known = {tensor.name: tensor for tensor in spec.inputs}
    missing = [tensor.name for tensor in spec.inputs if not tensor.is_optional and tensor.name not in sample.inputs]
    if missing:
        raise LoadFailed(f"{where}: inputs missing: {', '.join(missing)}")
    made: dict[str, Tensor] = {}
    for name, told in sample.inputs.items():
        if name not in known:
            raise LoadFailed(f"{where}: the model has no input `{name}`; it has: {', '.join(known)}")
        made[name] = _tensor(told, rows if spec.batch_rows_max else 0, known[name], folder, f"{where}: input `{name}`")
    return made


def _tensor(told: WarmupInput, rows: int, expected: TensorSpec, folder: Path, where: str) -> Tensor:
    if told.data_type is DataType.INVALID or WIRE_DATATYPES[told.data_type] != expected.datatype:
        raise LoadFailed(f"{where} is {told.data_type}; the model expects {expected.datatype}")
    shape = (*((rows,) if rows else ()), *told.dims)
    if any(dimension < 0 for dimension in shape) or not shape_fits(shape, expected.shape):
        raise LoadFailed(f"{where} has dims {list(told.dims)}; the model expects {list(expected.shape)}")
    dtype = NUMPY_DTYPES[expected.datatype]
    if math.prod(shape) * dtype.itemsize > WARMUP_BYTES_MAX:
        raise LoadFailed(f"{where} has dims {list(told.dims)}: more than {WARMUP_BYTES_MAX} bytes")
    if told.input_data_file is not None:
        return _from_file(folder, told.input_data_file, shape, expected.datatype, where)
    if expected.datatype == "BYTES":
        return np.full(shape, b"", dtype)
    if told.random_data:
        generator = np.random.default_rng(0)
        if dtype.kind in "iub":  # small enough to be an index or a mask
            return generator.integers(0, 2, shape).astype(dtype)
        return generator.random(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _from_file(folder: Path, filename: str, shape: tuple[int, ...], datatype: str, where: str) -> Tensor:
    flat = read_tensor_file(folder / WARMUP_FOLDER, filename, datatype, where, WARMUP_BYTES_MAX)
    if flat.size == math.prod(shape):
        return flat.reshape(shape)
    if shape and flat.size * shape[0] == math.prod(shape):
        return np.ascontiguousarray(np.broadcast_to(flat.reshape(shape[1:]), shape))
    raise LoadFailed(
        f"{folder / WARMUP_FOLDER / filename}: holds {flat.size} elements; a tensor of {list(shape)} has "
        f"{math.prod(shape)}"
    )
