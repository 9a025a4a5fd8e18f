"""What this machine can do at the moment: bytes it reads a second, 8-bit operations it does a second, two threads.

Both probes are Farthing's own native code, because a limit must be found with the best instructions there are: reads
of a gigabyte with vector loads, dot products that stay in registers. They are taken beside every server's turn, since
machines drift by a quarter within minutes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BYTES: Final = 1 << 30
"""Far more than any cache holds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one moment."""

    read: float
    """Bytes a second."""
    operations: float
    """Int8 multiplications and additions a second, each counted as one."""


@cache
def _memory() -> NDArray[np.uint8]:
    memory = np.empty(BYTES, np.uint8)
    memory[:] = 1  # pages of its own, not one page of zeros read again and again
    return memory


def probe(threads: int = 2) -> Limits:
    """Takes about a second. The better of three short tries each: a limit is what can be reached."""
    from farthing import _native

    native: Any = _native
    read = max(native.read_rate(_memory(), threads, 3) for _ in range(3))
    return Limits(read=read, operations=max(native.operation_rate(threads, 0.15) for _ in range(3)))


def release() -> None:
    """Gives the memory back before a model needs it."""
    _memory.cache_clear()
