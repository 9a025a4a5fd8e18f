"""Arenas that are used again: for subrequests, of which many are under way at once, each with memory of its own.

One side makes the arenas and numbers them; the other maps each once. Belongs to whoever holds its lock.
"""

from typing import Final

from farthing.engines.python.channel import ARENA_BYTES_KEPT, ARENA_BYTES_MAX, Arena


class NoRoom(Exception):
    """As many arenas, or bytes in them, are in use as may be."""


class ArenaPool:
    """Arenas made on this side."""

    def __init__(self, *, step: int, arenas_max: int) -> None:
        """They are numbered `step`, twice `step`, and so on."""
        self._step: Final = step
        self._arenas_max: Final = arenas_max
        self._arenas: dict[int, Arena] = {}
        self._free: list[int] = []
        """The last one given back comes first: its memory is in the CPU's caches."""
        self._made = 0

    def take(self, size: int) -> tuple[int, Arena, bool]:
        """An arena for `size` bytes, not yet grown to them: its number, and whether it is new to the other side.

        Raises `NoRoom`, and `OSError` where no memory or descriptor is left.
        """
        in_use = sum(arena.size for arena in self._arenas.values()) - sum(self._arenas[n].size for n in self._free)
        if in_use + size > ARENA_BYTES_MAX:
            raise NoRoom(f"{in_use} bytes are in use, and {size} more are needed; allowed: {ARENA_BYTES_MAX}")
        fitting = next((n for n in reversed(self._free) if self._arenas[n].size >= size), None)
        if fitting is None and self._free:
            fitting = self._free[-1]
        if fitting is not None:
            self._free.remove(fitting)
            return fitting, self._arenas[fitting], False
        if len(self._arenas) >= self._arenas_max:
            raise NoRoom(f"{len(self._arenas)} pieces of memory are in use, as many as may be")
        self._made += 1
        number = self._made * self._step
        self._arenas[number] = Arena.create()
        return number, self._arenas[number], True

    def give(self, number: int) -> None:
        """It may be used again. Raises `KeyError` unless it was taken."""
        arena = self._arenas[number]
        if number in self._free:
            raise KeyError(number)
        # One large one is kept as it is, for whoever has large tensors time and again.
        if arena.size > ARENA_BYTES_KEPT and any(self._arenas[n].size > ARENA_BYTES_KEPT for n in self._free):
            arena.give_back()
        self._free.append(number)

    def drop(self, number: int) -> None:
        """It will not be used again; views of it keep it alive."""
        self._arenas.pop(number).close()
        if number in self._free:
            self._free.remove(number)

    def in_use(self, number: int) -> Arena | None:
        """The arena of that number, if it is taken."""
        return None if number in self._free else self._arenas.get(number)

    def close(self) -> None:
        """Drops all."""
        for number in list(self._arenas):
            self.drop(number)
