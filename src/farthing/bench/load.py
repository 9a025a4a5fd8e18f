"""A load and what carries it out, as values: what is sent, when, over how many connections, and what is told meanwhile.

A *chain* is one request, or the turns of one session, each sent when the one before it was answered. Where requests
come from is told by `workload`, who sends them by the drivers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from farthing.bench.arrivals import Times
from farthing.bench.frames import FramePlan
from farthing.bench.records import Records
from farthing.types.requests import InferRequest

REQUESTS_MAX: Final = 10_000_000
"""Of one load: 800 MB of records. It ends there."""
EVENTS_MAX: Final = 50_000_000
"""Tokens whose times are kept: 600 MB. More are counted, not timed, and the report says so."""
CONNECTIONS_MAX: Final = 4_096
"""Of an open loop, unless said otherwise; requests beyond wait for one, and their wait counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One request as it goes over the wire; `head` is a gRPC call's header block. In process `request` is all of it."""

    data: bytes
    head: bytes = b""
    request: InferRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Chains of messages, and the order in which they start (again from the front when it ends)."""

    wire: str
    """`http`, `stream` (server-sent events), `grpc`, `process`, or `frames` (WebSocket)."""
    chains: Sequence[Sequence[Message]]
    order: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Closed loop over `connections`, or open at `arrivals_s` over at most so many."""

    connections: int
    duration_s: float
    arrivals_s: Times | None = None
    timeout_s: float = 60.0
    pause_s: float = 0.0
    """Between an answer and the next turn of its session."""
    requests_max: int = REQUESTS_MAX
    frames: FramePlan | None = None
    """Each connection is a stream of frames, with one at every arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of a load under way."""

    sent: int
    done: int
    failed: int
    tokens: int
    in_flight: int


class Driver(Protocol):
    """Carries out one load. `run` blocks; the others may be called meanwhile, from another thread."""

    def run(self) -> Records: ...
    def stop(self) -> None: ...
    def progress(self) -> Progress: ...


def chain_starts(chains: Sequence[Sequence[Message]]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Where each chain begins in the row of all messages, and where the last one ends."""
    return np.cumsum([0, *(len(chain) for chain in chains)], dtype=np.int32)
