"""Triton's generate extension on models of tensors: one flat JSON object in, one out, or a stream of them.

    {"n": 3, "word": "tick", "delay": [0, 1, 2], "id": "a", "parameters": {"seed": 7}}

A member that names an input of the model is that tensor, a scalar or a flat list; any other is a request parameter, as
those in `parameters` are. In the answer each output stands under its name, and one of a single element is that element.
"""

import json
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from farthing.protocols.kserve.json_tensor import json_from_tensor, tensor_from_json
from farthing.protocols.kserve.limits import ID_CHARACTERS_MAX, WireLimits
from farthing.protocols.kserve.parameters import request_options
from farthing.protocols.kserve.shapes import ITEM_BYTES
from farthing.types.errors import AlreadyExists, FarthingError, InvalidInput, TooLarge
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Parameter
from farthing.types.tensors import DATATYPES, Tensor, TensorSpec

PARAMETERS: Final = "parameters"
WHAT: Final = "failed to parse the request JSON buffer"
BINARY_ONLY: Final = ("FP16", "BF16")
"""Written as the FP32 of the same value, which JSON has words for."""

_encode = msgspec.json.Encoder().encode


def parse_members(body: bytes | memoryview) -> dict[str, Any]:
    """The object in a body. Raises `InvalidInput` for what is no JSON object, `AlreadyExists` for a repeated key."""
    try:
        said = json.loads(bytes(body), object_pairs_hook=_no_key_twice)
        if b"\\u" in bytes(body):
            json.dumps(said, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except FarthingError:
        raise
    except UnicodeError:
        raise InvalidInput(f"{WHAT}: not UTF-8, or half a surrogate pair in a string") from None
    except RecursionError:
        raise InvalidInput(f"{WHAT}: arrays or objects are nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(f"{WHAT}: {str(error)[:200]}") from None
    if not isinstance(said, dict):
        raise InvalidInput(f"{WHAT}: expected an object, got {_kind(said)}")
    return said


def generate_request(said: dict[str, Any], spec: ModelSpec, *, model_version: str, limits: WireLimits) -> InferRequest:
    """The request that an object means to a model. Raises `InvalidInput` naming the member that is wrong."""
    inputs: dict[str, Tensor] = {}
    parameters: dict[str, Parameter] = {}
    specs = {tensor.name: tensor for tensor in spec.inputs}
    request_id = ""
    for key, value in said.items():
        if key in specs and key != PARAMETERS:
            inputs[key] = _tensor(specs[key], value, limits)
        elif key == PARAMETERS:
            if key in specs:
                raise InvalidInput(
                    f"model `{spec.name}` has an input `{PARAMETERS}`, and so have all requests, for parameters",
                    hint=f"POST /v2/models/{spec.name}/infer",
                )
            if not isinstance(value, dict):
                raise InvalidInput(f"`{PARAMETERS}`: expected an object, got {_kind(value)}")
            for name, inner in value.items():
                _add(parameters, name, inner, f"{PARAMETERS}.{name}")
        elif key == "id":
            if not isinstance(value, str) or len(value) > ID_CHARACTERS_MAX:
                raise InvalidInput(f"`id`: expected a string of at most {ID_CHARACTERS_MAX} characters")
            request_id = value
        else:
            _add(parameters, key, value, key)
    options = request_options(parameters)
    return InferRequest(
        model_name=spec.name,
        model_version=model_version,
        id=request_id,
        inputs=inputs,
        parameters=options.parameters,
        priority=options.priority,
        timeout_us=options.timeout_us,
    )


def generate_answer(response: InferResponse) -> bytes:
    """The answer, compact. Raises `InvalidInput` for an output that JSON cannot say."""
    heading: dict[str, Any] = {"id": response.id} if response.id else {}
    heading |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        heading[PARAMETERS] = dict(response.parameters)
    parts = [_encode(heading).removesuffix(b"}")]
    for name, tensor in response.outputs.items():
        shown = tensor.astype(np.float32) if DATATYPES[tensor.dtype] in BINARY_ONLY else tensor
        text = json_from_tensor(shown, name)
        parts += (b",", _encode(name), b":", text[1:-1] if tensor.size == 1 else text)
    return b"".join((*parts, b"}"))


def shape_of(elements: int, spec: TensorSpec) -> tuple[int, ...]:
    """The shape of so many elements given flat: the innermost free dimension takes what the fixed ones leave.

    Other free dimensions are 1. Raises `InvalidInput` if they do not fill it.
    """
    fixed = prod(dimension for dimension in spec.shape if dimension >= 0)
    free = [place for place, dimension in enumerate(spec.shape) if dimension < 0]
    left, over = divmod(elements, fixed) if fixed else (0, elements)
    if over or (not free and left != 1 and fixed):
        raise InvalidInput(
            f"`{spec.name}`: {elements} elements do not fill shape {list(spec.shape)}",
            hint="a list stands for the whole tensor, row by row",
        )
    shape = [1 if dimension < 0 else dimension for dimension in spec.shape]
    if free:
        shape[free[-1]] = left
    return tuple(shape)


def _tensor(spec: TensorSpec, value: object, limits: WireLimits) -> Tensor:
    values: Sequence[object] = value if isinstance(value, list) else [value]
    for element in values:
        if not isinstance(element, str | int | float):
            where = f"`{spec.name}`" if value is element else f"`{spec.name}`: an element"
            raise InvalidInput(f"{where} is {_kind(element)}; expected a string, number or boolean, or a flat list")
    if len(values) * ITEM_BYTES[spec.datatype] > limits.body_bytes_max:
        raise TooLarge(f"`{spec.name}`: {len(values)} elements are more than {limits.body_bytes_max} bytes")
    shape = shape_of(len(values), spec)
    try:
        return tensor_from_json(list(values), spec.datatype, shape, len(values), 0)
    except InvalidInput as error:
        raise InvalidInput(error.message.replace("inputs[0].data", f"`{spec.name}`"), hint=error.hint) from None


def _add(parameters: dict[str, Parameter], name: str, value: object, where: str) -> None:
    if name in parameters:
        raise AlreadyExists(f"{where[:80]}: stands in the object and in `{PARAMETERS}`")
    if not isinstance(value, str | int | float):
        raise InvalidInput(f"`{where[:80]}` is {_kind(value)}; a parameter is a string, number or boolean")
    parameters[name] = value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise AlreadyExists(f"key `{twice[:80]}` already exists in request")
    return members


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return "a string" if isinstance(value, str) else "a number or boolean"
