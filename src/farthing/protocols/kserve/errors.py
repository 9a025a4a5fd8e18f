"""How an error looks on the wire: one JSON object with one key."""

import msgspec

from farthing.types.errors import FarthingError

_encode = msgspec.json.Encoder().encode


def encode_error(error: FarthingError) -> bytes:
    """`{"error": "..."}`: what went wrong, and on a second line what to do about it."""
    return _encode({"error": str(error)})
