"""What is in use is moved into huge pages where it lies, and stays what it was."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from farthing.runtime import huge_pages
from farthing.runtime.huge_pages import GROWTH_BYTES_MIN, SETTLED_BYTES, HugePages, collapse, is_worth_moving

PAGE_BYTES = huge_pages.huge_page_bytes()
MIB = 1 << 20

needs_huge_pages = pytest.mark.skipif(not PAGE_BYTES, reason="no huge pages are to be had here")


def in_huge_pages(address: int) -> int:
    """Bytes of the mapping at this address that lie in huge pages."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split(maxsplit=1)[0]
        if "-" in word:
            low, high = (int(text, 16) for text in word.split("-"))
            is_there = low <= address < high
        elif is_there and word == "AnonHugePages:":
            return int(line.split()[1]) << 10
    raise AssertionError("no such mapping")


def mapped(size: int) -> tuple[mmap.mmap, int]:
    """Memory of its own, which nobody asked huge pages for; and where the first whole one would begin."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])
    return memory, -(-address // PAGE_BYTES) * PAGE_BYTES


def test_a_process_that_grows_is_left_alone_until_it_has_settled() -> None:
    grown = GROWTH_BYTES_MIN
    assert not is_worth_moving(grown, 0, 0), "still loading"
    assert is_worth_moving(grown, grown - SETTLED_BYTES, 0)
    assert not is_worth_moving(grown, grown, grown), "nothing new"
    assert not is_worth_moving(2 * grown - 1, 2 * grown - 1, grown), "little new"


@needs_huge_pages
def test_memory_in_use_is_moved_and_holds_what_it_held() -> None:
    memory, first = mapped(32 * MIB)
    values = np.frombuffer(memory, np.uint8)
    values[:] = np.random.default_rng(1).integers(0, 256, values.size, np.uint8)
    before = values.copy()
    if in_huge_pages(first):
        pytest.skip("here the system gives huge pages unasked")
    if not collapse(PAGE_BYTES):
        pytest.skip("this kernel cannot move memory (before Linux 6.1), or has no huge page left")
    assert in_huge_pages(first) >= 16 * MIB
    assert np.array_equal(values, before)


@needs_huge_pages
def test_memory_that_is_hardly_used_is_left_as_it_is() -> None:
    memory, first = mapped(32 * MIB)
    for at in range(0, len(memory), PAGE_BYTES // 4):
        memory[at] = 1
    if in_huge_pages(first):
        pytest.skip("here the system gives huge pages unasked")
    collapse(PAGE_BYTES)
    assert in_huge_pages(first) == 0


@needs_huge_pages
def test_it_begins_by_itself_once_there_is_much_new_memory_and_not_again() -> None:
    pages = HugePages()
    memory, _ = mapped(2 * GROWTH_BYTES_MIN)
    memory[:] = b"\1" * len(memory)
    assert not pages.look(), "for all it knows the process still grows"
    assert pages.look()
    assert pages._thread is not None
    pages._thread.join()
    assert not pages.look()


def test_where_nobody_may_have_huge_pages_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    assert huge_pages.huge_page_bytes() == 0
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    assert huge_pages.huge_page_bytes() == 0
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_pages.huge_page_bytes() == 2 * MIB
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert not HugePages().look()
