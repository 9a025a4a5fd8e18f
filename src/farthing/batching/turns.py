"""Which instances may run now, when running takes resources that all models share?

Pure: who asks, what is free, and whose turn it is, given as values. Keeping count and telling who was chosen belongs to
`batching.rate_limiter`. The idea of turns is start-time fair queueing (Goyal, Vin, Cheng 1996): who asks gets a number,
the lowest is served first, and being served puts the next one off by the instance's priority, so priority n gets 1/n of
the turns, and coming late earns nothing.
"""

from collections.abc import Iterable, Mapping

import msgspec


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance needs while it runs."""

    resources: Mapping[str, int] = {}
    """Name -> how many, at least 1."""
    priority: int = 1
    """Turns are 1/priority of those that an instance of priority 1 gets."""


class Claim(msgspec.Struct, frozen=True):
    """An instance that waits to run."""

    turn: int
    """The lowest is served first."""
    order: int
    """Of equal turns the one that asked first is."""
    resources: Mapping[str, int]


def grants(claims: Iterable[Claim], free: Mapping[str, int]) -> list[Claim]:
    """Those who may run now, in the order of their turns.

    One whose turn it is and who has to wait for a part keeps the rest of what it needs free: nobody who comes later
    takes it, or a large demand would starve among small ones. Who needs nothing of that is not held up. Resources are
    taken all at once, so nobody holds one and waits for another.
    """
    left = dict(free)
    chosen = []
    for claim in sorted(claims, key=lambda claim: (claim.turn, claim.order)):
        if all(count <= left.get(name, 0) for name, count in claim.resources.items()):
            chosen.append(claim)
            for name, count in claim.resources.items():
                left[name] -= count
        else:
            left.update(dict.fromkeys(claim.resources, 0))
    return chosen


def next_turn(last: int, now: int) -> int:
    """The number of an instance that asks: after its last one was used, but never before those served now."""
    return max(last, now)
