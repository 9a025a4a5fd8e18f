"""Text from tokens as they come: whole characters only, and joined together exactly the text of the whole.

A token is some bytes, and a character may be cut between two tokens. Bytes that may still become a character are held;
bytes that cannot are U+FFFD, one for each part that a decoder of the whole would have replaced (Unicode 16, section
3.9, "U+FFFD Substitution of Maximal Subparts").
"""

from codecs import utf_8_decode
from collections.abc import Callable, Set


class Detokenizer:
    """The text of one choice."""

    __slots__ = ("_bytes_of", "_held", "_skipped")

    def __init__(self, bytes_of: Callable[[int], bytes], skipped: Set[int] = frozenset()) -> None:
        """`bytes_of` says what a token adds; those in `skipped` add nothing."""
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._held = b""

    def add(self, token: int) -> str:
        """The characters that this token completes."""
        if token in self._skipped:
            return ""
        data = self._bytes_of(token)
        if self._held:
            data = self._held + data
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def bytes_of(self, token: int) -> bytes:
        """What the token adds to the text."""
        return b"" if token in self._skipped else self._bytes_of(token)

    @property
    def is_inside_character(self) -> bool:
        """Are there bytes that wait for the rest of their character?"""
        return bool(self._held)

    def end(self) -> str:
        """What is left when no more tokens come."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace") if held else ""


def token_text(data: bytes) -> str:
    """A token's bytes as a label: as OpenAI spells it, bytes that are no text by themselves are shown in hex."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(map("\\x{:02x}".format, data))
