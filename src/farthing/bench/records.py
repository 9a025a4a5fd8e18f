"""What a driver notes: when each request was meant to leave, left, was first answered and was done, and how it ended.

One array a column, one row a request, in the order in which requests began. All times are of one monotonic clock, in
nanoseconds. What follows from them is told by `figures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CONNECT: Final = -1
CLOSED: Final = -2
RESET: Final = -3
TIMEOUT: Final = -4
MALFORMED: Final = -5
STREAM_ERROR: Final = -6
STREAM_CUT: Final = -7
ABANDONED: Final = -8
SUPERSEDED: Final = -20
TOO_LATE: Final = -21
OVERLOAD: Final = -22
FRAME_FAILED: Final = -23
"""What a server says became of a frame; the first three are its decision, not an error."""
ANSWERED: Final = 200
"""Also of requests that had no HTTP."""
GRPC: Final = -100
"""A gRPC call that ended with a status of its own: GRPC - status. (All of these mirror native/bench/loop.h.)"""

_KINDS: Final = {
    CONNECT: "connection refused",
    CLOSED: "connection closed by the server",
    RESET: "connection reset",
    TIMEOUT: "timed out",
    MALFORMED: "answer not understood",
    STREAM_ERROR: "error within the stream",
    STREAM_CUT: "stream ended early",
    ABANDONED: "abandoned",
    SUPERSEDED: "dropped: superseded",
    TOO_LATE: "dropped: late",
    OVERLOAD: "dropped: overload",
    FRAME_FAILED: "frame failed",
}


def kind_of(status: int) -> str:
    """What went wrong, for people."""
    if status > 0:
        return f"HTTP {status}"
    return _KINDS[status] if status > GRPC else f"gRPC status {GRPC - status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Of one load. `first_ns` is 0 where nothing came; token counts are -1 where the server gave none."""

    intended_ns: NDArray[np.int64]
    sent_ns: NDArray[np.int64]
    first_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    request: NDArray[np.int32]
    status: NDArray[np.int32]
    tokens: NDArray[np.int32]
    """Events with text. A server may put several tokens in one: `completion_tokens` is what it counted itself."""
    prompt_tokens: NDArray[np.int32]
    completion_tokens: NDArray[np.int32]
    cached_tokens: NDArray[np.int32]
    lag_s: NDArray[np.float32]
    """How late the generator itself began a request; waiting for a free connection is not in it."""
    held_s: NDArray[np.float32]
    """How long an answer may have lain unread because the generator was busy with others."""
    event_record: NDArray[np.uint32]
    event_ns: NDArray[np.int64]
    """Each event with text: of which row, and when."""
    samples: Mapping[int, bytes]
    """Status -> the beginning of the first answer that failed with it."""
    started_ns: int
    wall_s: float
    cpu_s: float
    """Of the generator's thread."""
    starved_s: float
    """The generator's thread could have run and was not let."""
    connections_opened: int
    waited_for_connection: int
    """Requests of an open loop that were due when all connections were busy."""
    events_lost: int
    on_time: NDArray[np.bool_] | None = None
    """Of frames: whether the server said that it was answered by its deadline."""
    summaries: Sequence[Mapping[str, Any]] = ()
    """Of streams of frames: what the server said of all of them at their end; empty where a stream broke off."""

    def __len__(self) -> int:
        return len(self.end_ns)

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        return (self.status >= 200) & (self.status < 300)

    @property
    def is_dropped(self) -> NDArray[np.bool_]:
        """Frames that the server decided not to run."""
        return (self.status <= SUPERSEDED) & (self.status >= OVERLOAD)

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """From the moment a request was meant to be sent: a server that stalls its clients cannot hide it."""
        return np.asarray((self.end_ns - self.intended_ns) / 1e9, np.float64)

    @property
    def service_s(self) -> NDArray[np.float64]:
        """From the moment a request was really sent: what tools show that suffer from coordinated omission."""
        return np.asarray((self.end_ns - self.sent_ns) / 1e9, np.float64)


def records_of(taken: Mapping[str, Any]) -> Records:
    """From what the native loop noted."""
    return Records(**{name: taken[name] for name in taken if name != "number"})
