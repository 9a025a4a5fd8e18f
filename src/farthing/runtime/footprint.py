"""How much memory processes hold: this one, and those of Python models.

Read from `/proc`; elsewhere the answers are 0, and who asks falls back to the size of files.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Numbers of glibc's `mallopt`."""

OWN_MAPPING_BYTES: Final = 256 << 10
"""While a model is loaded, allocations of this size have a mapping of their own: weights do, and go back to the system
when the model is closed, as do copies made on the way, which else were counted as the model's."""

USUAL_MAPPING_BYTES: Final = 32 << 20
"""Otherwise, where glibc's own adjustment ends up in any process that frees large blocks."""


def own_bytes() -> int:
    """Resident bytes of this process, once the allocator has given back what it only keeps."""
    give_back()
    try:
        return int((_PROC / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Lets the C library return free memory to the system; some milliseconds."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def own_mappings() -> Iterator[None]:
    """Within, the large blocks that anyone allocates have mappings of their own."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * USUAL_MAPPING_BYTES)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, USUAL_MAPPING_BYTES)


def process_bytes(pids: Iterable[int | None]) -> int:
    """What these processes hold, pages they share counted in parts; one that has ended holds nothing."""
    return sum(_process_bytes(pid) for pid in pids if pid is not None)


def _process_bytes(pid: int) -> int:
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
