"""A `ModelInferRequest` to an `InferRequest`: all that the message alone can tell is checked here."""

from collections.abc import Sequence
from typing import Any, Final

from farthing.protocols.kserve.decode import check_names
from farthing.protocols.kserve.limits import DIMENSIONS_MAX, ID_CHARACTERS_MAX, TENSORS_MAX, WireLimits
from farthing.protocols.kserve.parameters import (
    NO_OPTIONS,
    has_shared_memory,
    no_shared_memory,
    request_options,
    requested_output,
)
from farthing.protocols.kserve.shapes import elements_of
from farthing.protocols.kserve_grpc.contents import raw_tensor, typed_tensor
from farthing.protocols.kserve_grpc.parameters import plain_parameters
from farthing.types.errors import InvalidInput, TooLarge
from farthing.types.requests import InferRequest, Parameter, RequestedOutput
from farthing.types.tensors import Tensor

EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"
"""The one `triton_` parameter a client may send. It speaks of streams, so a lone answer passes it over."""


def decode_infer(message: Any, limits: WireLimits) -> InferRequest:
    """The request in a message. Raises `InvalidInput` or, for shared memory, `Unsupported`."""
    if len(message.id) > ID_CHARACTERS_MAX:
        raise TooLarge(f"id: {len(message.id)} characters; the limit is {ID_CHARACTERS_MAX}")
    options = NO_OPTIONS
    if message.parameters:
        values = plain_parameters(message.parameters, "parameters")
        if isinstance(values.get(EMPTY_FINAL_RESPONSE), bool):
            del values[EMPTY_FINAL_RESPONSE]
        options = request_options(values)
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_inputs(message.inputs, message.raw_input_contents, limits),
        outputs=_outputs(message.outputs) if message.outputs else (),
        parameters=options.parameters,
        priority=options.priority,
        timeout_us=options.timeout_us,
        binary_output=True,
    )


def _inputs(items: Sequence[Any], raw: Sequence[bytes], limits: WireLimits) -> dict[str, Tensor]:
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
        if item.parameters and has_shared_memory(plain_parameters(item.parameters, f"{where}.parameters")):
            if has_contents:
                raise InvalidInput(
                    f"{where}: input '{name}' has both `contents` and `shared_memory_region`; give one of the two"
                )
            raise no_shared_memory(where)
        if has_contents and raw:
            raise InvalidInput(
                f"{where}: contents field must not be specified when using raw_input_contents for '{name}'",
                hint="send all inputs in `raw_input_contents`, or all in `contents`",
            )
        if has_contents:
            inputs[name] = typed_tensor(item.contents, name, datatype, shape, elements, where)
        elif index < len(raw):
            inputs[name] = raw_tensor(raw[index], name, datatype, shape, elements, where)
        else:
            raise InvalidInput(
                f"{where}: unable to find data for input tensor '{name}'; `raw_input_contents` has {len(raw)} entries "
                f"for {len(items)} inputs",
                hint="fill `raw_input_contents`, one entry for each input in their order, or each input's `contents`",
            )
    if len(raw) > len(items):
        raise InvalidInput(
            f"unexpected additional input data: `raw_input_contents` has {len(raw)} entries for {len(items)} inputs",
            hint="send one entry for each input, in their order",
        )
    return inputs


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
