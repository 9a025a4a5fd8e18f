"""Which files does an ONNX file pull in, and is it whole?

An ONNX file may keep weights in other files and names them in strings deep inside itself. A runtime opens whatever
they say, so they are found and checked before a runtime sees the file. The file is walked as Protocol Buffers wire
data, mapped rather than read: weights are stepped over, a gigabyte of them costs nothing, and neither the `onnx`
package nor a copy of the file is needed. What the graph computes is left to the runtimes.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farthing.engines.contract import ModelSource
from farthing.engines.failure import shown
from farthing.engines.onnx_functions import check_functions
from farthing.engines.onnx_wire import Bytes, MalformedError, fields
from farthing.engines.safety import companion_file
from farthing.types.errors import LoadFailed

MESSAGES: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
"""Every way from a model to a tensor's `external_data`: message -> field number -> message.
A test derives the same table from the `onnx` package's own description."""

DEPTH_MAX: Final = 100
"""Messages inside messages; Protocol Buffers' own readers stop there, so a deeper file cannot be run anyway."""

FIELDS_MAX: Final = 5_000_000
"""Fields looked at (about 0.5 us each). The largest models met have some 100,000; a file made of empty fields
would otherwise keep the loader busy for hours."""

FILES_MAX: Final = 10_000
"""External data files of one model. Exporters write one, or one for each of some hundreds of tensors."""

_MARK: Final = b"location"
"""External data always carries this key. A node or attribute without these bytes has none, and is stepped over whole:
attributes of tree ensembles hold millions of small fields."""

_SEARCHED: Final = frozenset({"NodeProto", "AttributeProto"})
"""Messages looked through for the mark before they are walked. Tensors are not: their bytes may be gigabytes, their
fields are few."""


def onnx_file(source: ModelSource) -> Path:
    """The file itself, where Triton's layout has a folder `model.onnx/` that holds it with its external data."""
    if not source.path.is_dir():
        return source.path
    inner = source.path / source.path.name
    companion_file(inner.name, of=inner, folder=source.folder)
    return inner


def check_onnx_file(path: Path, folder: Path) -> dict[str, Path]:
    """The files that hold the model's external data, by the names the model has for them.

    Raises `LoadFailed` if the model is cut off or malformed, or if a file it names is not inside `folder`.
    """
    files: dict[str, Path] = {}
    if path.exists() and not path.is_file():
        raise LoadFailed(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise LoadFailed(f"{path}: the file is empty", hint="copy or export the model again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for location in external_locations(data):
                    if location not in files:
                        files[location] = companion_file(location, of=path, folder=folder)
                        if len(files) > FILES_MAX:
                            raise MalformedError(f"it names more than {FILES_MAX} files")
                check_functions(data)
    except OSError as error:
        raise LoadFailed(f"{path}: cannot be read: {error.strerror}") from error
    except MalformedError as error:
        raise LoadFailed(
            f"{path}: not a whole and sound ONNX model: {error}",
            hint="copy or export the model again; compare its size or checksum",
        ) from error
    return files


def external_locations(data: Bytes) -> Iterator[str]:
    """The `location` of every external tensor: initialisers, subgraphs, attributes, functions, sparse tensors."""
    budget = FIELDS_MAX
    waiting = [("ModelProto", 0, len(data), 0)]
    while waiting:
        message, start, end, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise MalformedError(f"messages are nested deeper than {DEPTH_MAX} at byte {start}")
        if message == "StringStringEntryProto":
            yield from _location(data, start, end)
            continue
        inner = MESSAGES[message]
        for field, field_start, field_end in fields(data, start, end):
            budget -= 1
            if budget < 0:
                raise MalformedError(f"more than {FIELDS_MAX} fields")
            child = inner.get(field)
            if child and not (child in _SEARCHED and _MARK not in data[field_start:field_end]):
                waiting.append((child, field_start, field_end, depth + 1))


def _location(data: Bytes, start: int, end: int) -> Iterator[str]:
    """The value of a key-value entry whose key is `location`. Later fields win, as in Protocol Buffers' readers."""
    entry = {field: data[at:stop] for field, at, stop in fields(data, start, end)}
    if entry.get(1) != _MARK:
        return
    try:
        location = entry.get(2, b"").decode()
    except UnicodeDecodeError:
        name = shown(entry[2].decode(errors="replace"))
        raise MalformedError(f"the external data file `{name}` is not named in UTF-8") from None
    # ONNX Runtime's own mark for "this is an address in memory"; in a file it can only be an attack.
    if location.startswith("*"):
        raise MalformedError(f"external data at `{shown(location)}` is an address, not a file")
    yield location
