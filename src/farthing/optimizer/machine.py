"""What a measurement holds for: this processor, so many cores, these versions of the engines."""

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from farthing.engines.cores import cores_available

LIBRARIES: Final = ("farthing", "onnxruntime", "openvino", "xgboost", "llvmlite")
"""Whose versions change speeds or answers."""

ENGINES: Final = ("onnxruntime", "openvino")
"""Those that every plan has been compared with."""

CPUINFO: Final = Path("/proc/cpuinfo")
BYTE_PRODUCTS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets that multiply bytes and add up in 32 bits."""
MEMINFO: Final = Path("/proc/meminfo")
CGROUPS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of the control group this process is in, version 2 and 1."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A fingerprint: plans made on one are not believed on another."""

    processor: str
    cores: int
    versions: dict[str, str]
    """Library -> version, of those installed."""

    def differences(self, other: "Machine", libraries: Sequence[str] = ENGINES) -> list[str]:
        """What is different there, in words, of the machine and of these libraries."""
        told = []
        if self.processor != other.processor:
            told.append(f"the processor was {self.processor}, it is {other.processor}")
        if self.cores != other.cores:
            told.append(f"there were {self.cores} cores, there are {other.cores}")
        for name in libraries:
            was, now = self.versions.get(name, "not installed"), other.versions.get(name, "not installed")
            if was != now:
                told.append(f"{name} was {was}, it is {now}")
        return told


def this_machine() -> Machine:
    """Where this runs."""
    versions = {}
    for name in LIBRARIES:
        for package in (name, f"{name}-cpu"):
            try:
                versions[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return Machine(processor=_cpuinfo("model name") or "unknown", cores=cores_available(), versions=versions)


def memory_resident() -> int:
    """Bytes of memory this process holds now; 0 where Linux does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_available() -> int:
    """Bytes this process may still take: of the machine, or of its control group where that is less."""
    found = [int(free.split()[0]) * 1024] if (free := _line(MEMINFO, "MemAvailable")) else []
    for limit, used in CGROUPS:
        try:
            found.append(int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found, default=1 << 62))


def cpu_flags() -> frozenset[str]:
    """Instruction sets by Linux's names; empty elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def saturates_bytes() -> bool:
    """Whether engines add products of bytes up in 16 bits here, two at a time (`pmaddubsw`), where weights of 8 bits
    are cut off: on x86 without dot products of bytes."""
    flags = cpu_flags()
    return "ssse3" in flags and not flags & BYTE_PRODUCTS


def _cpuinfo(key: str) -> str:
    return _line(CPUINFO, key)


def _line(file: Path, key: str) -> str:
    """What stands behind `KEY:` in one of Linux's lists; empty if nothing does."""
    try:
        for line in file.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""
