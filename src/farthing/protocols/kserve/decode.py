"""Bytes of an inference request to an `InferRequest`."""

from collections.abc import Callable

from farthing.protocols.kserve.limits import WireLimits
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest


def decode_infer(
    body: bytes | memoryview,
    *,
    model_name: str,
    model_version: str,
    header_length: int | None,
    spec: Callable[[], ModelSpec],
    limits: WireLimits,
) -> InferRequest:
    """The request in a body whose first `header_length` bytes are JSON (None: all of it is; 0: raw binary).

    `spec` is called only for a raw binary request, whose shapes come from the model. Raises `InvalidInput` for
    whatever can be known to be wrong without the model, `Unsupported` for shared memory.
    """
    raise NotImplementedError
