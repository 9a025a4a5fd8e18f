"""How much memory is free: the machine's word, and the container's."""

from pathlib import Path

from farthing.runtime.memory import UNKNOWN_BYTES, Promises, free_bytes

NOWHERE = Path("/nonexistent")


def test_the_machine_is_asked(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    assert free_bytes(meminfo, NOWHERE) == 64 << 10
    assert free_bytes() > 1 << 20


def test_a_container_may_have_less_and_files_it_read_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 500\n")
    assert free_bytes(NOWHERE, tmp_path) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(NOWHERE, tmp_path) == UNKNOWN_BYTES


def test_what_cannot_be_read_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: much\n")
    assert free_bytes(tmp_path / "meminfo", NOWHERE) == UNKNOWN_BYTES


def test_what_is_promised_is_not_promised_again() -> None:
    memory = Promises(lambda: 1000)
    assert memory.take(lambda free: free // 2) == 500
    assert memory.take(lambda free: free // 2) == 250
    memory.give(500)
    assert memory.take(lambda free: free) == 750
    assert memory.take(lambda free: free) == 0
