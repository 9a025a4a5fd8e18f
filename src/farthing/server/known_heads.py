"""Request heads that clients send again byte for byte, and what the parser made of them the first time.

A client's requests differ in their bodies, seldom in their heads: reading one takes the parser eleven calls into
Python, finding it here one look-up. Nothing of HTTP's grammar is ours here either: a head gets in only when the parser
has read exactly these bytes as a whole request on its own, and whatever is not plain (another version, a wish for
another protocol, a body of no stated length, one that is awaited with 100-continue) never does. When a head may be
looked up is for `server.http1_reader` to say.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.protocols.memo import Memo

HEADS_MAX: Final = 1024
HEAD_BYTES_MAX: Final = 2048
"""Longer heads are read anew each time, so that those kept stay under a few MiB together."""

LUCK_MAX: Final = 32
"""How many unknown heads in a row a connection may send until none is looked up there any more: its client puts an id
of its own into each request."""

_END: Final = b"\r\n\r\n"
_NOT_PLAIN: Final = (b"transfer-encoding", b"upgrade", b"expect")


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """A request up to its body. Its headers are everybody's who sends it: not to be written to."""

    method: bytes
    path: bytes
    query: bytes
    headers: Mapping[bytes, bytes]
    body_bytes: int


class KnownHeads:
    """Those of one server, the oldest forgotten first. For one thread."""

    def __init__(self) -> None:
        self._heads: Memo[bytes, KnownHead] = Memo(HEADS_MAX)

    def find(self, data: bytes) -> tuple[KnownHead | None, int]:
        """The head that these bytes begin with, if it is known, and where its body does."""
        end = data.find(_END) + len(_END)
        return self._heads.get(data[:end]), end

    def learn(self, data: bytes, head: KnownHead) -> None:
        """Keeps what the parser made of a whole request with nothing before or behind it, if it was a plain one.

        It is HTTP/1.1 and the connection goes on after it; both are the reader's to know.
        """
        headers = head.headers
        end = data.find(_END) + len(_END)
        text = data[:end]
        if len(data) - end != head.body_bytes or not len(_END) < end <= HEAD_BYTES_MAX or head.method == b"CONNECT":
            return
        if any(name in headers for name in _NOT_PLAIN):
            return
        # Lines that end otherwise, or empty ones before the first, would leave open where the head ends.
        if text.count(b"\n") != text.count(b"\r\n") or text.startswith(b"\r\n"):
            return
        self._heads.remember(text, head)
