"""What is sent to a model of tensors: random values of its own spec, or what stands in files.

A file gives one request (.npz: an array an input; .json: a KServe request or name -> values; a picture or a sound) or
many (.jsonl, .txt: one a line); a folder those of all its files. Prompts of language models are `prompts`'.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.types.errors import InvalidInput
from farthing.types.tensors import Tensor, TensorSpec

RANDOM_REQUESTS: Final = 16
"""Different random requests sent in turn: enough that no cache of one answer is measured, few enough to be kept."""
RANDOM_WORDS: Final = ("rain", "river", "stone", "light", "paper", "green", "house", "seven")
PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
SOUNDS: Final = frozenset({".wav", ".flac", ".ogg"})

Inputs = Mapping[str, Tensor]


def random_inputs(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], seed: int) -> list[Inputs]:
    """Requests of random values; `shapes` says how long open dimensions (-1) are, 1 where it says nothing."""
    random = np.random.default_rng(seed)
    for name in shapes.keys() - {spec.name for spec in specs}:
        raise InvalidInput(f"no input `{name}`; inputs: {', '.join(spec.name for spec in specs)}")
    return [
        {spec.name: _random(spec, shapes.get(spec.name), random) for spec in specs if not spec.is_optional}
        for _ in range(RANDOM_REQUESTS)
    ]


def _random(spec: TensorSpec, shape: Sequence[int] | None, random: np.random.Generator) -> Tensor:
    sizes = tuple(max(size, 1) if size != -1 else 1 for size in spec.shape) if shape is None else tuple(shape)
    if len(sizes) != len(spec.shape) or any(w not in (-1, g) for w, g in zip(spec.shape, sizes, strict=True)):
        raise InvalidInput(f"shape {list(sizes)} for input `{spec.name}`, which is {list(spec.shape)}")
    dtype = spec.dtype
    if spec.datatype == "BYTES":
        words = np.empty(sizes, object)
        words[...] = random.choice(np.array(RANDOM_WORDS, object), sizes)
        return words
    if spec.datatype == "BOOL":
        return random.integers(0, 2, sizes).astype(np.bool_)
    if dtype.kind in "iu":  # small: most integers are indices into some table
        return random.integers(0, 100, sizes).astype(dtype)
    return random.standard_normal(sizes).astype(dtype)


def inputs_from_file(path: Path, specs: Sequence[TensorSpec]) -> list[Inputs]:
    """The requests in a file, by its name's ending, or in a folder's files, by their names' order.

    Raises `InvalidInput` with what cannot be read.
    """
    ending = path.suffix.lower()
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            if not files:
                raise InvalidInput(f"{path} has no files in it")
            return [inputs for file in files for inputs in inputs_from_file(file, specs)]
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return [_typed({name: arrays[name] for name in arrays.files}, specs, str(path))]
        if ending == ".json":
            return [_typed(_named(json.loads(path.read_text(encoding="utf-8"))), specs, str(path))]
        if ending == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [
                _typed(_named(json.loads(line)), specs, f"{path}, line {number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
            if not found:
                raise InvalidInput(f"{path} has no requests in it")
            return found
        if ending == ".txt":
            return [{spec.name: _text(line, spec)} for spec in _one(path, specs) for line in lines_of(path)]
        return [_only(path, specs)]
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error


def _named(document: Any) -> dict[str, Any]:
    if isinstance(document, dict) and isinstance(document.get("inputs"), list):
        return {one["name"]: np.reshape(np.array(one["data"], object), one["shape"]) for one in document["inputs"]}
    if not isinstance(document, dict):
        raise InvalidInput("a request is an object: input name -> values, or a KServe request")
    return document


def _typed(values: Mapping[str, Any], specs: Sequence[TensorSpec], where: str) -> Inputs:
    known = {spec.name: spec for spec in specs}
    for name in values:
        if name not in known:
            raise InvalidInput(f"{where}: no input `{name}`; inputs: {', '.join(known)}")
    typed: dict[str, Tensor] = {}
    for name, value in values.items():
        array = np.asarray(value, object if known[name].datatype == "BYTES" else None)
        typed[name] = (
            array if known[name].datatype == "BYTES" else np.ascontiguousarray(array.astype(known[name].dtype))
        )
    return typed


def lines_of(path: Path) -> list[str]:
    """The lines of a text that are not empty. Raises `InvalidInput` where there are none, `OSError`, `ValueError`."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise InvalidInput(f"{path} has no lines in it")
    return lines


