"""What is in use is moved into huge pages where it lies, and stays what it was."""

import mmap
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from farthing.runtime import huge_pages
from farthing.runtime.huge_pages import (
    GROWTH_BYTES_MIN,
    PIECE_BYTES,
    SETTLED_BYTES,
    SPAN_BYTES_MAX,
    HugePages,
    huge_page_bytes,
    is_worth_moving,
)

MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
NO_RESERVE = 0x4000  # linux/mman.h; Python has no name for it before 3.13

SMALL_PROCESS = """
import mmap
import sys
from pathlib import Path

import numpy as np

from farthing.runtime.huge_pages import HugePages, huge_page_bytes

PAGE_BYTES, MIB = huge_page_bytes(), 1 << 20


def mapped(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.uint8)


def in_huge_pages():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def resident(array):
    first, page = array.__array_interface__["data"][0] // mmap.PAGESIZE, mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        return int((np.frombuffer(pagemap.read(8 * (array.size // page)), np.uint64) >> np.uint64(63)).sum()) * page


full, sparse = mapped(32 * MIB), mapped(32 * MIB)
full[:] = np.random.default_rng(1).integers(0, 256, full.size, np.uint8)
sparse[:: PAGE_BYTES // 4] = 1
before = full.copy()
if resident(sparse) > MIB:
    sys.exit("the system gives huge pages unasked")
pages, huge_before = HugePages(), in_huge_pages()
assert not pages.look(), "for all it knows the process still grows"
assert pages.look()
pages._thread.join()
assert not pages.look(), "nothing is new"
print((in_huge_pages() - huge_before) // MIB, resident(sparse) // MIB)
assert np.array_equal(full, before)
"""
"""On its own, for a process in which many tests ran holds more than is moved at one time."""


def test_reservations_are_looked_through_in_pieces_or_not_at_all() -> None:
    page = huge_page_bytes() or 2 * MIB
    # Of different kinds, or the kernel would make one mapping of neighbours.
    kinds = ((2 * PIECE_BYTES, PRIVATE), (8 * SPAN_BYTES_MAX, PRIVATE | NO_RESERVE))
    try:
        reserved = [mmap.mmap(-1, size, flags=flags) for size, flags in kinds]
    except OSError:
        pytest.skip("this system promises no memory that it does not have")
    places = []
    for memory in reserved:
        view = np.frombuffer(memory, np.uint8)
        first = -view.__array_interface__["data"][0] % page
        view[first : first + 4 * page] = 1
        places.append(view.__array_interface__["data"][0] + first)
    tracemalloc.start()
    try:
        spans = list(huge_pages._pieces(huge_pages._anonymous(page)))
        found = list(huge_pages._worthwhile(page))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(end - start <= PIECE_BYTES for start, end in spans)
    assert peak < 128 * MIB  # a gigabyte, were it looked through at once
    assert not any(start <= places[1] < start + size for start, size in found)
    always = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not always.exists() or "[always]" not in always.read_text():  # else it is in huge pages already
        assert any(start <= places[0] < start + size for start, size in found)


def test_a_process_that_grows_is_left_alone_until_it_has_settled() -> None:
    grown = GROWTH_BYTES_MIN
    assert not is_worth_moving(grown, 0, 0), "still loading"
    assert is_worth_moving(grown, grown - SETTLED_BYTES, 0)
    assert not is_worth_moving(grown, grown, grown), "nothing new"
    assert not is_worth_moving(2 * grown - 1, 2 * grown - 1, grown), "little new"


@pytest.mark.skipif(not huge_pages.huge_page_bytes(), reason="no huge pages are to be had here")
def test_memory_in_use_is_moved_once_and_holds_what_it_held_and_what_is_hardly_used_is_left() -> None:
    ran = subprocess.run([sys.executable, "-c", SMALL_PROCESS], capture_output=True, text=True, check=False)
    if "unasked" in ran.stderr:
        pytest.skip(ran.stderr)
    assert ran.returncode == 0, ran.stderr
    full_mib, sparse_mib = map(int, ran.stdout.split())
    if not full_mib:
        pytest.skip("this kernel cannot move memory (before Linux 6.1), or has no huge page left")
    assert full_mib >= 16
    assert sparse_mib == 0


def test_where_nobody_may_have_huge_pages_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    assert huge_pages.huge_page_bytes() == 0
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    assert huge_pages.huge_page_bytes() == 2 * MIB
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert huge_pages.huge_page_bytes() == 0
    assert not HugePages().look()
