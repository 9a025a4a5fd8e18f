"""An inference request and its answer, as every room between the wire and the engine sees them."""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from farthing.types.errors import FarthingError
from farthing.types.tensors import Tensor
from farthing.types.trace import Trace

Parameter = str | bool | int | float
"""A request or response parameter's value (Open Inference Protocol, parameters extension)."""


class RegionPart(msgspec.Struct, frozen=True, gc=False):
    """Where in a registered shared-memory region a tensor lies."""

    region: str
    offset: int
    byte_size: int


class Regions(Protocol):
    """The shared-memory regions clients have registered."""

    def read(self, part: RegionPart, where: str) -> bytes:
        """A copy of what lies there. Raises `NotFound` or `InvalidInput`, beginning with `where`."""

    def write(self, part: RegionPart, data: bytes, where: str) -> None:
        """Puts bytes there. Raises likewise, also when they do not fit."""


class RequestedOutput(msgspec.Struct, frozen=True, gc=False):
    """One output the client asked for. `classes` > 0 asks for the top classes instead of the tensor."""

    name: str
    classes: int = 0
    is_binary: bool | None = None
    """Raw bytes on the wire? None: as the request's `binary_data_output` says."""
    part: RegionPart | None = None
    """Where to put the tensor instead of into the answer."""


class InferRequest(msgspec.Struct, kw_only=True):
    """A decoded request. Nothing writes to it after the protocol made it."""

    model_name: str
    model_version: str = ""
    """A number as the client wrote it; empty for the version policy's latest."""
    id: str = ""
    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty: all outputs."""
    parameters: dict[str, Parameter] = {}
    """What the model may see; reserved ones are already taken out into the fields below."""
    priority: int = 0
    timeout_us: int = 0
    """How long it may wait in the queue, microseconds; 0 for as long as the model's policy allows."""
    binary_output: bool = False
    """What `binary_data_output` said."""
    shared_bytes: int = 0
    """Bytes of inputs that were read from shared memory."""
    tenant: str = ""
    trace: Trace | None = None
    """Where to note what happens to it; None for most requests."""
    due_ns: int = 0
    """When a frame needs the answer, where it is asked for one; 0 for other requests. Never later than `timeout_us`."""
    origin: object | None = None
    """The subrequest it came from, where a model sent it and not a client."""


class Timing(msgspec.Struct, frozen=True, gc=False):
    """Where a request's time went, nanoseconds, and the batch it rode in."""

    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    batch_rows: int
    batch_requests: int


class InferResponse(msgspec.Struct, kw_only=True):
    """The answer to one request: its own rows of the batch's outputs."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter] = {}
    timing: Timing


class StreamedResponse(msgspec.Struct, frozen=True):
    """One of the zero, one or many things that are said to a request of a stream."""

    answer: InferResponse | FarthingError | None
    """None: nothing but that this was the last."""
    is_last: bool


PRIORITY_DEFAULT: Final = 0
"""A request without a priority takes the model's `default_priority_level`."""
