"""`grpc-timeout`: how long the caller will wait, as eight digits at most and a unit."""

import re
from typing import Final

from farthing.types.errors import InvalidInput

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_NS: Final = {
    b"H": 3600 * 10**9,
    b"M": 60 * 10**9,
    b"S": 10**9,
    b"m": 10**6,
    b"u": 10**3,
    b"n": 1,
}


def timeout_us(said: bytes) -> int:
    """Microseconds, rounded down; so 0 has passed already. Raises `InvalidInput` for what is no timeout."""
    found = _TIMEOUT.fullmatch(said)
    if found is None:
        raise InvalidInput(
            f"grpc-timeout: `{said[:32].decode('latin-1')}` is no timeout",
            hint="up to eight digits and one of H, M, S, m, u, n",
        )
    return int(found[1]) * _UNIT_NS[found[2]] // 1000
