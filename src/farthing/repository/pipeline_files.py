"""A pipeline's file: `pipeline.toml`, read; or `pipeline.py`, run in a process of its own for the graph it builds.

No line of a `pipeline.py` ever runs in the server: it gets an interpreter for itself, a few seconds and a megabyte, and
what comes back is checked as if it stood in a `pipeline.toml`. What may be written is in `config.pipeline`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import msgspec

from farthing.config.pipeline import PipelineGraph, parse_pipeline
from farthing.repository.config_files import read_toml
from farthing.repository.listing import fingerprint
from farthing.repository.pipeline_run import OUTPUT_BYTES_MAX
from farthing.types.errors import LoadFailed

TOML: Final = "pipeline.toml"
PYTHON: Final = "pipeline.py"
FILES: Final = (TOML, PYTHON)

RUN_S: Final = 20.0
"""How long a `pipeline.py` may take. It only names models and tensors; starting Python takes a quarter of a second."""

REMEMBERED_MAX: Final = 10_000
"""Evaluated files that are remembered: as many as a repository may have models."""

HINT: Final = "docs/reference/pipelines.md shows how a graph is built"


class PipelineFiles:
    """Reads pipelines, and remembers what each `pipeline.py` gave until a file beside it changes."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, PipelineGraph | LoadFailed]] = {}

    def read(self, path: Path, version: str) -> PipelineGraph:
        """The graph in a file. `version` is the fingerprint of all that it may depend on. Raises `LoadFailed`."""
        if path.name == TOML:
            return parse_pipeline(read_toml(path), source=str(path))
        known = self._known.pop(path, None)
        if known is None or known[0] != version:
            known = (version, _evaluated(path))
        self._known[path] = known
        if len(self._known) > REMEMBERED_MAX:
            self._known.pop(next(iter(self._known)), None)
        if isinstance(known[1], LoadFailed):
            raise known[1].with_traceback(None)
        return known[1]


def pipeline_file(folder: Path, files: Iterable[str]) -> Path | None:
    """The file that makes a folder with these files a pipeline, if it is one. Raises `LoadFailed` for two."""
    found = [name for name in FILES if name in files]
    if len(found) > 1:
        raise LoadFailed(f"{folder} has both {TOML} and {PYTHON}", hint="keep the one that is right")
    return folder / found[0] if found else None


def file_version(path: Path) -> str:
    """The fingerprint of a file served by itself, and of the Python files beside it. Raises `OSError`."""
    beside = path.parent.glob("*.py") if path.name == PYTHON else ()
    return fingerprint((part.name, part.stat()) for part in {path, *beside} if part.is_file())


def _evaluated(path: Path) -> PipelineGraph | LoadFailed:
    try:
        return _run(path)
    except LoadFailed as problem:
        return problem


def _run(path: Path) -> PipelineGraph:
    # Files, not pipes: whatever the process does, reading them neither blocks nor fills the memory.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "farthing.repository.pipeline_run", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=words,
            start_new_session=True,
        )
        try:
            status = process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"{path}: did not end within {RUN_S:g} s", hint=HINT) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            process.wait()
        try:
            told = msgspec.json.decode(_read(answer), type=dict[str, msgspec.Raw])
            if "error" in told:
                raise LoadFailed(f"{path}: {msgspec.json.decode(told['error'], type=str)}", hint=_last(words))
            values = msgspec.json.decode(told["graph"])
        except (msgspec.DecodeError, KeyError):
            raise LoadFailed(
                f"{path}: its process ended with status {status} and no graph", hint=_last(words)
            ) from None
    return parse_pipeline(values, source=str(path))


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(OUTPUT_BYTES_MAX + 1)


def _last(words: IO[bytes]) -> str:
    lines = _read(words).decode("utf-8", "replace").strip().splitlines()[-5:]
    return "its last lines: " + " | ".join(line.strip()[:300] for line in lines) if lines else HINT
