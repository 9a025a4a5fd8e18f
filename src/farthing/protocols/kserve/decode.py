"""Bytes of an inference request to an `InferRequest`.

All that the bytes alone can tell is checked here: JSON, types, counts against shapes, sizes against the body.
Whether the tensors are the ones the model takes is for `runtime` to say.

A client that sends binary tensors repeats the JSON before them byte for byte, but for the id. What such a header
says is therefore kept as a `_Plan`, and most requests are a look-up and one array per input.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from farthing.protocols.kserve.binary import raw_binary_request, tensor_from_bytes
from farthing.protocols.kserve.json_tensor import tensor_from_json
from farthing.protocols.kserve.limits import ID_CHARACTERS_MAX, WireLimits
from farthing.protocols.kserve.messages import NO_DATA, ParsedInput, WireInput, WireOutput, parse_infer
from farthing.protocols.kserve.parameters import (
    NO_OPTIONS,
    RequestOptions,
    binary_size,
    check_shared_size,
    check_shared_total,
    has_shared_memory,
    no_shared_memory,
    region_part,
    request_options,
    requested_output,
)
from farthing.protocols.kserve.shapes import ITEM_BYTES, elements_of
from farthing.protocols.memo import Memo
from farthing.types.errors import AlreadyExists, InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, RegionPart, Regions, RequestedOutput
from farthing.types.tensors import Tensor

PLAN_JSON_BYTES_MAX: Final = 4096
"""A header longer than this is read anew each time, so that the kept ones stay under 4 MiB together."""
PLANS_MAX: Final = 1024
"""Headers whose reading is kept: models times shapes that clients use at one time, with room."""

_ID_FIRST: Final = b'{"id":"'
"""How a header with an id starts; clients put it first."""

_Place = tuple[str, int, int, str, tuple[int, ...], int, str]
"""A binary input: name, first byte after the JSON, bytes, datatype, shape, elements, place for errors."""


_SharedPlace = tuple[str, RegionPart, str, tuple[int, ...], int, str]
"""An input in shared memory: name, where it lies, datatype, shape, elements, place for errors."""


class _Plan(msgspec.Struct, frozen=True, gc=False):
    """What the JSON of a request says."""

    id: str
    options: RequestOptions
    outputs: tuple[RequestedOutput, ...]
    json_inputs: dict[str, Tensor]
    places: tuple[_Place, ...]
    binary_bytes: int
    shared: tuple[_SharedPlace, ...] = ()
    has_parts: bool = False
    """Some output is wanted in shared memory."""


_plans: Final[Memo[bytes, _Plan]] = Memo(PLANS_MAX)
"""By the whole header."""
_plans_after_id: Final[Memo[bytes, _Plan]] = Memo(PLANS_MAX)
"""By what follows the id, for headers that start with one."""


def decode_infer(
    body: bytes | memoryview,
    *,
    model_name: str,
    model_version: str,
    header_length: int | None,
    spec: Callable[[], ModelSpec],
    limits: WireLimits,
    regions: Regions | None = None,
) -> InferRequest:
    """The request in a body whose first `header_length` bytes are JSON (None: all of it is; 0: raw binary).

    `spec` is called only for a raw binary request, whose shapes come from the model. Raises `InvalidInput` for
    whatever can be known to be wrong without the model, `Unsupported` for shared memory without `regions`. For one
    thread.
    """
    if header_length is None:
        plan = _read(body, limits)
        inputs, request_id = plan.json_inputs, plan.id
        if plan.places or plan.shared:
            inputs = _inputs(plan, body, len(body))
    elif header_length == 0:
        return raw_binary_request(body, model_name=model_name, model_version=model_version, spec=spec())
    else:
        plan, request_id = _plan_of(bytes(body[:header_length]), limits)
        inputs = _inputs(plan, body, header_length)
    shared_bytes = 0
    if plan.shared or plan.has_parts:
        shared_bytes = _read_shared(plan, inputs, limits, regions)
    options = plan.options
    return InferRequest(
        model_name=model_name,
        model_version=model_version,
        id=request_id,
        inputs=inputs,
        outputs=plan.outputs,
        parameters=options.parameters,
        priority=options.priority,
        timeout_us=options.timeout_us,
        binary_output=options.binary_output,
        shared_bytes=shared_bytes,
    )


def _read_shared(plan: _Plan, inputs: dict[str, Tensor], limits: WireLimits, regions: Regions | None) -> int:
    """Adds the inputs that lie in shared memory; answers their bytes."""
    if regions is None:
        where = plan.shared[0][-1] if plan.shared else "outputs"
        raise no_shared_memory(where)
    total = sum([part.byte_size for _, part, *_ in plan.shared])
    check_shared_total(total, limits.body_bytes_max)
    for name, part, datatype, shape, elements, where in plan.shared:
        data = regions.read(part, where)
        inputs[name] = tensor_from_bytes(data, 0, len(data), datatype, shape, elements, where)
    return total


def _plan_of(header: bytes, limits: WireLimits) -> tuple[_Plan, str]:
    """The plan of a header that binary tensors follow, and the request's id."""
    key, plans, request_id = header, _plans, None
    if header.startswith(_ID_FIRST):
        end = header.find(b'"', len(_ID_FIRST))
        written = header[len(_ID_FIRST) : end]
        # Only an id that means itself letter by letter may be cut out: ASCII, no escapes, no control characters.
        if end > 0 and len(written) <= ID_CHARACTERS_MAX and written.isascii() and b"\\" not in written:
            text = written.decode()
            if text.isprintable():
                key, plans, request_id = header[end:], _plans_after_id, text
    plan = plans.get(key)
    if plan is not None:
        return plan, plan.id if request_id is None else request_id
    plan = _read(header, limits)
    # Of two ids the last one counts: then what follows the first says nothing about other requests.
    is_repeatable = request_id is None or (b'"id"' not in key and b"\\u" not in key)
    if is_repeatable and not plan.json_inputs and len(key) <= PLAN_JSON_BYTES_MAX:
        plans.remember(key, plan)
    return plan, plan.id


