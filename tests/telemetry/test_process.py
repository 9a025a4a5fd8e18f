import os
import sys
import time
from pathlib import Path

import pytest

from farthing.telemetry.process import ProcessReader


def fake_proc(root: Path, *, busy: int, idle: int) -> Path:
    (root / "self" / "fd").mkdir(parents=True, exist_ok=True)
    (root / "self" / "fd" / "0").touch()
    (root / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1\nbtime 1000\n")
    (root / "meminfo").write_text(
        "MemTotal:     1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\nHugePages_Total: 0\n"
    )
    (root / "self" / "statm").write_text("100 25 3 4 5 6 7\n")
    ticks = os.sysconf("SC_CLK_TCK")
    (root / "self" / "stat").write_text(f"7 (a) (b) c) S {' '.join(['1'] * 18)} {5 * ticks} 1 1\n")
    return root


def test_values_come_from_proc(tmp_path: Path) -> None:
    reader = ProcessReader(fake_proc(tmp_path, busy=100, idle=100))
    process, machine = reader.process(), reader.machine()
    assert process.resident_bytes == 25 * os.sysconf("SC_PAGE_SIZE")
    assert process.start_time_s == 1005
    assert process.open_fds == 1
    assert (machine.memory_total_bytes, machine.memory_used_bytes) == (1000 * 1024, 600 * 1024)


def test_cpu_utilization_is_the_busy_share_since_the_last_look(tmp_path: Path) -> None:
    reader = ProcessReader(fake_proc(tmp_path, busy=100, idle=100))
    assert reader.machine().cpu_utilization is None
    fake_proc(tmp_path, busy=175, idle=125)
    assert reader.machine().cpu_utilization == 0.75
    assert reader.machine().cpu_utilization == 0.75, "no tick has passed: the answer stands"
    fake_proc(tmp_path, busy=175, idle=225)
    assert reader.machine().cpu_utilization == 0.0


def test_where_there_is_no_proc_values_are_left_out_rather_than_zero(tmp_path: Path) -> None:
    reader = ProcessReader(tmp_path)
    process, machine = reader.process(), reader.machine()
    assert machine == (None, None, None)
    assert (process.resident_bytes, process.open_fds) == (None, None)
    assert process.cpu_seconds > 0
    assert len(process.garbage) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the real /proc")
def test_this_process_is_plausible() -> None:
    process = ProcessReader().process()
    assert process.resident_bytes is not None
    assert process.resident_bytes > 5_000_000
    assert time.time() - 24 * 3600 < process.start_time_s <= time.time() + 1
    assert process.open_fds is not None
    assert process.max_fds is None or process.open_fds <= process.max_fds
