"""What this machine can do at the moment: bytes it reads a second, 8-bit operations it does a second, two threads.

The probe is a few lines of C (`probe.c`), built here once: no library may stand between a limit and its figure. It is
taken beside every engine's turn, since machines drift by a quarter within minutes.
"""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weights import CACHE, command, once

SOURCE: Final = Path(__file__).with_name("probe.c")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one moment."""

    read: float
    """Bytes a second."""
    operations: float
    """Int8 multiplications and additions a second, each counted as one: by dot products of bytes, else by products of
    pairs of 16 bits (AVX2), which 4-bit weights may pass; 0 where the processor has neither."""


def probe(threads: int = 2) -> Limits:
    """Takes a second. The best of five short tries each: a limit is what can be reached."""
    tool = once(
        CACHE / f"probe-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}",
        lambda out: command("cc", "-O2", "-march=native", "-pthread", SOURCE, "-o", out),
    )
    done = subprocess.run([tool, str(threads)], capture_output=True, text=True, check=True)
    read, operations = map(float, done.stdout.split())
    return Limits(read=read, operations=operations)
