"""A table of answers worked out before, for what clients repeat byte for byte. It forgets the oldest when full."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(dict[Key, Value], Generic[Key, Value]):
    """A dict of at most `entries_max`, filled by `remember` and read as any dict. For one thread.

    First in, first out: finding the least recently used would cost every hit more than a rare miss costs.
    """

    __slots__ = ("entries_max",)

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self.entries_max = entries_max

    def remember(self, key: Key, value: Value) -> Value:
        if len(self) >= self.entries_max:
            del self[next(iter(self))]
        self[key] = value
        return value