def _read(text: bytes | memoryview, limits: WireLimits) -> _Plan:
    wire = parse_infer(text)
    json_inputs: dict[str, Tensor] = {}
    places: list[_Place] = []
    shared: list[_SharedPlace] = []
    binary_bytes = 0
    items: Sequence[WireInput | ParsedInput] = wire.inputs
    for index, item in enumerate(items):
        elements = elements_of(item.shape, item.datatype, index, limits)
        if item.parameters:
            where = f"inputs[{index}]"
            part = _shared_part(item, elements, where)
            if part is not None:
                shared.append((item.name, part, item.datatype, item.shape, elements, where))
                continue
            size = _binary_size(item, elements, where)
            if size is not None:
                places.append((item.name, binary_bytes, size, item.datatype, item.shape, elements, where))
                binary_bytes += size
                continue
        if item.data is NO_DATA:
            raise _sources(item.name, f"inputs[{index}]")
        json_inputs[item.name] = tensor_from_json(item.data, item.datatype, item.shape, elements, index)
    if len(items) > 1:
        check_names([item.name for item in items], "input")
    outputs = _outputs(wire.outputs) if wire.outputs else ()
    return _Plan(
        wire.id or "",
        request_options(wire.parameters) if wire.parameters else NO_OPTIONS,
        outputs,
        json_inputs,
        tuple(places),
        binary_bytes,
        tuple(shared),
        any(output.part is not None for output in outputs),
    )


def _shared_part(item: WireInput | ParsedInput, elements: int, where: str) -> RegionPart | None:
    """Where this input lies in shared memory; None if it does not."""
    parameters = item.parameters
    if parameters is None or not has_shared_memory(parameters):
        return None
    if binary_size(parameters, where) is not None or _has_data(item.data):
        raise _sources(item.name, where)
    part = region_part(parameters, where)
    check_shared_size(part, item.name, elements * ITEM_BYTES[item.datatype], item.datatype, where)
    return part


def _binary_size(item: WireInput | ParsedInput, elements: int, where: str) -> int | None:
    """Bytes this input has after the JSON; None if its values are in it."""
    size = binary_size(item.parameters, where)
    if size is None:
        return None
    if _has_data(item.data):
        raise _sources(item.name, where)
    needed = elements * ITEM_BYTES[item.datatype]
    if size != needed and (item.datatype != "BYTES" or size < needed):
        raise InvalidInput(
            f"{where}: input byte size mismatch for input '{item.name}'. Expected {needed}"
            f"{' or more' if item.datatype == 'BYTES' else ''}, got {size}",
            hint="`binary_data_size` is the number of elements in `shape` times the bytes of one",
        )
    return size


def _inputs(plan: _Plan, body: bytes | memoryview, start: int) -> dict[str, Tensor]:
    """All inputs, the binary ones from what follows the JSON."""
    if len(body) - start != plan.binary_bytes:
        raise _wrong_length(plan, len(body) - start)
    inputs = plan.json_inputs.copy()
    for name, offset, size, datatype, shape, elements, where in plan.places:
        inputs[name] = tensor_from_bytes(body, start + offset, size, datatype, shape, elements, where)
    return inputs


def _has_data(data: msgspec.Raw | list[Any] | None) -> bool:
    return data is not NO_DATA and data is not None and not (type(data) is msgspec.Raw and bytes(data) == b"null")


def _outputs(wire: list[WireOutput]) -> tuple[RequestedOutput, ...]:
    outputs = tuple(
        requested_output(item.name, item.parameters, f"outputs[{index}]") for index, item in enumerate(wire)
    )
    if len(outputs) > 1:
        check_names([output.name for output in outputs], "output")
    return outputs


def check_names(names: list[str], kind: str) -> None:
    """Raises `AlreadyExists` if a name stands twice."""
    if len(set(names)) == len(names):
        return
    for index, name in enumerate(names):
        if name in names[:index]:
            raise AlreadyExists(f"{kind}s[{index}]: {kind} '{name}' already exists in request")


def _sources(name: str, where: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: input '{name}' must have its values in exactly one of `data`, `binary_data_size` and "
        "`shared_memory_region`"
    )


def _wrong_length(plan: _Plan, found: int) -> InvalidInput:
    for name, offset, size, *_ in plan.places:
        if offset + size > found:
            return InvalidInput(
                f"unexpected size for input '{name}', expecting {offset + size - max(found, offset)} additional bytes",
                hint="Inference-Header-Content-Length counts the JSON; all tensors follow it without gaps",
            )
    return InvalidInput(
        f"unexpected additional input data: {found - plan.binary_bytes} bytes follow the last tensor",
        hint="Inference-Header-Content-Length counts the JSON; the tensors follow it and nothing else",
    )
