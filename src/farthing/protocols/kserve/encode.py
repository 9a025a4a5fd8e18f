"""An `InferResponse` to the bytes of its answer."""

from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse


def check_outputs(request: InferRequest, spec: ModelSpec) -> None:
    """Raises what `encode_infer` would raise whatever the tensors hold: call it before running the model.

    (FP16 or BF16 as JSON, classification of a BYTES output.) Output names must already be known to exist.
    """
    raise NotImplementedError


def encode_infer(
    response: InferResponse, request: InferRequest, spec: ModelSpec
) -> tuple[bytes | list[bytes | memoryview], int | None]:
    """The body, and how many of its bytes are JSON when tensors follow them (None: all of it is JSON).

    A list is to be written buffer by buffer: large tensors are not copied. With a length the content type is
    `application/octet-stream` and the length goes into `Inference-Header-Content-Length`.
    """
    raise NotImplementedError
