"""What a server on this machine spends: CPU time and memory of the process that listens on a port, and its children.

Read from /proc; None where there is no /proc, the server is elsewhere, or its process is another user's.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A process and its children, by id."""

    pid: int

    def cpu_s(self) -> float:
        """User and system time of all of them so far; of children that ended, too."""
        ticks = 0
        for pid in self._tree():
            fields = _stat(pid)
            ticks += sum(int(field) for field in fields[11:15]) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Proportional set size of all of them: memory they share is counted once."""
        total = 0
        for pid in self._tree():
            try:
                lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def _tree(self) -> list[int]:
        parents = {int(entry.name): _parent(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdecimal()}
        found = [self.pid]
        for pid in found:  # grows while it is walked
            found += [child for child, parent in parents.items() if parent == pid]
        return found


def own_process() -> ServerProcess | None:
    """This process, where there is a /proc to look at."""
    return ServerProcess(pid=os.getpid()) if (_PROC / "self" / "stat").exists() else None


def find_server(address: str, port: int) -> ServerProcess | None:
    """The process that listens there, if it is on this machine and may be looked at."""
    if not ipaddress.ip_address(address).is_loopback or not (_PROC / "net" / "tcp").exists():
        return None
    inodes = _listening(port)
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and inodes & _sockets(entry):
            pid = int(entry.name)
            # Forked workers hold their parent's listening socket: the oldest one is meant.
            while (parent := _parent(pid)) > 1 and inodes & _sockets(_PROC / str(parent)):
                pid = parent
            return ServerProcess(pid=pid)
    return None


def _listening(port: int) -> set[str]:
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _sockets(process: Path) -> set[str]:
    found = set()
    try:
        for descriptor in (process / "fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:  # gone, or another user's
        return found
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name, which may hold anything; the first one is the state."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0
