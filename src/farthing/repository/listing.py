"""What files a model's folder holds, and a fingerprint of them.

One bounded walk answers all later questions. A link that leads out of the repository is refused here, so whoever
takes a path out of a listing need not ask again.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from farthing.types.errors import LoadFailed

FILES_MAX: Final = 10_000
"""Files one model may have: a Python model with its libraries has hundreds."""

DEPTH_MAX: Final = 16
"""Folders inside folders, also what ends a circle of links."""

_NOT_MODEL: Final = {"__pycache__"}
"""Written while a model is in use; were it looked at, running a model would change its fingerprint."""


_PACKED: Final = ".farthing-packed"
"""Weights of a language model as they are used, kept beside it; may be deleted at any time."""

PLAN_SUFFIX: Final = ".farthing-plan"
"""Ends the name of the folder beside a model file that says how it is best run; may be deleted at any time."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Paths relative to the folder, with `/` between parts; hidden ones left out."""

    folder: Path
    files: Mapping[str, os.stat_result]
    folders: frozenset[str]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.files.items())

    def files_in(self, place: str) -> list[str]:
        """Names of the files directly in a folder of the listing; "" is the folder itself."""
        prefix = f"{place}/" if place else ""
        names = (path[len(prefix) :] for path in self.files if path.startswith(prefix))
        return sorted(name for name in names if "/" not in name)


def list_folder(folder: Path, root: Path) -> Listing:
    """Everything in `folder`; links may lead anywhere in `root`. Raises `LoadFailed` or `OSError`."""
    files: dict[str, os.stat_result] = {}
    folders: set[str] = set()
    pending = [("", os.fspath(folder), 1)]
    while pending:
        place, path, depth = pending.pop()
        if depth > DEPTH_MAX:
            raise LoadFailed(f"{path}: more than {DEPTH_MAX} folders deep")
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _NOT_MODEL or is_beside(entry.name):
                    continue
                if entry.is_symlink():
                    check_inside(Path(entry.path), root)
                if entry.is_dir():
                    folders.add(place + entry.name)
                    pending.append((f"{place}{entry.name}/", entry.path, depth + 1))
                elif stat.S_ISREG((facts := entry.stat()).st_mode):
                    files[place + entry.name] = facts
                if len(files) + len(folders) > FILES_MAX:
                    raise LoadFailed(f"{folder}: more than {FILES_MAX} files; is this one model?")
    return Listing(folder, files, frozenset(folders))


def is_beside(name: str) -> bool:
    """Whether a file or folder of this name is something farthing keeps beside a model, not part of one."""
    return _PACKED in name or name.endswith(PLAN_SUFFIX)


def check_inside(path: Path, root: Path) -> None:
    """Returns if `path`, links followed, lies in `root` (already resolved). Raises `LoadFailed`."""
    if not real_path(path).is_relative_to(root):
        raise LoadFailed(
            f"{path}: a link that leads out of the repository {root}",
            hint="copy the file into the repository, or serve the folder that holds both",
        )


def real_path(path: Path) -> Path:
    """Where it really is. Unlike `Path.resolve`, no circle of links makes it raise."""
    return Path(os.path.realpath(path))


def fingerprint(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """A digest of names, sizes, times and identities: equal unless a file was written, replaced, added or taken."""
    digest = blake2b(digest_size=16)
    for name, facts in sorted(files, key=lambda file: file[0]):
        digest.update(
            f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}\n".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()
