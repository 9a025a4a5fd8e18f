"""A call's status as trailers say it: a number, a text in percent-encoding, and when to come back."""

from typing import Final

from farthing.types.errors import FarthingError

CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""Names by number."""

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}
_ENCODED: Final = [bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in range(256)]


def percent_encoded(text: str) -> bytes:
    """A text as `grpc-message` carries it: UTF-8, all but printable ASCII (and `%` itself) as `%XX`."""
    return b"".join([_ENCODED[byte] for byte in text.encode()])


def trailers(error: FarthingError, detail: str) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that differ from call to call; `grpc-status` stands before them."""
    fields = [(b"grpc-message", percent_encoded(detail))]
    if error.retry_after_s is not None:
        fields.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    return tuple(fields)
