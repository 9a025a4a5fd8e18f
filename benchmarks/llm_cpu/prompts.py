"""Distinct prompts of exact length: prose that every Python carries, cut into pieces and never used twice.

What the language reference says of `if` and `import` is plain English with some code in it, 160,000 tokens of it, and
needs no download. Servers get token ids, so all of them read the same prompt, whatever their tokenizers would do.
"""

from collections.abc import Callable, Sequence


class PromptsExhausted(Exception):
    """The text is not long enough for what was asked."""


def text() -> str:
    """All of the reference that `help()` knows, in the order of its topics."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


class Prompts:
    """Hands out the text in order. Two that begin alike do not share a prefix: they are different places of it."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._at = 0

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> "Prompts":
        return cls(encode(text()))

    def skip_to(self, share: float) -> None:
        """Starts again at a part of the text, so that rounds differ and servers within a round do not."""
        self._at = int(len(self._ids) * share)

    def take(self, count: int, tokens: int) -> list[list[int]]:
        """The next so many, each of so many tokens."""
        end = self._at + count * tokens
        if end > len(self._ids):
            raise PromptsExhausted(f"{end:,} tokens of text are needed, there are {len(self._ids):,}")
        found = [list(self._ids[at : at + tokens]) for at in range(self._at, end, tokens)]
        self._at = end
        return found
