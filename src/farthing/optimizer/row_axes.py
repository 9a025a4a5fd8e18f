"""May requests share a run though no dimension of the model's file is a batch? Found by trying, on the user's data.

Recurrent networks keep layers or time before the batch, and take scalars beside: [2, batch, 128], []. Some samples are
run one by one and then together, along each choice of free axes in turn; a choice stands if every output has a row for
each sample and the same values in it. What the batcher makes of it is `types.batch_axes`'.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
from typing import Final

import numpy as np

from farthing.engines.contract import Executable
from farthing.optimizer.samples import Samples
from farthing.optimizer.timing import batch_of, run
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import FarthingError
from farthing.types.tensors import Tensor

SAMPLES: Final = 5
"""Run together: far apart in the data, so that they differ, and a number that no dimension is likely to have."""

CHOICES_MAX: Final = 32
"""Choices of axes that are tried."""


def find_axes(
    executable: Executable, samples: Samples, are_near: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
) -> BatchAxes | None:
    """The axes that count rows; None if there are none. `samples` have a row each. Never raises for what it tries."""
    if len(samples) < 2:
        return None
    count = min(SAMPLES, len(samples))
    chosen = [round(at * (len(samples) - 1) / (count - 1)) for at in range(count)]
    outputs = tuple(spec.name for spec in executable.outputs)
    try:
        alone = [run(executable, batch_of(samples, [at], outputs, has_batch_axis=False), 0) for at in chosen]
    except FarthingError:
        return None
    for inputs in islice(_choices(executable, samples), CHOICES_MAX):
        axes = BatchAxes(inputs=inputs, outputs={})
        try:
            together = run(executable, batch_of(samples, chosen, outputs, has_batch_axis=False, axes=axes), 0)
        except FarthingError:
            continue
        found = {name: _axis_of(alone[0][name].shape, together[name].shape, count) for name in outputs}
        if any(axis is None for axis in found.values()):
            continue
        known = {name: axis for name, axis in found.items() if axis is not None}
        apart = [{name: np.take(together[name], [at], axis) for name, axis in known.items()} for at in range(count)]
        if all(are_near(one, other) for one, other in zip(alone, apart, strict=True)):
            return BatchAxes(inputs=inputs, outputs=known)
    return None


def _choices(executable: Executable, samples: Samples) -> Iterator[dict[str, int]]:
    """An axis for each input that has a free one where its samples have a single row, the first ones first."""
    able: dict[str, list[int]] = {}
    for spec in executable.inputs:
        array = samples.inputs.get(spec.name)
        if array is None:
            continue
        free = [axis for axis, size in enumerate(spec.shape) if size == -1 and array.shape[1:][axis] == 1]
        if free:
            able[spec.name] = free
        elif not (array == array[:1]).all():
            return  # nothing that tells samples apart may be shared
    if not able:
        return
    for axes in product(*able.values()):
        yield dict(zip(able, axes, strict=True))


def _axis_of(alone: tuple[int, ...], together: tuple[int, ...], rows: int) -> int | None:
    """The one axis along which a shape has grown from 1 to so many rows."""
    if len(alone) != len(together):
        return None
    grown = [axis for axis, (one, all_) in enumerate(zip(alone, together, strict=True)) if one != all_]
    return grown[0] if len(grown) == 1 and (alone[grown[0]], together[grown[0]]) == (1, rows) else None
