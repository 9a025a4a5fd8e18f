"""Is there room? Bytes and requests inside the server at once, for everyone and for each tenant.

Told "no" at once is part of the design: the answer carries when to come back. Room in one model's queue is the
queue's own business.
"""

from farthing.config.server import AdmissionLimits
from farthing.types.errors import Overloaded, TenantLimited


class Admission:
    """Counts what is under way; lives on the event loop."""

    __slots__ = ("_inflight_bytes_max", "_inflight_of", "bytes")

    def __init__(self, limits: AdmissionLimits) -> None:
        self._inflight_bytes_max = limits.inflight_bytes_max
        self._inflight_of: dict[str, int] = {}
        self.bytes = 0

    def take_bytes(self, size: int) -> None:
        """Counts a part of a request body. Raises `Overloaded` when that is more than fits."""
        if self.bytes + size > self._inflight_bytes_max:
            raise Overloaded(
                f"requests under way hold {self.bytes} bytes, and {size} more would exceed the "
                f"{self._inflight_bytes_max} allowed",
                hint="come back after the time in Retry-After, or raise --inflight-bytes-max",
                retry_after_s=1,
            )
        self.bytes += size

    def give_bytes(self, size: int) -> None:
        """A request is answered, or its client has gone."""
        self.bytes -= size

    def enter(self, tenant: str, inflight_max: int) -> None:
        """Counts a tenant's request. Raises `TenantLimited` when it has its share under way already."""
        inflight = self._inflight_of.get(tenant, 0)
        if inflight >= inflight_max:
            raise TenantLimited(
                f"`{tenant}` has {inflight} requests under way, its limit",
                hint="wait for an answer before sending the next request",
                retry_after_s=1,
            )
        self._inflight_of[tenant] = inflight + 1

    def leave(self, tenant: str) -> None:
        """A tenant's request has ended."""
        inflight = self._inflight_of[tenant] - 1
        if inflight:
            self._inflight_of[tenant] = inflight
        else:
            del self._inflight_of[tenant]
