"""What the machine did meanwhile, read from /proc: CPU seconds and memory of a process tree, CPU that went to
strangers, a calibration loop, and a description of the machine for the record.

Linux only. Starting and stopping servers belongs to `server`.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

PROC: Final = Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Runs the calling thread on one core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stat(pid: str) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold spaces and brackets."""
    return (PROC / pid / "stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> set[int]:
    """The process, its descendants, and whatever else still is in its session (re-parented children)."""
    parent: dict[int, int] = {}
    found = {root}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(entry.name)
            except OSError:  # gone between the listing and the reading
                continue
            pid, parent[int(entry.name)] = int(entry.name), int(fields[1])
            if int(fields[3]) == root:
                found.add(pid)
    grew = True
    while grew:
        children = {pid for pid, of in parent.items() if of in found} - found
        found |= children
        grew = bool(children)
    return found & (parent.keys() | {root})


def cpu_s(root: int) -> float:
    """User and kernel seconds of the tree so far, those of children that ended and were waited for included."""
    ticks = 0
    for pid in tree(root):
        try:
            ticks += sum(map(int, _stat(str(pid))[11:15]))
        except OSError:
            continue
    return ticks / TICKS_PER_S


def pss_mb(root: int) -> float:
    """Proportional set size of the tree: shared pages counted once, split among those who share them."""
    total_kb = 0
    for pid in tree(root):
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1024


def busy_s() -> float:
    """CPU seconds that all cores together have spent on anything, this machine's interrupts included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def own_cpu_s() -> float:
    """CPU seconds of this very process."""
    return time.process_time()


def _calibration_round() -> None:
    matrix = np.full((160, 160), 1.0001, np.float32)
    for _ in range(4):
        matrix = matrix @ matrix
        matrix *= np.float32(1 / 160)
    total = 0
    for i in range(60_000):
        total += i & 7
    assert total == 210_000  # used, so that no interpreter may drop the loop


def calibration_ms(core: int, rounds: int = 15) -> float:
    """Median milliseconds of a fixed piece of work on the server's core; two cells compare only where it agrees."""
    times = []
    with pinned(core):
        for _ in range(rounds):
            started = time.perf_counter()
            _calibration_round()
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def _command(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe() -> dict[str, object]:
    """The machine, the moment and the code, for whoever reads the figures later."""
    cpu = [line for line in (PROC / "cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))]
    flags = cpu[1].split() if len(cpu) > 1 else []
    memory_kb = int((PROC / "meminfo").read_text().split()[1])
    here = str(Path(__file__).parent)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kb / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _command("git", "-C", here, "rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_command("git", "-C", here, "status", "--porcelain", "--", "../src")),
        "load_average_at_start": os.getloadavg()[0],
    }
