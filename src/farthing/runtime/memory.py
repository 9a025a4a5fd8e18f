"""How much memory is free for us: the machine's, what a container may still take, less what is promised already."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
UNKNOWN_BYTES: Final = 4 << 30
"""Assumed free where nobody can be asked."""


class Promises:
    """Memory promised to somebody who takes it bit by bit, as KV pools do: the system still calls it free.

    What of a promise has been taken counts twice, which errs on the safe side. Any thread may ask.
    """

    def __init__(self, free: Callable[[], int] | None = None) -> None:
        self._free = free or free_bytes
        self._promised = 0
        self._lock = threading.Lock()

    def take(self, choose: Callable[[int], int]) -> int:
        """Promises as many bytes as `choose` says, given what is free and not promised. Raises what it raises."""
        with self._lock:
            size = choose(max(0, self._free() - self._promised))
            self._promised += size
            return size

    def give(self, size: int) -> None:
        """Takes a promise back."""
        with self._lock:
            self._promised -= size


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that could be allocated now without pushing anything out."""
    found = [value for value in (_available(meminfo), _left_in(cgroup)) if value is not None]
    return min(found, default=UNKNOWN_BYTES)


def _available(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left_in(cgroup: Path) -> int | None:
    """Of the container's limit (cgroup v2). Pages of files it has read count as used, and can be dropped."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((cgroup / "memory.current").read_text())
        facts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
