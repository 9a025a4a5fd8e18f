"""Parameters the protocol gives a meaning: taken out, type-checked, and the rest left for the model."""

from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.protocols.kserve.shapes import INT64_MAX
from farthing.types.errors import InvalidInput, TooLarge, Unsupported
from farthing.types.requests import Parameter, RegionPart, RequestedOutput

UINT32_MAX: Final = (1 << 32) - 1
UINT64_MAX: Final = (1 << 64) - 1
CLASSES_MAX: Final = 1_000_000
"""Elements of a classification's answer; Triton's bound, kept so that a client cannot ask for a giant reply."""

SEQUENCE_ID_BYTES_MAX: Final = 128
"""Bytes of a sequence's id that is a text; Triton's bound."""

SHARED_MEMORY: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
"""A tensor's parameters that put its values into shared memory."""


class RequestOptions(msgspec.Struct, frozen=True):
    """A request's parameters, sorted."""

    parameters: dict[str, Parameter] = {}
    priority: int = 0
    timeout_us: int = 0
    binary_output: bool = False


RESERVED: Final = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
)
"""Request parameters the protocol gives a meaning, beside those that start with `triton_`."""


def is_reserved_parameter(name: str) -> bool:
    """Whether a request parameter of that name is never the model's own."""
    return name in RESERVED or name.startswith("triton_")


NO_OPTIONS: Final = RequestOptions()
"""A request without parameters."""


def request_options(parameters: Mapping[str, Parameter]) -> RequestOptions:
    """Reserved parameters by their meaning, all others as the model will see them."""
    others: dict[str, Parameter] = {}
    priority = timeout_us = 0
    binary_output = False
    for name, value in parameters.items():
        where = f"parameters.{name[:80]}"
        match name:
            case "priority":
                priority = _uint(value, where, UINT32_MAX)
            case "timeout":
                timeout_us = _uint(value, where, INT64_MAX)
            case "binary_data_output":
                binary_output = _bool(value, where)
            case "sequence_id":
                others[name] = _sequence_id(value, where)
            case "sequence_start" | "sequence_end":
                others[name] = _bool(value, where)
            case _:
                if name.startswith("triton_") or name == "headers":
                    raise InvalidInput(
                        f"{where}: this name is reserved", hint="names starting with `triton_` are the server's own"
                    )
                if type(value) is int and not -INT64_MAX - 1 <= value <= UINT64_MAX:
                    raise InvalidInput(f"{where}: an integer parameter must fit 64 bits")
                others[name] = value
    return RequestOptions(others, priority, timeout_us, binary_output)


def requested_output(name: str, parameters: Mapping[str, Parameter] | None, where: str) -> RequestedOutput:
    """One entry of `outputs`."""
    if not parameters:
        return RequestedOutput(name)
    classes, is_binary = 0, None
    if "classification" in parameters:
        classes = _uint(parameters["classification"], f"{where}.parameters.classification", INT64_MAX)
        if classes >= CLASSES_MAX:
            raise TooLarge(
                f"{where}.parameters.classification: {classes} classes; classification output tensor too large, "
                f"the limit is {CLASSES_MAX - 1}"
            )
    if "binary_data" in parameters:
        is_binary = _bool(parameters["binary_data"], f"{where}.parameters.binary_data")
    if has_shared_memory(parameters):
        if classes:
            raise InvalidInput(f"{where}: `classification` cannot be written to shared memory; give one of the two")
        if is_binary:
            raise InvalidInput(f"{where}: `binary_data` and `shared_memory_region` contradict; give one of the two")
        return RequestedOutput(name, part=region_part(parameters, where))
    return RequestedOutput(name, classes, is_binary)


def binary_size(parameters: Mapping[str, Parameter] | None, where: str) -> int | None:
    """What an input's `binary_data_size` says; None if it is not there."""
    if not parameters or "binary_data_size" not in parameters:
        return None
    return _uint(parameters["binary_data_size"], f"{where}.parameters.binary_data_size", INT64_MAX)


def has_shared_memory(parameters: Mapping[str, Parameter] | None) -> bool:
    return parameters is not None and any(name in parameters for name in SHARED_MEMORY)


def region_part(parameters: Mapping[str, Parameter], where: str) -> RegionPart:
    """Where a tensor's parameters put it. Raises `InvalidInput`."""
    region, offset, size = (parameters.get(name) for name in SHARED_MEMORY)
    if not isinstance(region, str) or not region:
        raise InvalidInput(f"{where}.parameters.shared_memory_region: expected the name of a registered region")
    if size is None:
        raise InvalidInput(f"{where}.parameters: `shared_memory_byte_size` is missing beside `shared_memory_region`")
    return RegionPart(
        region,
        _uint(offset if offset is not None else 0, f"{where}.parameters.shared_memory_offset", INT64_MAX),
        _uint(size, f"{where}.parameters.shared_memory_byte_size", INT64_MAX),
    )


def check_shared_size(part: RegionPart, name: str, needed: int, datatype: str, where: str) -> None:
    """Raises `InvalidInput` unless an input's part has the bytes its shape needs."""
    if part.byte_size != needed and (datatype != "BYTES" or part.byte_size < needed):
        raise InvalidInput(
            f"{where}: input byte size mismatch for input '{name}'. Expected {needed}"
            f"{' or more' if datatype == 'BYTES' else ''}, got {part.byte_size}",
            hint="`shared_memory_byte_size` is the number of elements in `shape` times the bytes of one",
        )


def check_shared_total(size: int, limit: int) -> None:
    """Raises `TooLarge` when a request's inputs in shared memory are more than a body may be."""
    if size > limit:
        raise TooLarge(
            f"the inputs in shared memory are {size} bytes, which exceeds the maximum allowed input size of {limit}",
            hint="send fewer rows a request, or raise the server's limit on request bodies",
        )


def no_shared_memory(where: str) -> Unsupported:
    return Unsupported(
        f"{where}: tensors in shared memory are not supported by this server: client shared memory is disabled",
        hint="send them as binary tensors, or start the server with --model-control-mode explicit",
    )


def _uint(value: Parameter, where: str, high: int) -> int:
    if type(value) is not int or not 0 <= value <= high:
        raise InvalidInput(f"{where}: expected an unsigned integer up to {high}, got {_kind(value)}")
    return value


def _sequence_id(value: Parameter, where: str) -> Parameter:
    if not isinstance(value, str):
        return _uint(value, where, UINT64_MAX)
    if len(value.encode(errors="surrogatepass")) > SEQUENCE_ID_BYTES_MAX:
        raise TooLarge(f"{where}: string correlation ID cannot exceed {SEQUENCE_ID_BYTES_MAX} bytes")
    return value


def _bool(value: Parameter, where: str) -> bool:
    if type(value) is not bool:
        raise InvalidInput(f"{where}: expected true or false, got {_kind(value)}")
    return value


def _kind(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, float):
        return f"the fraction {value!r}"
    return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
