"""Where does the text end? Stop strings, found across the borders of tokens and before a reader sees any part of them.

Text is looked at as if it came character by character, so how it was cut into tokens makes no difference: the stop
string that is complete first ends it, of several that end together the longest. The longest end of the text that may
still become a stop string is held back.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Looked(NamedTuple):
    """What may be shown now, and the stop string that was found, if one was."""

    text: str
    found: str | None


class StopStrings:
    """The stop strings of one choice and the text held back for them."""

    __slots__ = ("_held", "_includes", "_stops")

    def __init__(self, stops: Sequence[str], *, includes: bool = False) -> None:
        """`includes` keeps the stop string in the text."""
        self._stops = tuple(sorted({stop for stop in stops if stop}, key=len, reverse=True))
        self._includes = includes
        self._held = ""

    @property
    def held(self) -> int:
        """Characters held back."""
        return len(self._held)

    def add(self, text: str, *, may_stop: bool = True) -> Looked:
        """Takes in the next characters; one that is complete while it may not stop is text like any other."""
        held = self._held
        joined = held + text
        if may_stop:
            first: tuple[int, int] | None = None  # (end, start): smallest end, then smallest start
            found = None
            for stop in self._stops:
                # One that lies in the held text alone was complete when it might not stop.
                start = joined.find(stop, max(0, len(held) - len(stop) + 1))
                if start >= 0 and (first is None or (start + len(stop), start) < first):
                    first, found = (start + len(stop), start), stop
            if first is not None:
                self._held = ""
                return Looked(joined[: first[0] if self._includes else first[1]], found)
        keep = self._possible(joined)
        self._held = joined[len(joined) - keep :]
        return Looked(joined[: len(joined) - keep], None)

    def end(self) -> str:
        """What was held back, when no more comes."""
        text, self._held = self._held, ""
        return text

    def _possible(self, text: str) -> int:
        """Length of the longest end of `text` that is a beginning, and not the whole, of a stop string."""
        size = len(text)
        longest = 0
        for stop in self._stops:
            start = text.find(stop[0], max(0, size - len(stop) + 1))
            while start >= 0 and size - start > longest:
                if stop.startswith(text[start:]):
                    longest = size - start
                    break
                start = text.find(stop[0], start + 1)
        return longest
