"""What a language model is asked for with tensors: the words of the generate extension, as inputs of one element each.

`text_input`, `stream`, `exclude_input_in_output` and `sampling_parameters` as Triton's vLLM backend names them; every
other word of the extension (`max_tokens`, `temperature`, `stop` and so on) may be an input too, or a parameter.
"""

from typing import Any, Final

import msgspec

from farthing.protocols.kserve.generate import GenerateFields, parse_generate
from farthing.types.errors import InvalidField
from farthing.types.requests import InferRequest, Parameter
from farthing.types.tensors import Tensor

TEXTS: Final = ("text_input", "sampling_parameters", "cache_salt")
SWITCHES: Final = (
    "stream", "exclude_input_in_output", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "details"
)  # fmt: skip
WHOLE: Final = ("max_tokens", "min_tokens", "seed", "top_k", "priority")
FRACTIONS: Final = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
LISTS: Final = ("stop", "stop_token_ids")
"""Inputs of any number of elements."""
NAMES: Final = (*TEXTS, *SWITCHES, *WHOLE, *FRACTIONS, *LISTS)

_encode: Final = msgspec.json.Encoder().encode


def asked_generation(request: InferRequest) -> GenerateFields:
    """What a language model is asked for; `stream` is true unless it is said not to be. Raises `InvalidField`."""
    said: dict[str, Parameter | list[Any]] = dict(request.parameters)
    for name, tensor in request.inputs.items():
        said[name] = _value(name, tensor)
    streams = said.pop("stream", True)
    fields = parse_generate(_encode(said))
    return msgspec.structs.replace(fields, stream=bool(streams))


def _value(name: str, tensor: Tensor) -> Any:
    if name in LISTS:
        return [_word(name, element) for element in tensor.reshape(-1).tolist()]
    if name not in NAMES:
        raise InvalidField(
            f"unexpected inference input '{name}': a language model takes {', '.join(NAMES)}", field=name
        )
    if tensor.size != 1:
        raise InvalidField(f"input '{name}' has shape {list(tensor.shape)}; expected one element", field=name)
    value = tensor.reshape(-1).tolist()[0]
    if name in TEXTS:
        if not isinstance(value, bytes):
            raise InvalidField(f"input '{name}' is {tensor.dtype}; expected BYTES", field=name)
        return _word(name, value)
    if isinstance(value, bytes):
        raise InvalidField(f"input '{name}' is BYTES; expected a number", field=name)
    if name in SWITCHES:
        return bool(value)
    return float(f"{value:.7g}") if tensor.dtype == "f4" else value  # 0.7 as it was meant, not as it is rounded


def _word(name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidField(f"input '{name}' is not UTF-8", field=name) from None
