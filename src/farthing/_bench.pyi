"""The load loop of `farthing bench`, on epoll: Linux only. Sources in native/bench/."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class Run:
    def __init__(
        self,
        *,
        address: str,
        port: int,
        wire: str,
        requests: tuple[bytes, ...],
        heads: tuple[bytes, ...],
        chain_starts: NDArray[np.int32],
        order: NDArray[np.int32],
        arrivals_ns: NDArray[np.int64],
        pause_ns: int,
        duration_ns: int,
        timeout_ns: int,
        requests_max: int,
        events_max: int,
        connections: int,
        is_fed: bool,
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def feed(self, first: int, which: NDArray[np.int32]) -> None:
        """Request `which[i]` is to be sent now, as number `first + i`. From any thread, of a load that `is_fed`."""

    def end_feed(self) -> None: ...
    def serve(self) -> list[tuple[int, int, int]] | None:
        """Turns the loop until there is something to tell: number, status (0: its first token), tokens. None: over."""

    def progress(self) -> dict[str, int]: ...
    def take(self) -> dict[str, Any]: ...
