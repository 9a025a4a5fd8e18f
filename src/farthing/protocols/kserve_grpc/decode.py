"""A `ModelInferRequest` to an `InferRequest`: all that the message alone can tell is checked here."""

from collections.abc import Sequence
from typing import Any, Final

from farthing.protocols.kserve.decode import check_names
from farthing.protocols.kserve.limits import DIMENSIONS_MAX, ID_CHARACTERS_MAX, TENSORS_MAX, WireLimits
from farthing.protocols.kserve.parameters import (
    NO_OPTIONS,
    check_shared_size,
    check_shared_total,
    has_shared_memory,
    no_shared_memory,
    region_part,
    request_options,
    requested_output,
)
from farthing.protocols.kserve.shapes import ITEM_BYTES, elements_of
from farthing.protocols.kserve_grpc.contents import raw_tensor, typed_tensor
from farthing.protocols.kserve_grpc.parameters import plain_parameters
from farthing.types.errors import InvalidInput, TooLarge
from farthing.types.requests import InferRequest, Parameter, RegionPart, Regions, RequestedOutput
from farthing.types.tensors import Tensor

EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"
"""The one `triton_` parameter a client may send. It speaks of streams, so a lone answer passes it over."""

_SharedPlace = tuple[str, RegionPart, str, tuple[int, ...], int, str]
"""An input in shared memory: name, where it lies, datatype, shape, elements, place for errors."""


def decode_infer(message: Any, limits: WireLimits, regions: Regions | None = None) -> InferRequest:
    """The request in a message. Raises `InvalidInput` or, for shared memory without `regions`, `Unsupported`."""
    if len(message.id) > ID_CHARACTERS_MAX:
        raise TooLarge(f"id: {len(message.id)} characters; the limit is {ID_CHARACTERS_MAX}")
    options = NO_OPTIONS
    if message.parameters:
        values = plain_parameters(message.parameters, "parameters")
        if isinstance(values.get(EMPTY_FINAL_RESPONSE), bool):
            del values[EMPTY_FINAL_RESPONSE]
        options = request_options(values)
    shared: list[_SharedPlace] = []
    inputs = _inputs(message.inputs, message.raw_input_contents, limits, shared)
    outputs = _outputs(message.outputs) if message.outputs else ()
    shared_bytes = 0
    if shared:
        shared_bytes = _read_shared(shared, inputs, limits, regions)
    if regions is None:
        for index, output in enumerate(outputs):
            if output.part is not None:
                raise no_shared_memory(f"outputs[{index}]")
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=inputs,
        outputs=outputs,
        parameters=options.parameters,
        priority=options.priority,
        timeout_us=options.timeout_us,
        binary_output=True,
        shared_bytes=shared_bytes,
    )


def _inputs(
    items: Sequence[Any], raw: Sequence[bytes], limits: WireLimits, shared: list[_SharedPlace]
) -> dict[str, Tensor]:
    """Inputs by name; those in shared memory are added to `shared`, and `raw` has no entry for them."""
    if len(items) > TENSORS_MAX:
        raise TooLarge(f"{len(items)} inputs in one request; the limit is {TENSORS_MAX}")
    if len(items) > 1:
        check_names([item.name for item in items], "input")
    inputs: dict[str, Tensor] = {}
    for index, item in enumerate(items):
        name, datatype, where = item.name, item.datatype, f"inputs[{index}]"
        shape = _shape(item, where)
        elements = elements_of(shape, datatype, index, limits)
        has_contents = item.HasField("contents")
        parameters = plain_parameters(item.parameters, f"{where}.parameters") if item.parameters else None
        if parameters and has_shared_memory(parameters):
            if has_contents:
                raise InvalidInput(
                    f"{where}: input '{name}' has both `contents` and `shared_memory_region`; give one of the two"
                )
            part = region_part(parameters, where)
            check_shared_size(part, name, elements * ITEM_BYTES[datatype], datatype, where)
            shared.append((name, part, datatype, shape, elements, where))
            continue
        if has_contents and raw:
            raise InvalidInput(
                f"{where}: contents field must not be specified when using raw_input_contents for '{name}'",
                hint="send all inputs in `raw_input_contents`, or all in `contents`",
            )
        if has_contents:
            inputs[name] = typed_tensor(item.contents, name, datatype, shape, elements, where)
        elif index - len(shared) < len(raw):
            inputs[name] = raw_tensor(raw[index - len(shared)], name, datatype, shape, elements, where)
        else:
            raise InvalidInput(
                f"{where}: unable to find data for input tensor '{name}'; `raw_input_contents` has {len(raw)} entries "
                f"for {len(items)} inputs",
                hint="fill `raw_input_contents`, one entry for each input in their order, or each input's `contents`",
            )
    wanted = len(items) - len(shared)
    if len(raw) > wanted:
        raise InvalidInput(
            f"unexpected additional input data: `raw_input_contents` has {len(raw)} entries for {wanted} inputs",
            hint="send one entry for each input, in their order",
        )
    return inputs


def _read_shared(
    shared: Sequence[_SharedPlace], inputs: dict[str, Tensor], limits: WireLimits, regions: Regions | None
) -> int:
    """Adds the inputs that lie in shared memory; answers their bytes."""
    if regions is None:
        raise no_shared_memory(shared[0][-1])
    total = sum([part.byte_size for _, part, *_ in shared])
    check_shared_total(total, limits.body_bytes_max)
    for name, part, datatype, shape, elements, where in shared:
        inputs[name] = raw_tensor(regions.read(part, where), name, datatype, shape, elements, where)
    return total


def _shape(item: Any, where: str) -> tuple[int, ...]:
    shape = tuple(item.shape)
    if len(shape) > DIMENSIONS_MAX:
        raise TooLarge(f"{where}.shape: {len(shape)} dimensions; the limit is {DIMENSIONS_MAX}")
    for dim in shape:
        if dim < 0:
            raise InvalidInput(
                f"{where}.shape: {list(shape)} of input '{item.name}' has a negative dimension",
                hint="-1 is for models; a request says how many there are",
            )
    return shape


def _outputs(items: Sequence[Any]) -> tuple[RequestedOutput, ...]:
    if len(items) > TENSORS_MAX:
        raise TooLarge(f"{len(items)} outputs asked for in one request; the limit is {TENSORS_MAX}")
    if len(items) > 1:
        check_names([item.name for item in items], "output")
    outputs = []
    for index, item in enumerate(items):
        where = f"outputs[{index}]"
        parameters: dict[str, Parameter] = {}
        if item.parameters:
            parameters = plain_parameters(item.parameters, f"{where}.parameters")
            if parameters.get("classification") == 0:
                raise InvalidInput(
                    f"{where}.parameters.classification: expected a number over 0",
                    hint="leave it out to get the whole tensor",
                )
        outputs.append(requested_output(item.name, parameters, where))
    return tuple(outputs)
