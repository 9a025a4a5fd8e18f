"""What a measurement holds for: this processor, so many cores, these versions of the engines."""

import importlib.metadata
from pathlib import Path
from typing import Final

import msgspec

from farthing.engines.cores import cores_available

LIBRARIES: Final = ("farthing", "onnxruntime", "openvino")
"""Whose versions change speeds or answers."""

CPUINFO: Final = Path("/proc/cpuinfo")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A fingerprint: plans made on one are not believed on another."""

    processor: str
    cores: int
    versions: dict[str, str]
    """Library -> version, of those installed."""

    def differences(self, other: "Machine") -> list[str]:
        """What is different there, in words."""
        told = []
        if self.processor != other.processor:
            told.append(f"the processor was {self.processor}, it is {other.processor}")
        if self.cores != other.cores:
            told.append(f"there were {self.cores} cores, there are {other.cores}")
        for name in LIBRARIES[1:]:
            was, now = self.versions.get(name, "not installed"), other.versions.get(name, "not installed")
            if was != now:
                told.append(f"{name} was {was}, it is {now}")
        return told


def this_machine() -> Machine:
    """Where this runs."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(processor=_cpuinfo("model name") or "unknown", cores=cores_available(), versions=versions)


def cpu_flags() -> frozenset[str]:
    """Instruction sets by Linux's names; empty elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        for line in CPUINFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""
