"""The folder samples are kept in: where it is, who may write to it, and how a finished sample appears there.

    models/NAME/1/model.onnx      a finished model, in Triton's layout, with `sample.json` saying where it is from
    inputs/NAME/...               a finished set of inputs
    models/.staging/NAME-xxxx/    one that is being made; on the same file system, so that a rename publishes it
    locks/NAME.lock               held while NAME is being made; the kernel frees it when its holder dies

A reader sees a whole folder or none. Whoever takes the lock first sweeps up what a killed predecessor left.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from farthing.repository.samples.catalogue import Sample
from farthing.types.errors import LoadFailed

try:
    import fcntl
except ImportError:  # Windows: two pulls at once do the work twice there, and the last rename stands
    fcntl = None  # type: ignore[assignment]

STAMP: Final = "sample.json"
OUT_OF_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a used-up quota, a file size limit: to the user one and the same."""


def cache_folder() -> Path:
    """`$FARTHING_CACHE`, else `$XDG_CACHE_HOME/farthing`, else `~/.cache/farthing`. It need not exist yet."""
    if chosen := os.environ.get("FARTHING_CACHE"):
        return Path(chosen).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "farthing"
    return Path.home() / ".cache" / "farthing"


def folders_of(sample: Sample) -> list[Path]:
    """Where the sample's folders are, or would be."""
    return [_home(sample) / model for model in sample.models]


def is_cached(sample: Sample) -> bool:
    """Whether all of it is there, made from the same files by the same recipe."""
    return all(_read_stamp(folder) == _stamp(sample) for folder in folders_of(sample))


@contextmanager
def locked(sample: Sample, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the sample's lock; calls `on_wait` once if somebody else has it."""
    path = cache_folder() / "locks" / f"{sample.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def staging(sample: Sample) -> Iterator[Path]:
    """An empty folder to make the sample in, gone afterwards; the caller holds the lock.

    Raises `LoadFailed` saying how much room is needed, before the work if that can be seen, else when it runs out.
    """
    ground = _home(sample) / ".staging"
    try:
        ground.mkdir(parents=True, exist_ok=True)
        for left_behind in ground.glob(f"{sample.name}-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        if shutil.disk_usage(ground).free < sample.room_bytes:
            raise out_of_room(sample)
        folder = Path(tempfile.mkdtemp(prefix=f"{sample.name}-", dir=ground))
    except OSError as error:
        raise _unwritable(sample, ground, error) from error
    try:
        yield folder
    except OSError as error:
        raise _unwritable(sample, folder, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(sample: Sample, staged: Path) -> list[Path]:
    """Moves the finished folders from the staging folder to their places and returns those."""
    places = folders_of(sample)
    for place in places:
        folder = staged / place.name
        (folder / STAMP).write_text(json.dumps(_stamp(sample), indent=2) + "\n", encoding="utf-8")
        for path in folder.rglob("*"):
            if path.is_file():
                _flush(path)
        if place.exists():
            place.rename(staged / f"{place.name}.replaced")
        folder.rename(place)
    return places


def out_of_room(sample: Sample) -> LoadFailed:
    """The error for a disk (or quota, or file size limit) too small for this sample."""
    folder = cache_folder()
    most = f"{sample.room_bytes / 1e6:,.0f} MB"
    free = ""
    if folder.exists():
        free = f"; {shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
    return LoadFailed(
        f"no room for sample `{sample.name}` in {folder}: making it takes up to {most}{free}",
        hint="free some, or set FARTHING_CACHE to a folder on a larger disk",
    )


def _unwritable(sample: Sample, folder: Path, error: OSError) -> LoadFailed:
    if error.errno in OUT_OF_ROOM:
        return out_of_room(sample)
    return LoadFailed(
        f"sample `{sample.name}` could not be made in {folder}: {error}",
        hint="the cache folder must be writable; FARTHING_CACHE names another one",
    )


def _home(sample: Sample) -> Path:
    return cache_folder() / ("inputs" if sample.is_input else "models")


def _stamp(sample: Sample) -> dict[str, Any]:
    return {
        "sample": sample.name,
        "revision": sample.revision,
        "licence": sample.licence,
        "notice": sample.notice,
        "files": [
            {"package": f"{m.package.name}=={m.package.version}", "path": m.path, "sha256": m.sha256}
            for m in sample.members
        ],
    }


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _flush(path: Path) -> None:
    # Without this a power cut soon after the rename can leave a named but empty file, which nothing would notice.
    with path.open("rb") as file:
        os.fsync(file.fileno())
