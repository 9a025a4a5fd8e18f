"""Is there room for a model, and which others must go?

Pure: it is given what is held, what is asked for and the time, and answers with what to unload, with the moment to ask
again, or with why there will never be room. Unloading, loading and measuring belong to `runtime.room`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

Key = tuple[str, int]
"""A model's name and version."""

LOOK_AGAIN_NS: Final = 20_000_000
"""How soon to ask again when models with requests under way are in the way: most answer sooner than in 20 ms."""

STAY_LOADS: Final = 4
"""A model loaded on demand stays for at least this many times as long as its load took, so that models which throw
each other out spend no more than a fifth of their time on being loaded, each of them."""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """One version in memory."""

    key: Key
    bytes: int
    used_ms: int
    """When it last answered, or was loaded; milliseconds since 1970."""
    stays_until_ns: int = 0
    """Not to be unloaded before; nanoseconds of the monotonic clock."""
    is_busy: bool = False
    """Requests or sequences are under way."""
    is_pinned: bool = False
    """Never to be unloaded to make room."""


class Load(NamedTuple):
    """There is room, once these are unloaded."""

    unload: tuple[Key, ...]


class Wait(NamedTuple):
    """Ask again then; nanoseconds of the monotonic clock."""

    until_ns: int


class Refuse(NamedTuple):
    """There will be no room, whoever is idle."""

    left_bytes: int
    """What the budget leaves beside what is never unloaded."""


def place(residents: Sequence[Resident], *, needed_bytes: int, budget_bytes: int, now_ns: int) -> Load | Wait | Refuse:
    """Room for `needed_bytes`: of those that are idle the ones that were used longest ago go, and no more than must."""
    left = budget_bytes - sum(one.bytes for one in residents if one.is_pinned)
    if needed_bytes > left:
        return Refuse(max(0, left))
    lacking = needed_bytes + sum(one.bytes for one in residents) - budget_bytes
    movable = sorted((one for one in residents if not one.is_pinned), key=lambda one: (one.used_ms, one.key))
    going: list[Resident] = []
    for one in movable:
        if lacking <= 0:
            break
        if not one.is_busy and one.stays_until_ns <= now_ns and one.bytes > 0:
            going.append(one)
            lacking -= one.bytes
    if lacking > 0:
        return Wait(
            min(
                now_ns + LOOK_AGAIN_NS if one.is_busy else max(now_ns, one.stays_until_ns)
                for one in movable
                if one not in going and one.bytes > 0
            )
        )
    for one in reversed(going.copy()):  # the last one may have been large enough for those before it too
        if lacking + one.bytes <= 0:
            going.remove(one)
            lacking += one.bytes
    return Load(tuple(one.key for one in going))
