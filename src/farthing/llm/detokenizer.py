"""Text from tokens as they come: whole characters only, and joined together exactly the text of the whole.

A token is some bytes, and a character may be cut between two tokens. Bytes that may still become a character are held;
bytes that cannot are U+FFFD, one for each part that a decoder of the whole would have replaced (Unicode 16, section
3.9, "U+FFFD Substitution of Maximal Subparts").
"""

import codecs
from collections.abc import Callable, Set

_Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one choice."""

    __slots__ = ("_bytes_of", "_decode", "_decoder", "_skipped")

    def __init__(self, bytes_of: Callable[[int], bytes], skipped: Set[int] = frozenset()) -> None:
        """`bytes_of` says what a token adds; those in `skipped` add nothing."""
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._decoder = _Decoder("replace")
        self._decode = self._decoder.decode

    def add(self, token: int) -> str:
        """The characters that this token completes."""
        return "" if token in self._skipped else self._decode(self._bytes_of(token))

    def bytes_of(self, token: int) -> bytes:
        """What the token adds to the text."""
        return b"" if token in self._skipped else self._bytes_of(token)

    @property
    def is_inside_character(self) -> bool:
        """Are there bytes that wait for the rest of their character?"""
        return bool(self._decoder.getstate()[0])

    def end(self) -> str:
        """What is left when no more tokens come."""
        return self._decode(b"", True)


def token_text(data: bytes) -> str:
    """A token's bytes as a label: as OpenAI spells it, bytes that are no text by themselves are shown in hex."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(map("\\x{:02x}".format, data))
