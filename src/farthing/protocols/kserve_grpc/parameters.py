"""`InferParameter` maps to plain values and back."""

from collections.abc import Mapping
from typing import Any, Final

from farthing.protocols.kserve.shapes import INT64_MAX
from farthing.types.errors import InvalidInput
from farthing.types.requests import Parameter

MEANINGLESS: Final = frozenset(("binary_data", "binary_data_output", "binary_data_size"))
"""Parameters that choose between JSON and binary over HTTP. Here every tensor is binary, and they are passed over."""


def plain_parameters(parameters: Mapping[str, Any], where: str) -> dict[str, Parameter]:
    """Values by name. Raises `InvalidInput` naming the parameter that has none."""
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        if name in MEANINGLESS:
            continue
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(
                f"{where}.{name[:80]}: the parameter has no value",
                hint="set one of bool_param, int64_param, uint64_param, double_param and string_param",
            )
        values[name] = getattr(parameter, kind)
    return values


def write_parameter(parameter: Any, value: Parameter) -> None:
    """Sets the field of an `InferParameter` that its value belongs in."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif value <= INT64_MAX:
        parameter.int64_param = value
    else:
        parameter.uint64_param = value
