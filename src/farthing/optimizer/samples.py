"""The user's data: one array an input, a row a sample, perhaps labels; read, checked, and divided.

Part of it may steer how a model is made cheaper (calibration); the rest alone judges whether it is still right. No
sample does both. What "right" means belongs to `optimizer.agreement`, reading text to `optimizer.texts`.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from farthing.optimizer.texts import SUFFIXES, bytes_array, read_texts
from farthing.types.errors import InvalidInput
from farthing.types.tensors import Tensor, TensorSpec

LABELS: Final = "labels"
"""The array in a data file that says what the answers should be, one row a sample."""

BYTES_MAX: Final = 8 << 30
"""Of all arrays together, unpacked; a file that claims more is not unpacked."""

CALIBRATION_SHARE: Final = 0.25
CALIBRATION_MAX: Final = 256
"""Samples that calibrate: ranges of activations have settled well before (MinMax over 48 crops and over 256 differ by
less than the choice of method), and every further one is lost to judging."""

HINT: Final = "numpy.savez('data.npz', INPUT_NAME=array): an array for each input, its first dimension counts samples"


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of every input, and what their answers should be."""

    inputs: Mapping[str, Tensor]
    """Input name -> [samples, ...], each row as the model sees it, without a batch dimension."""
    labels: Tensor | None = None
    """[samples] or [samples, ...]."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: Sequence[int] | Tensor) -> "Samples":
        """These rows alone."""
        return Samples(
            inputs={name: array[rows] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[rows],
        )


def digest_of(samples: Samples) -> str:
    """SHA-256 of all values, hexadecimal: the same data, the same digest, whatever file they came in."""
    whole = hashlib.sha256()
    labelled = {} if samples.labels is None else {LABELS: samples.labels}
    for name, array in sorted({**samples.inputs, **labelled}.items()):
        whole.update(f"{name} {array.dtype} {array.shape}".encode())
        if array.dtype.hasobject:
            for value in array.flat:
                whole.update(len(value).to_bytes(8, "big") + value)
        else:
            whole.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return whole.hexdigest()


def read_samples(
    path: Path, inputs: Sequence[TensorSpec], *, has_batch_axis: bool, tokenizer: Path | None = None
) -> Samples:
    """Reads a `.npz`, an `.npy` for a model with one input, or text (`optimizer.texts`); never anything pickled.

    Raises `InvalidInput` saying which array does not fit which input.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        arrays = read_texts(path, inputs, tokenizer)
    else:
        arrays = _read_npy(path, inputs) if suffix == ".npy" else _read_npz(path)
    return fit_samples(arrays, inputs, has_batch_axis=has_batch_axis, where=str(path))


def fit_samples(
    arrays: Mapping[str, Tensor], inputs: Sequence[TensorSpec], *, has_batch_axis: bool, where: str = "data"
) -> Samples:
    """Checks arrays against the model's inputs. Raises `InvalidInput`."""
    rows: dict[str, Tensor] = {}
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None:
            if spec.is_optional:
                continue
            found = ", ".join(f"`{name}`" for name in arrays) or "nothing"
            raise InvalidInput(f"{where}: no array for input `{spec.name}`; found: {found}", hint=HINT)
        rows[spec.name] = _fitted(array, spec, has_batch_axis, where)
    unknown = [name for name in arrays if name != LABELS and name not in rows]
    if unknown:
        names = ", ".join(f"`{spec.name}`" for spec in inputs)
        raise InvalidInput(f"{where}: array `{unknown[0]}` is no input of this model; inputs: {names}", hint=HINT)
    counts = {name: len(array) for name, array in rows.items()}
    labels = arrays.get(LABELS)
    if labels is not None:
        counts[LABELS] = len(labels) if labels.ndim else 0
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise InvalidInput(f"{where}: arrays have different numbers of samples: {shown}", hint=HINT)
    samples = Samples(inputs=rows, labels=labels)
    if len(samples) < 2:
        raise InvalidInput(
            f"{where}: {len(samples)} sample; at least 2 are needed to see whether rows may share a run",
            hint="give a few hundred: the more there are, the smaller a loss of accuracy can be ruled out",
        )
    return samples


def divide(samples: Samples, seed: int = 0) -> tuple[Samples, Samples]:
    """Samples to calibrate with, and samples to judge by: none is both. The same seed divides the same way."""
    order = np.random.default_rng(seed).permutation(len(samples))
    calibrating = max(1, min(int(len(samples) * CALIBRATION_SHARE), CALIBRATION_MAX))
    return samples.take(np.sort(order[:calibrating])), samples.take(np.sort(order[calibrating:]))


def _fitted(array: Tensor, spec: TensorSpec, has_batch_axis: bool, where: str) -> Tensor:
    row = spec.shape[1:] if has_batch_axis else spec.shape
    if spec.datatype == "BYTES":
        if array.dtype.kind not in "SUO":
            raise InvalidInput(f"{where}: `{spec.name}` is {array.dtype}; the model wants text", hint=HINT)
        array = bytes_array(array)
        if array.ndim == 1 and all(d in (-1, 1) for d in row):  # a text a sample, for a model that takes [batch, 1]
            array = array.reshape(len(array), *[1] * len(row))
    if array.ndim == len(row) and row[:1] in ((1,), (-1,)):  # [samples, 3, 224, 224] for [1, 3, 224, 224]
        array = array[:, None]
    if array.ndim != len(row) + 1 or any(want not in (-1, got) for want, got in zip(row, array.shape[1:], strict=True)):
        raise InvalidInput(
            f"{where}: `{spec.name}` has shape {list(array.shape)}; the model wants "
            f"[samples, {', '.join(str(d) if d >= 0 else 'any' for d in row)}]",
            hint=HINT,
        )
    if array.dtype != spec.dtype and spec.datatype != "BYTES":
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise InvalidInput(f"{where}: `{spec.name}` is {array.dtype}; the model wants {spec.datatype}")
        array = array.astype(spec.dtype)
    return np.ascontiguousarray(array)


def _read_npy(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    if len(inputs) != 1:
        raise InvalidInput(f"{path}: the model has {len(inputs)} inputs; one array is not enough", hint=HINT)
    try:
        return {inputs[0].name: np.load(path, mmap_mode="r", allow_pickle=False)}
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", hint=HINT) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(item.file_size for item in archive.infolist())
        if claimed > BYTES_MAX:
            raise InvalidInput(f"{path}: {claimed} bytes unpacked; allowed: {BYTES_MAX}", hint="give fewer samples")
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", hint=HINT) from error
