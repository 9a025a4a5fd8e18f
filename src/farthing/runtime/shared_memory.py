"""System shared memory that clients share with the server: regions by name, read from and written to.

A region is a part of a POSIX shared-memory object, a file in /dev/shm. It is read and written by `pread` and `pwrite`
and never mapped: a client that shortens the file while a mapping of it is read would end the whole server (SIGBUS);
this way it gets an error, for the price of one copy.

Whoever may register a region can have the server open any object in /dev/shm that the server may; so it is closed
unless the operator has opened model control.
"""

import os
import re
import stat
import weakref
from typing import Final

import msgspec

from farthing.types.errors import AlreadyExists, InvalidInput, NotFound, TooLarge, Unsupported
from farthing.types.requests import RegionPart

FOLDER: Final = "/dev/shm"  # noqa: S108 - shared memory is what it is for
REGIONS_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 256
_KEY: Final = re.compile(r"/?([A-Za-z0-9][A-Za-z0-9._-]{0,253})")
"""A name directly in /dev/shm: no folders, nothing hidden."""
RESERVED: Final = "farthing_"
"""Names of our own objects begin so."""


class RegionStatus(msgspec.Struct, frozen=True):
    """A registered region, as clients see it."""

    name: str
    key: str
    offset: int
    byte_size: int


class SharedMemory:
    """The regions of one server."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        """Whether clients may register regions."""
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Makes a region known. Raises `Unsupported` where it is closed, `AlreadyExists`, `InvalidInput`."""
        if not self.is_open:
            raise Unsupported("Client shared memory is disabled", hint="start with --model-control-mode explicit")
        if not name or len(name) > NAME_CHARACTERS_MAX:
            raise InvalidInput(f"a region's name has 1 to {NAME_CHARACTERS_MAX} characters")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if len(self._regions) >= REGIONS_MAX:
            raise TooLarge(f"{REGIONS_MAX} regions are registered, the limit", hint="unregister some")
        self._regions[name] = _Region(RegionStatus(name, key, offset, byte_size))

    def unregister(self, name: str = "") -> None:
        """Forgets a region, or all of them; one that is not there is no error. Requests under way that still want to
        write to it are told that it is gone."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[RegionStatus]:
        """One region, or all. Raises `NotFound`."""
        if name:
            return [self._find(name, "status").status]
        return [region.status for region in self._regions.values()]

    def read(self, part: RegionPart, where: str) -> bytes:
        """A copy of what lies there. Raises `NotFound` or `InvalidInput`."""
        return self._find(part.region, where).read(part, where)

    def write(self, part: RegionPart, data: bytes, where: str) -> None:
        """Puts bytes there. Raises likewise, also when they do not fit."""
        self._find(part.region, where).write(part, data, where)

    def _find(self, name: str, where: str) -> "_Region":
        region = self._regions.get(name)
        if region is None:
            raise NotFound(
                f"{where}: Unable to find shared memory region: '{name[:NAME_CHARACTERS_MAX]}'",
                hint="register it first",
            )
        return region


class _Region:
    """An open region; closed when nobody has it any more."""

    def __init__(self, status: RegionStatus) -> None:
        self.status = status
        key = _KEY.fullmatch(status.key)
        if key is None or key[1].startswith(RESERVED):
            raise InvalidInput(
                f"'{status.key[:80]}' is no key of shared memory here", hint="a name in /dev/shm, such as /tensors"
            )
        try:
            # Not through a link, which could lead out of the folder.
            self._file = os.open(f"{FOLDER}/{key[1]}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidInput(
                f"Unable to open shared memory region: '{status.key}': {error.strerror}", hint="create it first"
            ) from None
        self._close = weakref.finalize(self, os.close, self._file)
        about = os.fstat(self._file)
        if not stat.S_ISREG(about.st_mode):
            self._close()
            raise InvalidInput(f"'{status.key}' is no shared memory")
        if status.byte_size < 1 or status.offset + status.byte_size > about.st_size:
            self._close()
            raise InvalidInput(
                f"region '{status.name}' is bytes {status.offset} to {status.offset + status.byte_size} of "
                f"'{status.key}', which has {about.st_size}"
            )

    def read(self, part: RegionPart, where: str) -> bytes:
        """What lies there."""
        self._check(part, where)
        found = bytearray()
        while len(found) < part.byte_size:
            more = os.pread(self._file, part.byte_size - len(found), self.status.offset + part.offset + len(found))
            if not more:
                raise InvalidInput(f"{where}: '{self.status.key}' has become shorter than region '{self.status.name}'")
            if not found and len(more) == part.byte_size:
                return more
            found += more
        return bytes(found)

    def write(self, part: RegionPart, data: bytes, where: str) -> None:
        """Puts bytes there. An object that has become shorter grows again, as files do."""
        self._check(part, where)
        if len(data) > part.byte_size:
            raise InvalidInput(
                f"{where}: {len(data)} bytes do not fit the {part.byte_size} given to it in shared memory",
                hint="give it a larger `shared_memory_byte_size`",
            )
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self.status.offset + part.offset + written)
        except OSError as error:  # /dev/shm is full
            raise InvalidInput(f"{where}: '{self.status.key}' cannot be written: {error.strerror}") from None

    def _check(self, part: RegionPart, where: str) -> None:
        if part.offset + part.byte_size > self.status.byte_size:
            raise InvalidInput(
                f"{where}: bytes {part.offset} to {part.offset + part.byte_size} are outside of region "
                f"'{self.status.name}', which has {self.status.byte_size}"
            )
