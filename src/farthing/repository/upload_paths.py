"""Which paths may model files have that clients bring with a load?

Pure. Strict enough for any system that might hold them; writing them belongs to `uploads`.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from farthing.repository.listing import DEPTH_MAX
from farthing.types.errors import InvalidInput

PATH_PART_BYTES_MAX: Final = 255
"""Bytes of one part of a path; what file systems allow."""

PATH_BYTES_MAX: Final = 1024
"""Bytes of a whole path; with the folder before it well under the 4096 that systems allow."""


def check_paths(paths: Iterable[str]) -> None:
    """Returns if these can all be files inside a folder on any system, else raises `InvalidInput`."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        if fault := _fault(path, parts):
            raise InvalidInput(
                f"parameters.file:{path[:80].encode('unicode_escape').decode()}: {fault}",
                hint="write `file:<version>/<path>`, for example `file:1/model.onnx`",
            )
        # Some file systems hold names to be the same that differ in case, or in how an accent is written.
        places = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        for place in places[:-1]:
            if folders.setdefault(_folded(place), place) != place or _folded(place) in files:
                raise _same(path, folders[_folded(place)])
        last = _folded(path)
        if last in folders or files.setdefault(last, path) != path:
            raise _same(path, files.get(last, folders.get(last, "")))


def _fault(path: str, parts: list[str]) -> str:
    if any(part in ("", ".", "..") or part.startswith(".") or part[-1] in ". " for part in parts):
        return "not a path inside a model's folder (a part that is empty, hidden, or ends with a dot or a space)"
    if not path.isprintable() or "\\" in path or ":" in path:
        return "not a path inside a model's folder (a character that separates or means something else to some systems)"
    if any(len(part.encode()) > PATH_PART_BYTES_MAX for part in parts):
        return f"a part of the path is over {PATH_PART_BYTES_MAX} bytes"
    if len(path.encode()) > PATH_BYTES_MAX or len(parts) > DEPTH_MAX:
        return f"over {PATH_BYTES_MAX} bytes or {DEPTH_MAX} parts"
    return ""


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())


def _same(path: str, other: str) -> InvalidInput:
    return InvalidInput(f"parameters.file:{path[:80]}: is the same as `{other[:80]}`, at least to some file systems")
