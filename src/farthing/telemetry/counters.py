"""The server's own counters: plain attributes that `server` adds to and a scrape reads.

Everything is touched from the event-loop thread alone. Sockets and routes belong to `server`; how the counters look
to Prometheus belongs to `metrics`.
"""

from bisect import bisect_left
from enum import StrEnum

from farthing.telemetry.statistics import DURATION_BOUNDS_NS
from farthing.types.errors import FarthingError, HeadersTooLarge, Overloaded, RequestTimeout, TooLarge


class RouteClass(StrEnum):
    """Kinds of paths, few enough to be a label (paths hold model names, which clients make up)."""

    INFER = "infer"
    GENERATE = "generate"
    HEALTH = "health"
    METADATA = "metadata"
    CONFIG = "config"
    STATISTICS = "statistics"
    REPOSITORY = "repository"
    SHARED_MEMORY = "shared_memory"
    TRACE = "trace"
    LOGGING = "logging"
    METRICS = "metrics"
    OTHER = "other"


class RejectReason(StrEnum):
    """Why the server turned somebody away before any model was asked."""

    CONNECTIONS = "connections"
    """All connections were taken."""
    OVERLOADED = "overloaded"
    """All requests in flight were taken."""
    MALFORMED = "malformed"
    """Not HTTP."""
    TOO_LARGE = "too_large"
    """Headers or body over the limit."""
    SLOW = "slow"
    """The client took too long to send its request or to read its answer."""
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    TENANT_LIMITED = "tenant_limited"
    STOPPING = "stopping"


def reject_reason(error: FarthingError) -> RejectReason:
    """Under which of them a request counts that never was one."""
    if isinstance(error, RequestTimeout):
        return RejectReason.SLOW
    if isinstance(error, HeadersTooLarge | TooLarge):
        return RejectReason.TOO_LARGE
    return RejectReason.OVERLOADED if isinstance(error, Overloaded) else RejectReason.MALFORMED


class HttpCounters:
    """What the HTTP server counts."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "connections_open",
        "connections_total",
        "rejected",
        "requests",
        "requests_in_flight",
    )

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_total = 0
        self.requests_in_flight = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.requests: dict[str, dict[int, int]] = {route: {} for route in RouteClass}
        """Route class -> status -> answers."""
        self.rejected: dict[str, int] = dict.fromkeys(RejectReason, 0)

    def answered(self, route: str, status: int) -> None:
        """Counts an answer. A route class nobody listed counts as OTHER."""
        by_status = self.requests.get(route)
        if by_status is None:
            by_status = self.requests[RouteClass.OTHER]
        by_status[status] = by_status.get(status, 0) + 1

    def copy(self) -> "HttpCounters":
        """An independent copy of this moment, which another thread may read."""
        twin = HttpCounters()
        for field in HttpCounters.__slots__:
            setattr(twin, field, getattr(self, field))
        twin.requests = {route: by_status.copy() for route, by_status in self.requests.items()}
        twin.rejected = self.rejected.copy()
        return twin


class GrpcCounters:
    """What the gRPC server counts."""

    __slots__ = ("requests", "requests_in_flight")

    def __init__(self) -> None:
        self.requests_in_flight = 0
        self.requests: dict[str, dict[str, int]] = {route: {} for route in RouteClass}
        """Route class -> status code's name -> answers."""

    def answered(self, route: RouteClass, code: str) -> None:
        """Counts an answer. Codes are gRPC's, of which there are 17."""
        by_code = self.requests[route]
        by_code[code] = by_code.get(code, 0) + 1

    def copy(self) -> "GrpcCounters":
        """An independent copy of this moment, which another thread may read."""
        twin = GrpcCounters()
        twin.requests_in_flight = self.requests_in_flight
        twin.requests = {route: by_code.copy() for route, by_code in self.requests.items()}
        return twin


class DurationHistogram:
    """Durations counted by `DURATION_BOUNDS_NS`, for what happens less often than requests do."""

    __slots__ = ("buckets", "total_ns")

    def __init__(self) -> None:
        self.buckets = [0] * (len(DURATION_BOUNDS_NS) + 1)
        self.total_ns = 0

    def observe(self, duration_ns: int) -> None:
        self.buckets[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
        self.total_ns += duration_ns

    def copy(self) -> "DurationHistogram":
        """An independent copy of this moment, which another thread may read."""
        twin = DurationHistogram()
        twin.buckets = self.buckets.copy()
        twin.total_ns = self.total_ns
        return twin
