"""How much one request may say. Values come from the operator (`config`); the server hands them down."""

from typing import Final

import msgspec

BODY_BYTES_MAX: Final = 64 << 20
"""Bytes of a body, of a decompressed body and of what a declared shape implies; Triton's default, 64 MiB."""

JSON_DEPTH_MAX: Final = 100
"""Arrays inside arrays in a tensor's `data`; Triton's limit. A tensor has at most `DIMENSIONS_MAX` of them."""

DIMENSIONS_MAX: Final = 32
"""Dimensions of a tensor. numpy stops at 64, engines earlier; no model we know of has more than 8."""

TENSORS_MAX: Final = 1024
"""Inputs (and requested outputs) in one request. A ranking model with one input per feature has some hundreds."""

ID_CHARACTERS_MAX: Final = 4096
"""Characters of a request id, which comes back in the answer and in logs."""


class WireLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder allows before it allocates anything; beyond it the answer is 400 naming the limit."""

    body_bytes_max: int = BODY_BYTES_MAX
