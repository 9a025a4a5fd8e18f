"""When is a process that died started again?

A first death is answered almost at once, for most are accidents. A process that keeps dying waits twice as long
each time, so that a model that cannot live does not eat the machine. Pure: the time is an argument.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long to wait before a restart."""

    first_delay_s: float = 0.1
    """After the first death. About what an import takes: waiting less gains nothing."""
    delay_max_s: float = 30.0
    """Never longer than this, so that a mended model is back within half a minute."""
    steady_s: float = 60.0
    """A life this long clears the record: the next death counts as a first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What to do after a death: how many there have been in a row, and when to start again."""

    deaths: int
    at_s: float


DEFAULT: Final = Policy()


def after_death(deaths_before: int, *, started_s: float, died_s: float, policy: Policy = DEFAULT) -> Restart:
    """The restart that follows a death, given how many deaths in a row came before it."""
    deaths = 1 if died_s - started_s >= policy.steady_s else deaths_before + 1
    # The exponent is bounded before it is used: 2.0 ** 2000 is an OverflowError.
    delay_s = min(policy.first_delay_s * 2.0 ** min(deaths - 1, 60), policy.delay_max_s)
    return Restart(deaths=deaths, at_s=died_s + delay_s)
