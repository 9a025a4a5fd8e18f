"""Content codings of HTTP bodies: which one to use, inflating with a limit, deflating."""

import zlib
from functools import lru_cache
from typing import Final, Literal

from farthing.types.errors import InvalidInput, TooLarge, Unsupported

Encoding = Literal["identity", "gzip", "deflate"]

ENCODINGS_ACCEPTED: Final = "gzip, deflate"
"""Value of the `Accept-Encoding` header that goes with the 501 for an encoding we do not read."""

DEFLATE_BYTES_MIN: Final = 1024
"""Answers smaller than this go out as they are: they fit one packet, and gzip costs more than a small model."""

DEFLATE_LEVEL: Final = 1
"""zlib's quickest: tensors hardly shrink further at 6, which takes three times as long."""

_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""`deflate` is the zlib format (RFC 9110, 8.4.1.2)."""

_ACCEPT_CHARACTERS_MAX: Final = 256
"""Characters of an `Accept-Encoding` that are looked at; browsers send about thirty."""


def request_encoding(content_encoding: str) -> Encoding:
    """What a request's `Content-Encoding` asks for. Raises `Unsupported` (501) for any other than ours."""
    match content_encoding.strip().lower():
        case "" | "identity":
            return "identity"
        case "gzip" | "x-gzip":
            return "gzip"
        case "deflate":
            return "deflate"
    raise Unsupported(
        f"Content-Encoding: `{content_encoding[:80]}` is not supported", hint=f"send {ENCODINGS_ACCEPTED} or identity"
    )


def response_encoding(accept_encoding: str, body_bytes: int) -> Encoding:
    """What to answer in, by the request's `Accept-Encoding` (with `q`). Small bodies are not worth coding.

    The client's highest `q` wins, and gzip between equals. An answer is never refused: a client that accepts
    nothing of ours gets identity, as RFC 9110 (12.5.3) allows.
    """
    small, large = _choice(accept_encoding[:_ACCEPT_CHARACTERS_MAX])
    return small if body_bytes < DEFLATE_BYTES_MIN else large


@lru_cache(maxsize=256)  # a client's library always sends the same
def _choice(accept_encoding: str) -> tuple[Encoding, Encoding]:
    """What a small body and a large one go out in."""
    wishes = _wishes(accept_encoding)
    other = wishes.get("*")
    gzip = wishes.get("gzip", wishes.get("x-gzip", other)) or 0.0
    deflate = wishes.get("deflate", other) or 0.0
    identity = wishes.get("identity", other)
    packed: Encoding = "gzip" if gzip >= deflate else "deflate"
    best = max(gzip, deflate)
    if best <= 0:
        return "identity", "identity"
    if identity == 0:
        return packed, packed
    return "identity", "identity" if (identity or 0.0) > best else packed


def _wishes(accept_encoding: str) -> dict[str, float]:
    """Coding -> q. An unreadable q counts as 0: better uncompressed than undecodable."""
    wishes: dict[str, float] = {}
    for entry in accept_encoding.lower().split(","):
        coding, *options = (part.strip() for part in entry.split(";"))
        quality = 1.0
        for option in options:
            name, _, value = option.partition("=")
            if name.strip() == "q":
                quality = _quality(value.strip())
        wishes[coding] = quality
    return wishes


def _quality(text: str) -> float:
    digits = text.replace(".", "", 1)
    return min(float(text), 1.0) if digits.isascii() and digits.isdigit() and len(digits) <= 8 else 0.0


class Inflater:
    """Inflates a body piece by piece and never makes more than the limit, however small a bomb looks packed."""

    def __init__(self, encoding: Encoding, bytes_max: int) -> None:
        self._encoding = encoding
        self._bytes_max = bytes_max
        self._bytes_left = bytes_max
        self._zlib = None if encoding == "identity" else zlib.decompressobj(_WINDOW_BITS[encoding])

    def feed(self, data: bytes | memoryview) -> bytes:
        """Whatever can be inflated now. Raises `TooLarge` past the limit, `InvalidInput` for broken data."""
        if self._zlib is None:
            inflated = bytes(data)
        else:
            if self._zlib.eof:
                if len(data):
                    raise InvalidInput(f"the {self._encoding} body ended, and {len(data)} bytes follow it")
                return b""
            try:
                # One byte more than is left, so that reaching the limit and passing it are told apart.
                inflated = self._zlib.decompress(data, self._bytes_left + 1)
            except zlib.error as error:
                raise InvalidInput(f"the body is not valid {self._encoding}: {error}") from None
            if self._zlib.unused_data:
                raise InvalidInput(
                    f"the {self._encoding} body ended, and {len(self._zlib.unused_data)} bytes follow it"
                )
        if len(inflated) > self._bytes_left:
            raise TooLarge(
                f"the decompressed body exceeds the maximum allowed input size of {self._bytes_max} bytes",
                hint="send less in one request, or raise the server's limit on request bodies",
            )
        self._bytes_left -= len(inflated)
        return inflated

    def finish(self) -> None:
        """Raises `InvalidInput` if the data ended early."""
        if self._zlib is not None and not self._zlib.eof:
            raise InvalidInput(f"the {self._encoding} body ends early")


def inflate(body: bytes | memoryview, encoding: Encoding, bytes_max: int) -> bytes:
    """A whole body inflated."""
    inflater = Inflater(encoding, bytes_max)
    inflated = inflater.feed(body)
    inflater.finish()
    return inflated


def deflate(buffers: bytes | list[bytes | memoryview], encoding: Encoding) -> bytes:
    """A body in the given coding."""
    pieces = [buffers] if isinstance(buffers, bytes) else buffers
    if encoding == "identity":
        return b"".join(pieces)
    packer = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return b"".join([*map(packer.compress, pieces), packer.flush()])
