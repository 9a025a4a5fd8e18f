"""How an error looks on the wire: one JSON object with one key."""

import msgspec

from farthing.types.errors import FarthingError

_encode = msgspec.json.Encoder().encode


def encode_error(error: FarthingError) -> bytes:
    """`{"error": "..."}`: what went wrong, and on a second line what to do about it."""
    text = str(error)
    try:
        return _encode({"error": text})
    except UnicodeEncodeError:  # it quotes a path that was no UTF-8
        return _encode({"error": text.encode(errors="backslashreplace").decode()})
