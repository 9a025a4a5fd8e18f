"""What a pull reports while it works. Drawing it belongs to `cli`."""

from collections.abc import Callable

import msgspec


class Step(msgspec.Struct, frozen=True, gc=False):
    """Where a pull has got to: what it is doing, and how far if that is known (`total_bytes` 0: it is not)."""

    sample: str
    doing: str
    done_bytes: int = 0
    total_bytes: int = 0


Progress = Callable[[Step], None]
"""Called with every step, several times a second at most, from the thread that pulls."""


def silent(step: Step) -> None:
    """Reports to nobody."""
