"""Which requests are equal to the response cache: a digest of everything that may change the answer.

What counts: the model, its version and which load of it, the tenant, the outputs asked for, the parameters the model
sees, and each input's name, datatype, shape and bytes. What does not: the request's id, priority, timeout and trace,
and in which form the answer is to be written. Keeping answers belongs to `response_cache`.

The digest is SHA-256. A collision would answer one client with another's tensors, and whoever may send requests may
look for one, so a fast hash without that promise (XXH3) would have to be backed by a comparison, and the inputs kept.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from farthing.types.requests import InferRequest
from farthing.types.tensors import Tensor, datatype_of

_LENGTH: Final = np.dtype("<u8")


def request_size(inputs: Mapping[str, Tensor]) -> int:
    """Bytes of the inputs, as far as hashing them costs time."""
    size = 0
    for tensor in inputs.values():
        size += tensor.nbytes if tensor.dtype != object else sum(map(len, tensor.flat))
    return size


def cache_key(request: InferRequest, of: tuple[Any, ...]) -> bytes:
    """32 bytes that two requests share only if any answer to one is an answer to the other.

    `of` says which model, version and load answers.
    """
    inputs = sorted(request.inputs.items())
    # A self-delimiting head (MessagePack), then bytes whose number the head and their own lengths tell: no two
    # different requests make the same text.
    head = (
        of,
        request.tenant,
        sorted({asked.name for asked in request.outputs}) if request.outputs else None,
        sorted(request.parameters.items()) if request.parameters else None,
        [(name, datatype_of(tensor), tensor.shape) for name, tensor in inputs],
    )
    digest = hashlib.sha256(msgspec.msgpack.encode(head))
    for _, tensor in inputs:
        if tensor.dtype == object:
            elements = tensor.reshape(-1).tolist()
            digest.update(np.fromiter(map(len, elements), _LENGTH, len(elements)).data)
            digest.update(b"".join(elements))
        else:
            digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.digest()
