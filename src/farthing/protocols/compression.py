"""Content codings of HTTP bodies: which one to use, inflating with a limit, deflating."""

from typing import Final, Literal

Encoding = Literal["identity", "gzip", "deflate"]

ENCODINGS_ACCEPTED: Final = "gzip, deflate"
"""Value of the `Accept-Encoding` header that goes with the 501 for an encoding we do not read."""


def request_encoding(content_encoding: str) -> Encoding:
    """What a request's `Content-Encoding` asks for. Raises `Unsupported` (501) for any other than ours."""
    raise NotImplementedError


def response_encoding(accept_encoding: str, body_bytes: int) -> Encoding:
    """What to answer in, by the request's `Accept-Encoding` (with `q`). Small bodies are not worth coding."""
    raise NotImplementedError


class Inflater:
    """Inflates a body piece by piece and never holds more than the limit."""

    def __init__(self, encoding: Encoding, bytes_max: int) -> None: ...

    def feed(self, data: bytes | memoryview) -> bytes:
        """Whatever can be inflated now. Raises `TooLarge` past the limit, `InvalidInput` for broken data."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """The rest. Raises `InvalidInput` if the data ends early."""
        raise NotImplementedError


def inflate(body: bytes | memoryview, encoding: Encoding, bytes_max: int) -> bytes:
    """A whole body inflated."""
    raise NotImplementedError


def deflate(buffers: bytes | list[bytes | memoryview], encoding: Encoding) -> bytes:
    """A body in the given coding."""
    raise NotImplementedError
