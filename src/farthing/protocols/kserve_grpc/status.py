"""An error as gRPC's status says it: one text in the trailers, so with a bound."""

from typing import Final

from farthing.types.errors import FarthingError

STATUS_DETAIL_BYTES_MAX: Final = 2000
"""The text travels percent-encoded in a header, up to three bytes a byte, and clients begin to refuse headers over
8 KiB: an error that cannot be read helps nobody."""


def status_detail(error: FarthingError) -> str:
    """What went wrong, and on a second line what to do about it."""
    text = str(error).encode(errors="backslashreplace")  # it may quote a path that was no UTF-8
    if len(text) > STATUS_DETAIL_BYTES_MAX:
        text = text[: STATUS_DETAIL_BYTES_MAX - 3] + b"..."
    return text.decode(errors="ignore")  # the cut may have gone through a character
