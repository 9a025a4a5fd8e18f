"""How many of the callers answered last have not come back, and how long do they take in the mean?

Many clients send their next request when they have the answer to the last; whether to wait for them is up to
`batching.batcher`.
"""

from typing import Final

from farthing.batching.batcher import Callers

LAG_SMOOTHING: Final = 0.1
"""Weight of the newest lag, from answers to a next request, in their mean."""

LAG_NS_MAX: Final = 100_000_000
"""A longer lag counts as this long: nobody waits so long for company, and a quiet hour must be forgotten soon."""


class Returning:
    """Of one model version."""

    __slots__ = ("away", "free_ns", "lag_ns")

    def __init__(self) -> None:
        self.away = 0
        """Callers answered by the last run who have not come back since."""
        self.free_ns = 0
        """When it ended."""
        self.lag_ns = 0.0

    def came(self, now_ns: int) -> None:
        """One has come, while some are away."""
        self.away -= 1
        self.lag_ns += LAG_SMOOTHING * (min(now_ns - self.free_ns, LAG_NS_MAX) - self.lag_ns)

    def all_came(self, requests: int, now_ns: int) -> None:
        """So many have come at once: the same as one by one, as far as some were away."""
        if self.away:
            back = min(self.away, requests)
            self.away -= back
            lag_ns = min(now_ns - self.free_ns, LAG_NS_MAX)
            self.lag_ns += (1 - (1 - LAG_SMOOTHING) ** back) * (lag_ns - self.lag_ns)

    def callers(self, back: int = 0) -> Callers:
        """What the batcher may know, as if so many had come back."""
        return Callers(max(0, self.away - back), int(self.lag_ns), self.free_ns)
