"""Would a subrequest wait for ever?

An instance that waits for another model runs nothing else. If what it asks for can only come from instances that wait
in turn, for it in the end, nobody would ever move: A asks B, which asks A, and A has one instance. That is seen before
the wait begins. Pure; who waits for whom is kept by `subrequests`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from farthing.engines.contract import Sender


@dataclass(frozen=True, slots=True)
class Wait:
    """One subrequest under way."""

    sender: Sender
    """Who waits."""
    targets: frozenset[object]
    """The models that must run it (`Sender.model`): one, or those of an ensemble."""
    runs_on: frozenset[Sender] = frozenset()
    """The instances that are known to run it, because they wait themselves."""


def stuck(waits: Collection[Wait]) -> set[Sender]:
    """The instances that could never go on.

    An instance can go on when, for all it waits for, whoever runs it can, and each model that must run it has an
    instance that can: one that does not wait at all, or one whose waits end. Everything that cannot is stuck.
    """
    waiting: dict[Sender, list[Wait]] = {}
    for wait in waits:
        waiting.setdefault(wait.sender, []).append(wait)
    left = set(waiting)
    while True:
        blocked = _blocked(left)
        free = {sender for sender in left if all(_ends(wait, left, blocked) for wait in waiting[sender])}
        if not free:
            return left
        left -= free


def _blocked(left: Iterable[Sender]) -> set[object]:
    """Models none of whose instances can go on."""
    counts: dict[object, int] = {}
    blocked = set()
    for sender in left:
        counts[sender.model] = counts.get(sender.model, 0) + 1
        if counts[sender.model] >= sender.instances():
            blocked.add(sender.model)
    return blocked


def _ends(wait: Wait, left: set[Sender], blocked: set[object]) -> bool:
    return not (wait.runs_on & left) and not (wait.targets & blocked)