def _text(line: str, spec: TensorSpec) -> Tensor:
    if spec.datatype != "BYTES":
        raise InvalidInput(f"input `{spec.name}` is {spec.datatype}, and text is for BYTES")
    return _whole(line.encode(), spec)


def _whole(value: bytes, spec: TensorSpec) -> Tensor:
    """One element, in as many dimensions as the input has."""
    whole = np.empty((1,) * max(len(spec.shape), 1), object)
    whole[...] = value
    return whole


def _one(path: Path, specs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
    """The model's only input that must be there."""
    wanted = [spec for spec in specs if not spec.is_optional]
    if len(wanted) != 1:
        raise InvalidInput(
            f"{path.name} is one value, and the model has inputs {', '.join(spec.name for spec in wanted)}",
            hint="give an .npz or .json with a value for each",
        )
    return wanted


def _only(path: Path, specs: Sequence[TensorSpec]) -> Inputs:
    """A file that is one value: for the model's only input."""
    (spec,) = _one(path, specs)
    if spec.datatype == "BYTES":
        return {spec.name: _whole(path.read_bytes(), spec)}
    if path.suffix.lower() in PICTURES:
        return {spec.name: _picture(path, spec)}
    if path.suffix.lower() in SOUNDS:
        return {spec.name: _sound(path, spec)}
    raise InvalidInput(
        f"{path.name}: `{path.suffix}` is not known",
        hint="give .npz, .json, .jsonl, .txt, a picture, a sound, a folder of them, or `random`",
    )


def _picture(path: Path, spec: TensorSpec) -> Tensor:
    """As the model's shape has it: channels first or last, sides (224 where open), values 0 to 1 or bytes."""
    try:
        import cv2
    except ImportError as missing:
        raise InvalidInput(
            "pictures need OpenCV", hint="pip install farthing[samples], or give the tensor as .npz"
        ) from missing
    picture: Any = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None or len(spec.shape) not in (3, 4):
        raise InvalidInput(f"{path.name} is no picture for input `{spec.name}` {list(spec.shape)}")
    sizes = spec.shape[-3:]
    is_first = sizes[0] == 3
    height, width = (sizes[1], sizes[2]) if is_first else (sizes[0], sizes[1])
    picture = cv2.resize(picture, (width if width > 0 else 224, height if height > 0 else 224))[:, :, ::-1]
    values = picture if spec.dtype.kind in "iu" else picture.astype(np.float32) / 255
    values = np.moveaxis(values, -1, 0) if is_first else values
    return np.ascontiguousarray(values[None] if len(spec.shape) == 4 else values).astype(spec.dtype)


def _sound(path: Path, spec: TensorSpec) -> Tensor:
    """Samples of the first channel, as one row; cut or padded where the model wants a length."""
    try:
        import soundfile
    except ImportError as missing:
        raise InvalidInput(
            "sounds need soundfile", hint="pip install farthing[samples], or give the tensor as .npz"
        ) from missing
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    row = samples[:, 0]
    if spec.shape[-1] > 0:
        row = np.pad(row[: spec.shape[-1]], (0, max(0, spec.shape[-1] - len(row))))
    return np.ascontiguousarray(row.reshape((1,) * (len(spec.shape) - 1) + (-1,))).astype(spec.dtype)
