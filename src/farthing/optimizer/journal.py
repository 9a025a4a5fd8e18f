"""What a search has found out so far, on disk, so that one that was stopped goes on where it was.

    ~/.cache/farthing/searches/KEY/
        journal.jsonl      a line for each thing found out, written when it was
        ...                files made on the way

The key is a digest of all that the findings depend on: model, data, target, machine, versions. A search that ends takes
its folder away; one that is stopped or killed leaves it, and the next search of the same key finds it. A disk that
refuses costs the journal, never the search.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from farthing.optimizer.agreement import Drop, OutputError
from farthing.optimizer.plan import Tried
from farthing.optimizer.race import Turn
from farthing.repository.samples import cache_folder

log: Final = logging.getLogger(__name__)

FORMAT: Final = 1
KEPT_MAX: Final = 8
KEPT_DAYS: Final = 14
"""Searches that were never finished; the oldest go."""

LINE_BYTES_MAX: Final = 1 << 20


class Right(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A recipe, by its name, is right."""

    recipe: str
    drop: Drop | None
    errors: tuple[OutputError, ...]


class Wrong(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A recipe is out."""

    tried: Tried


class Parts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parts of the network, those that a precision hurts most first, each as names of nodes or ids of layers."""

    of: str = "int8"
    """The precision."""
    order: tuple[tuple[str, ...], ...]


class Took(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A setting, by its name, has had its turn in a round."""

    setting: str
    round: int
    turn: Turn


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A setting could not be timed."""

    tried: Tried


class Round(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A round is over, and who goes on."""

    number: int
    alive: tuple[str, ...]


Finding = Right | Wrong | Parts | Took | Failed | Round


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    spent_s: float
    finding: Finding


def key_of(*facts: object) -> str:
    """A name for a search that depends on these, and nothing else."""
    return hashlib.sha256(msgspec.json.encode((FORMAT, *facts), order="sorted")).hexdigest()[:32]


class Journal:
    """One search's findings and files. One owner; `close` or `discard` ends it."""

    def __init__(self, folder: Path, file: IO[bytes] | None) -> None:
        self.folder = folder
        """For files made on the way."""
        self._file = file
        self.entries: list[Entry] = []
        """What an earlier part of the same search has found."""

    @property
    def spent_s(self) -> float:
        """By the earlier part."""
        return self.entries[-1].spent_s if self.entries else 0.0

    def found(self, kind: type[Any]) -> list[Any]:
        """The findings of one kind, in order."""
        return [entry.finding for entry in self.entries if isinstance(entry.finding, kind)]

    def note(self, finding: Finding, spent_s: float) -> None:
        """Writes one down, at once."""
        if self._file is None:
            return
        try:
            self._file.write(msgspec.json.encode(Entry(spent_s=spent_s, finding=finding)) + b"\n")
            self._file.flush()
        except OSError as error:
            log.warning("the search cannot be resumed: its journal cannot be written: %s", error)
            self._let_go()

    def close(self) -> None:
        """Leaves it for a later search to go on."""
        is_kept = self._file is not None
        self._let_go()
        if not is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """It is not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what could not be written is tried once more here
                file.close()


def open_journal(key: str, *, is_fresh: bool = False) -> Journal:
    """The journal of this search; empty if there was none, if `is_fresh`, or if the cache cannot be written.

    While another process has it open, there is one without resuming.
    """
    folder = cache_folder() / "searches" / key
    try:
        _forget_old(folder.parent, key)
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "journal.jsonl").open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
    except OSError as error:
        log.warning("the search cannot be resumed: %s: %s", folder, error)
        return Journal(Path(tempfile.mkdtemp(prefix="farthing-optimize-")), None)
    if is_fresh:
        _empty(folder, file)
    journal = Journal(folder, file)
    journal.entries = _read(file)
    return journal


def _read(file: IO[bytes]) -> list[Entry]:
    """Whole lines up to the first that is torn, where the file is cut."""
    entries, end = [], 0
    file.seek(0)
    while line := file.readline(LINE_BYTES_MAX):
        try:
            if not line.endswith(b"\n"):
                break
            entries.append(msgspec.json.decode(line, type=Entry))
        except msgspec.MsgspecError:
            break
        end += len(line)
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return entries


def _empty(folder: Path, file: IO[bytes]) -> None:
    file.truncate(0)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "journal.jsonl":
            path.unlink(missing_ok=True)


def _forget_old(searches: Path, key: str) -> None:
    if not searches.is_dir():
        return
    known = [(path.stat().st_mtime, path) for path in searches.iterdir() if path.name != key]
    known.sort(reverse=True)
    for place, (changed, path) in enumerate(known):
        is_old = place >= KEPT_MAX - 1 or time.time() - changed > KEPT_DAYS * 86_400
        if is_old and not _is_open(path / "journal.jsonl"):
            shutil.rmtree(path, ignore_errors=True)


def _is_open(file: Path) -> bool:
    """Whether another process goes on with it."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
