"""What the kernel and the interpreter say about this process and its machine.

Read from /proc where there is one; a value that cannot be had is None and its metric is left out, never zero.
Nothing here keeps a thread or a timer: reading happens when somebody asks.
"""

import gc
import os
import platform
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")


class GarbageGeneration(NamedTuple):
    """One generation of the cyclic garbage collector since the process began."""

    collections: int
    collected: int
    uncollectable: int


class ProcessSample(NamedTuple):
    """This process now."""

    cpu_seconds: float
    resident_bytes: int | None
    start_time_s: float
    open_fds: int | None
    max_fds: int | None
    garbage: tuple[GarbageGeneration, ...]


class MachineSample(NamedTuple):
    """This machine now."""

    cpu_utilization: float | None
    """Share of all cores' time that was not idle since the reader last looked, 0 to 1."""
    memory_total_bytes: int | None
    memory_used_bytes: int | None


class ProcessReader:
    """Reads this process and its machine; any thread may ask."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._start_time_s = self._read_start_time()
        self._cpu_ticks = self._read_cpu_ticks()
        self._cpu_utilization: float | None = None
        self._lock = Lock()

    def process(self) -> ProcessSample:
        return ProcessSample(
            cpu_seconds=time.process_time(),
            resident_bytes=self._resident_bytes(),
            start_time_s=self._start_time_s,
            open_fds=self._open_fds(),
            max_fds=_max_fds(),
            garbage=tuple(
                GarbageGeneration(one["collections"], one["collected"], one["uncollectable"]) for one in gc.get_stats()
            ),
        )

    def machine(self) -> MachineSample:
        memory = self._meminfo()
        total, available = memory.get("MemTotal"), memory.get("MemAvailable")
        return MachineSample(
            cpu_utilization=self._utilization(),
            memory_total_bytes=total,
            memory_used_bytes=None if total is None or available is None else max(0, total - available),
        )

    def _utilization(self) -> float | None:
        with self._lock:
            now = self._read_cpu_ticks()
            if now is None or self._cpu_ticks is None:
                return None
            busy, total = now[0] - self._cpu_ticks[0], now[1] - self._cpu_ticks[1]
            # The kernel counts in hundredths of a second: two scrapes within one tick share the last answer.
            if total > 0:
                self._cpu_ticks = now
                self._cpu_utilization = min(1.0, max(0.0, busy / total))
            return self._cpu_utilization

    def _read_cpu_ticks(self) -> tuple[int, int] | None:
        """(busy, all) ticks of all cores together since boot; None where the kernel does not say."""
        line = _read(self._proc / "stat").partition("\n")[0].split()
        if len(line) < 5 or line[0] != "cpu":
            return None
        # user nice system idle iowait irq softirq steal; guest time is inside user already.
        ticks = [int(field) for field in line[1:9]]
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        return sum(ticks) - idle, sum(ticks)

    def _meminfo(self) -> dict[str, int]:
        sizes = {}
        for line in _read(self._proc / "meminfo").splitlines():
            name, _, rest = line.partition(":")
            fields = rest.split()
            if len(fields) == 2 and fields[1] == "kB":
                sizes[name] = int(fields[0]) * 1024
        return sizes

    def _resident_bytes(self) -> int | None:
        fields = _read(self._proc / "self" / "statm").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None

    def _open_fds(self) -> int | None:
        try:
            return len(os.listdir(self._proc / "self" / "fd"))  # noqa: PTH208 (half the cost of iterdir)
        except OSError:
            return None

    def _read_start_time(self) -> float:
        """When this process began, seconds since 1970; without /proc, when we first asked."""
        boot = next(
            (int(line.split()[1]) for line in _read(self._proc / "stat").splitlines() if line.startswith("btime ")),
            None,
        )
        # The command name, in parentheses, may hold spaces and parentheses: count fields from the last one.
        fields = _read(self._proc / "self" / "stat").rpartition(")")[2].split()
        if boot is None or len(fields) < 20:
            return time.time()
        return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def build_labels(version: str) -> tuple[str, ...]:
    """Version, Python version, implementation, system and machine, as `farthing_build_info` labels them."""
    return (version, platform.python_version(), sys.implementation.name, sys.platform, platform.machine())


def _max_fds() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
