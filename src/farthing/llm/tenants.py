"""How much was each tenant served? Virtual token counters, so that work is shared by weight.

Each tenant's counter grows by what it is served divided by its weight, and who waits with the smallest is next (Sheng
et al., "Fairness in Serving Large Language Models", arXiv 2401.00588, algorithm 2). A tenant that comes back after a
pause begins no lower than the least of those who are here: nobody saves up turns. One that was served more than that
keeps its debt.
"""

from collections.abc import Mapping
from typing import Final

from farthing.llm.scheduler import Accounts

GENERATED_COST: Final = 2.0
"""A generated token counts as so many prompt tokens. A row of a decode step of 32 takes 0.22 ms and a prompt's row 0.13
ms on the machine of `benchmarks/llm_cpu` (SmolLM2-135M, 7.0 ms for 32 rows, 64 ms for 512)."""

TENANTS_MAX: Final = 4096
"""Counters kept for tenants who are not here. Beyond that the smallest debt is forgotten first."""


class Tenants:
    """Counters of those who are here and debts of those who left. One owner, one thread."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self.served: dict[str, float] = {}
        self.accounts = Accounts(self.served, self.weights)
        """As the scheduler reads them."""
        self.here: dict[str, int] = {}
        """Requests under way of each. To be read only."""

    def came(self, tenant: str) -> None:
        """One more request of this tenant is under way."""
        here = self.here
        if tenant not in here:
            least = min((self.served[other] for other in here), default=None)
            if least is None:
                least = max(self.served.values(), default=0.0) if tenant not in self.served else 0.0
            self.served[tenant] = max(self.served.get(tenant, 0.0), least)
            here[tenant] = 0
        here[tenant] += 1

    def left(self, tenant: str) -> None:
        """One of its requests has ended."""
        here = self.here
        here[tenant] -= 1
        if not here[tenant]:
            del here[tenant]
            if len(self.served) - len(here) > TENANTS_MAX:
                gone = min((one for one in self.served if one not in here), key=self.served.__getitem__)
                del self.served[gone]

    def charge(self, tenant: str, cost: float) -> None:
        """`cost` is divided by weight already."""
        self.served[tenant] += cost

    def charge_generated(self, tenant: str) -> None:
        """One generated token."""
        weights = self.weights
        self.served[tenant] += GENERATED_COST / weights.get(tenant, 1.0) if weights else GENERATED_COST
