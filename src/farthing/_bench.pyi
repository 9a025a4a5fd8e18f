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
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def progress(self) -> dict[str, int]: ...
    def take(self) -> dict[str, Any]: ...
