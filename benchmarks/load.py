"""The load: wrk in a closed loop on its own core, one fixed request over N connections.

What the server spent meanwhile is read by `machine`; this reports what a client sees, and how busy wrk itself was.
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models import CACHE
from wire import Request

SCRIPT: Final = Path(__file__).with_name("load.lua")
TIMEOUT_S: Final = 20
"""An answer later than this counts as an error."""


class ToolMissing(Exception):
    """A program that this benchmark needs is not installed."""


class LoadFailed(Exception):
    """The load generator itself failed; the message ends with what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    generator_share: float
    """Part of its core that wrk used; near 1 the generator, not the server, is what was measured."""
    generator_cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def check_installed() -> None:
    """Raises `ToolMissing` with what to install."""
    for tool, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if shutil.which(tool) is None:
            raise ToolMissing(f"`{tool}` is not installed; on Debian and Ubuntu: apt-get install {package}")


def run(port: int, request: Request, *, connections: int, seconds: float, core: int | str) -> Load:
    """Repeats `request` over `connections` for about `seconds` (wrk counts whole seconds, at least one)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    body, headers = CACHE / "load-body", CACHE / "load-headers"
    body.write_bytes(request.body)
    headers.write_text("".join(f"{name}: {value}\n" for name, value in request.headers.items()))
    command = [
        *("taskset", "-c", str(core), "wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{max(1, round(seconds))}s", "--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT)),
        f"http://127.0.0.1:{port}{request.path}",
    ]
    environment = {**os.environ, "LOAD_BODY": str(body), "LOAD_HEADERS": str(headers)}
    started = time.monotonic()
    wrk = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert wrk.stdout is not None
    with wrk.stdout as stream:
        output = stream.read().decode(errors="replace")
    _, status, usage = os.wait4(wrk.pid, 0)
    wrk.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    line = next((line for line in output.splitlines() if line.startswith("LOAD ")), None)
    if wrk.returncode or line is None:
        raise LoadFailed(f"wrk exited {wrk.returncode}:\n{output[-2000:]}")
    figures = json.loads(line.removeprefix("LOAD "))
    cpu_s = usage.ru_utime + usage.ru_stime
    return Load(
        requests=figures["requests"],
        seconds=figures["duration_us"] / 1e6,
        p50_ms=figures["p50_us"] / 1e3,
        p99_ms=figures["p99_us"] / 1e3,
        errors=sum(figures["errors"].values()),
        generator_share=cpu_s / wall_s,
        generator_cpu_s=cpu_s,
    )
