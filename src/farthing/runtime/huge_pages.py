"""Memory that is walked through again and again is put into huge pages.

An engine reads all its weights and activations for each batch: more pages of 4 KiB than the processor keeps
translations for, and then neither does the interpreter find its own. Linux gives pages of 2 MiB to those who ask, and
neither engines nor the C library ask. So, once the process has stopped growing, what is in use is moved into such
pages where it lies; addresses and contents stay. Measured with EfficientNet behind 16 connections: the engine's time
falls by 0 to 3 %, the event loop's by a tenth (docs/decisions/0001).

Only anonymous memory of this process, and only where most of a huge page is in use already, so that it grows little.
Where the administrator allows huge pages to nobody, or the system has none, nothing happens.
"""

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

SETTINGS: Final = Path("/sys/kernel/mm/transparent_hugepage")
PROC: Final = Path("/proc/self")

MADV_COLLAPSE: Final = 25
"""Linux 6.1: moves what lies in a range into huge pages, now."""

GROWTH_BYTES_MIN: Final = 16 << 20
"""So much more memory than the last time is worth another look: a model, or the activations of a larger batch."""

SETTLED_BYTES: Final = 1 << 20
"""Growth from one look to the next, a second later, that does not count as growth: loading is over."""

IN_USE_MIN: Final = 0.75
"""Part of a huge page that must be in use already. The memory of a thread's stack, or of a heap mostly given back, is
left as it is."""


MOVED_BYTES_MAX: Final = 256 << 20
"""Moved at one time, small ranges first: half a second of one core."""


SPAN_BYTES_MAX: Final = 64 << 30
"""A mapping that spans more is a reservation of which little is used (a device's addresses, a sanitizer's shadow of all
memory): looking through it would take longer than can be won."""

PIECE_BYTES: Final = 1 << 30
"""Looked through at one time: 2 MB of the kernel's table of pages."""


class HugePages:
    """Looks after this process's memory. One a process; `look` belongs to one thread."""

    def __init__(self) -> None:
        self._page_bytes = huge_page_bytes()
        self._before_bytes = 0
        self._done_bytes = 0
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """Begins to move memory, on a thread of its own, if there is much that is new and the process has stopped
        growing. Whether it did. Call it about once a second; a look takes some 10 us."""
        if not self._page_bytes or (self._thread is not None and self._thread.is_alive()):
            return False
        resident_bytes = int((PROC / "statm").read_bytes().split()[1]) * mmap.PAGESIZE
        is_due = is_worth_moving(resident_bytes, self._before_bytes, self._done_bytes)
        self._before_bytes = resident_bytes
        if is_due:
            self._done_bytes = resident_bytes
            self._thread = threading.Thread(target=collapse, args=(self._page_bytes,), name="huge-pages", daemon=True)
            self._thread.start()
        elif resident_bytes < self._done_bytes:  # a model was unloaded: the next one's memory is new
            self._done_bytes = resident_bytes
        return is_due


def is_worth_moving(resident_bytes: int, before_bytes: int, done_bytes: int) -> bool:
    """Whether the process has grown since memory was moved last, and not since the last look."""
    has_settled = abs(resident_bytes - before_bytes) <= SETTLED_BYTES
    return has_settled and resident_bytes - done_bytes >= GROWTH_BYTES_MIN


def huge_page_bytes() -> int:
    """Bytes of a huge page; 0 where there are none for us."""
    try:
        if "[never]" in (SETTINGS / "enabled").read_text():
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def collapse(page_bytes: int) -> int:
    """Moves what is in use into huge pages; answers how many there are. Takes 1 to 4 ms each; the engines go on."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    moved = 0
    left = MOVED_BYTES_MAX
    for start, size in sorted(_worthwhile(page_bytes), key=lambda found: found[1]):
        left -= size
        if left < 0:
            break
        # One call for all pages in a row, for each first waits for all cores (`lru_add_drain_all`).
        if not madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_COLLAPSE):
            moved += size // page_bytes
        elif ctypes.get_errno() == errno.ENOMEM:  # no such page is free; other errors concern a part of this range
            break
    return moved


def _worthwhile(page_bytes: int) -> Iterator[tuple[int, int]]:
    """Where huge pages would lie that are mostly in use: address and bytes of those in a row."""
    small = page_bytes // mmap.PAGESIZE
    with (PROC / "pagemap").open("rb", buffering=0) as pagemap:
        for start, end in _pieces(_anonymous(page_bytes)):
            entries = os.pread(pagemap.fileno(), (end - start) // mmap.PAGESIZE * 8, start // mmap.PAGESIZE * 8)
            is_present = np.frombuffer(entries, np.uint64)[: len(entries) // 8 // small * small] >> np.uint64(63)
            is_used = is_present.reshape(-1, small).sum(axis=1) >= IN_USE_MIN * small
            edges = np.flatnonzero(np.diff(is_used, prepend=False, append=False))
            for first, last in edges.reshape(-1, 2).tolist():
                yield start + first * page_bytes, (last - first) * page_bytes


def _pieces(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same memory in spans that can be looked through, without what is too large for that."""
    for start, end in spans:
        if end - start <= SPAN_BYTES_MAX:
            for piece in range(start, end, PIECE_BYTES):
                yield piece, min(piece + PIECE_BYTES, end)


def _anonymous(page_bytes: int) -> Iterator[tuple[int, int]]:
    """Writable private memory that no file stands behind and of which something is in small pages, cut to huge ones."""
    start = end = resident_kb = 0
    for line in (PROC / "smaps").read_text().splitlines():
        word, *words = line.split(maxsplit=5)
        if word == "Rss:":
            resident_kb = int(words[0])
        elif word == "AnonHugePages:":
            if start < end and resident_kb - int(words[0]) >= IN_USE_MIN * (page_bytes >> 10):
                yield start, end
        elif not word.endswith(":"):  # a mapping begins: span, rights, offset, device, inode, perhaps a name
            low, high = (int(text, 16) for text in word.split("-"))
            rights, inode, name = words[0], words[3], "".join(words[4:])
            is_ours = rights.startswith("rw") and rights[3] == "p" and inode == "0" and name != "[stack]"
            start, end = -(-low // page_bytes) * page_bytes, high // page_bytes * page_bytes if is_ours else 0
