"""The folders that model files are written to which clients bring with a load.

One a load, of our own, that nobody else may enter, gone when the model is. Paths are checked by `upload_paths` before
anything is written, then walked part by part without following links. Whether files may be brought at all, and of
which kinds, is up to `runtime.overrides`.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from farthing.repository.names import check_model_name
from farthing.repository.upload_paths import check_paths
from farthing.types.errors import Overloaded, Unsupported

try:
    import fcntl
except ImportError:  # Windows, whose folders cannot be walked by descriptors either
    fcntl = None  # type: ignore[assignment]

UPLOADED_BYTES_MAX: Final = 4 << 30
"""What all models in such folders may take together: a client may load under ever new names."""

UPLOADED_MODELS_MAX: Final = 1000
"""Models that clients brought; the same."""

PREFIX: Final = "farthing-load-"
STALE_S: Final = 60.0
"""A folder nobody holds is left of a process that died, unless it was only just made."""


class Uploads:
    """Folders of models that clients brought. Any thread may call."""

    def __init__(self, base: Path | None = None) -> None:
        """`base` holds this and other processes' folders; by default the system's place for temporary files."""
        self._base = base or Path(tempfile.gettempdir())
        self._own: Path | None = None
        self._held: int = -1
        self._sizes: dict[Path, int] = {}
        self._count = 0
        self._lock = threading.Lock()

    def write(self, name: str, files: Mapping[str, bytes]) -> Path:
        """A fresh folder called `name` with these files and nothing else. Raises `InvalidInput` or `Overloaded`."""
        if fcntl is None:
            raise Unsupported("a load that brings files is not offered on this system")
        check_model_name(name)
        check_paths(files)
        size = sum(map(len, files.values()))
        with self._lock:
            taken, count = sum(self._sizes.values()), len(self._sizes)
            if taken + size > UPLOADED_BYTES_MAX or count >= UPLOADED_MODELS_MAX:
                raise Overloaded(
                    f"models that clients brought take {taken} bytes in {count} folders, this one {size}; "
                    f"allowed: {UPLOADED_BYTES_MAX} in {UPLOADED_MODELS_MAX}",
                    hint="unload one of them",
                )
            self._count += 1
            folder = self._opened() / str(self._count) / name
            self._sizes[folder] = size
        try:
            folder.parent.mkdir(0o700)
            folder.mkdir(0o700)
            for path, content in files.items():
                _write(folder, path.split("/"), content)
        except BaseException:
            self.remove(folder)
            raise
        return folder

    def remove(self, folder: Path) -> None:
        """Forgets a folder that `write` gave."""
        with self._lock:
            if self._sizes.pop(folder, None) is None:
                return
        shutil.rmtree(folder.parent, ignore_errors=True)

    def close(self) -> None:
        """Removes everything."""
        with self._lock:
            own, self._own = self._own, None
            self._sizes.clear()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
            os.close(self._held)

    def _opened(self) -> Path:
        if self._own is None:
            self._sweep()
            self._own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._base))
            self._held = os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._own

    def _sweep(self) -> None:
        """Removes what processes left that are no more: they held a lock."""
        for place in self._base.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    facts = os.fstat(held)
                    if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < STALE_S:
                        continue
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(place, ignore_errors=True)
                finally:
                    os.close(held)


def _write(folder: Path, parts: list[str], content: bytes) -> None:
    """Every step from the folder is a name in a folder that is open, and none may be a link."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=here)
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(parts[-1], flags, 0o600, dir_fd=here), "wb") as file:  # noqa: PTH123 (a descriptor)
            file.write(content)
    finally:
        os.close(here)
