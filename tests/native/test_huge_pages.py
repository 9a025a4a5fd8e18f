"""Memory that is moved into huge pages while others read it: the same bytes at the same addresses."""

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

_native = pytest.importorskip("farthing._native", reason="the native core is not built")

HUGE_BYTES = 2 << 20


def mapped(path: Path, size: int) -> NDArray[np.uint8]:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def file_bytes(path: Path) -> int:
    """Of this process's address space that are a mapping of the file."""
    spans = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not Path("/proc/self/maps").exists(),
    reason="the system has no huge pages to ask for",
)
def test_what_is_read_meanwhile_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    size = 35 * HUGE_BYTES + 12345  # more than is moved at one time, and an end that is not
    data = mapped(path, size)
    expected = _native.checksum(data, 1)
    is_over = threading.Event()
    wrong = []

    def read() -> None:
        while not is_over.is_set():
            if _native.checksum(data, 1) != expected:
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    moved = _native.into_huge_pages(data)
    is_over.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert _native.checksum(data, 2) == expected
    assert size - 2 * HUGE_BYTES < moved <= size
    assert moved % HUGE_BYTES == 0
    assert file_bytes(path) < 2 * HUGE_BYTES + mmap.PAGESIZE, "only the ends are a mapping still"
    path.unlink()  # and it does not matter what becomes of the file
    assert _native.into_huge_pages(data) == moved, "again: nothing changes"
    assert _native.checksum(data, 2) == expected
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_less_than_a_huge_page_stays_where_it_is() -> None:
    data = np.arange(1000, dtype=np.uint8)
    assert _native.into_huge_pages(data) == 0
    assert _native.into_huge_pages(data[:0]) == 0
    assert (data == np.arange(1000, dtype=np.uint8)).all()
