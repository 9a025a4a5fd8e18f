"""The module that Triton's Python models import as `triton_python_backend_utils`.

Names, arguments and return values are Triton's (its documentation, "Python Backend"); the code is ours. What is not
offered (custom metrics, loading models) says so. `triton_model` drives a `TritonPythonModel` with these,
`stream_triton` a decoupled one; requests that it sends to other models go through `triton_subrequests`.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from farthing.engines.python import triton_config, triton_log
from farthing.engines.python.channel import encode_bytes
from farthing.types.tensors import DATATYPES, NUMPY_DTYPES
from farthing.types.tensors import Tensor as Array

Logger = triton_log.Logger
LogLevel = Logger
ModelConfig = triton_config.ModelConfig
get_input_config_by_name = triton_config.get_input_config_by_name
get_output_config_by_name = triton_config.get_output_config_by_name
using_decoupled_model_transaction_policy = triton_config.using_decoupled_model_transaction_policy

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: Final = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: Final = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL: Final = 1
TRITONSERVER_REQUEST_RELEASE_ALL: Final = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: Final = 2
TRITONSERVER_MEMORY_CPU: Final = 0
TRITONSERVER_MEMORY_GPU: Final = 2

# Triton's numbers of its datatypes (TRITONSERVER_DataType); BYTES is called STRING in configurations.
_NUMBERED: Final = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES", "BF16"),
)
TRITON_STRING_TO_NUMPY: Final[dict[str, Any]] = {
    f"TYPE_{'STRING' if name == 'BYTES' else name}": bool if name == "BOOL" else dtype.type
    for name, dtype in NUMPY_DTYPES.items()
}


class TritonModelException(Exception):
    """What a model raises to fail with a message of its own."""


def _not_offered(what: str) -> TritonModelException:
    return TritonModelException(f"{what} is not offered by this server")


class TritonError:
    """A request's failure: a message and one of Triton's codes."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str = "", code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = int(code)

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code

    def __str__(self) -> str:
        return self._message


class Tensor:
    """A named array on the CPU."""

    __slots__ = ("_array", "_name")

    def __init__(self, name: str, tensor: Array) -> None:
        if not isinstance(tensor, np.ndarray):
            raise TritonModelException(f"tensor `{name}` is made of a {type(tensor).__name__}; allowed: numpy array")
        if tensor.dtype.kind in "US":
            tensor = tensor.astype(object)
        if tensor.dtype not in DATATYPES:
            raise TritonModelException(f"tensor `{name}` has dtype {tensor.dtype}, which Triton does not know")
        self._name = name
        self._array = tensor

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array

    def triton_dtype(self) -> int:
        return _NUMBERED.index(DATATYPES[self._array.dtype])

    def is_cpu(self) -> bool:
        return True

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def to_dlpack(self) -> Any:
        return self._array.__dlpack__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**{k: v for k, v in options.items() if v is not None})

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    @staticmethod
    def from_dlpack(name: str, source: Any) -> "Tensor":
        """A tensor that shares memory with a CPU tensor of another library, given itself or its capsule."""
        sharer: Any = source if hasattr(source, "__dlpack__") else _Capsule(source)
        return Tensor(name, np.from_dlpack(sharer))


class _Capsule:
    """A bare DLPack capsule, dressed as numpy wants it."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


class PreferredMemory:
    """Where answers are best put: here, always the CPU."""

    def __init__(self, preferred_memory_type: int = TRITONSERVER_MEMORY_CPU, preferred_device_id: int = 0) -> None:
        self._type = preferred_memory_type
        self._device = preferred_device_id

    def preferred_memory_type(self) -> int:
        return self._type

    def preferred_device_id(self) -> int:
        return self._device


class InferenceTrace:
    """A request's trace: none is recorded in here, but a request made with it is made on that one's behalf."""

    def __init__(self, place: int = -1, stream: int = 0) -> None:
        self.place = place
        """The request's place in its batch; -1: none."""
        self.stream = stream
        """Its number, if it is answered by a sender; else 0."""

    def get_context(self) -> str | None:
        return None


class InferenceRequest:
    """One request: one that `execute` gets, or one that it makes to send to another model."""

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        inputs: Sequence[Tensor] = (),
        flags: int = 0,
        timeout: int = 0,
        parameters: Mapping[str, Any] | str | None = None,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
    ) -> None:
        if any(not isinstance(tensor, Tensor) for tensor in inputs):
            raise TritonModelException("inputs holds something that is no pb_utils.Tensor")
        if not isinstance(parameters, Mapping):
            parameters = json.loads(parameters) if parameters else {}
        self._id = request_id
        self._correlation_id = correlation_id
        self._output_names = list(requested_output_names)
        self._model_name = model_name
        self._model_version = model_version
        self._inputs = list(inputs)
        self._flags = flags
        self._timeout = timeout
        self.parameter_values: dict[str, Any] = dict(parameters)
        """As given: `parameters` has to answer with JSON, as Triton's does."""
        self._memory = preferred_memory or PreferredMemory()
        self.is_rescheduled = False
        """It is to run again (`set_release_flags`)."""
        self._trace = trace or InferenceTrace()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        return self._output_names

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        return self._timeout

    def parameters(self) -> str:
        """The request's parameters as a JSON object."""
        return json.dumps(self.parameter_values)

    def preferred_memory(self) -> PreferredMemory:
        return self._memory

    def trace(self) -> InferenceTrace:
        return self._trace

    def is_cancelled(self) -> bool:
        """Whether the client has gone. Never said here: a batch whose answers go back together is run to its end."""
        return False

    def set_release_flags(self, flags: int) -> None:
        """Whether this run is the request's last; models with `iterative_sequence` may have it run again."""
        if flags not in (TRITONSERVER_REQUEST_RELEASE_ALL, TRITONSERVER_REQUEST_RELEASE_RESCHEDULE):
            raise TritonModelException(
                f"release flags are {flags}; allowed: TRITONSERVER_REQUEST_RELEASE_ALL, "
                "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE"
            )
        self.is_rescheduled = flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE

    def get_response_sender(self) -> Any:
        raise TritonModelException(
            "a response sender is for decoupled models: set model_transaction_policy { decoupled: true }"
        )

    def exec(self, decoupled: bool = False) -> "InferenceResponse | Iterator[InferenceResponse]":
        """Sends the request to its model and waits for the response, which may be an error.

        With `decoupled`, an iterator of its responses, however many; letting go of it withdraws the request.
        """
        from farthing.engines.python import triton_subrequests  # which imports this

        if decoupled:
            return triton_subrequests.draw(self)
        return triton_subrequests.execute(self)

    async def async_exec(self, decoupled: bool = False) -> "InferenceResponse | Iterator[InferenceResponse]":
        """The same for coroutines, where several requests can be under way.

        As Triton's, the iterator of responses blocks; `async for` goes over it without.
        """
        from farthing.engines.python import triton_subrequests  # which imports this

        if decoupled:
            return await triton_subrequests.draw_async(self)
        return await triton_subrequests.execute_async(self)


class InferenceResponse:
    """A request's answer: output tensors, or an error."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | str | None = None,
    ) -> None:
        if isinstance(error, str):
            error = TritonError(error)
        if any(not isinstance(tensor, Tensor) for tensor in output_tensors):
            raise TritonModelException("output_tensors holds something that is no pb_utils.Tensor")
        parsed = json.loads(parameters or "{}") if isinstance(parameters, str) else dict(parameters or {})
        for key, value in parsed.items():
            if not isinstance(key, str) or not isinstance(value, str | bool | int | float):
                raise TritonModelException(
                    f"response parameter {key!r} is a {type(value).__name__}; allowed: str, bool, int, float by name"
                )
        self._tensors = list(output_tensors)
        self._error = error
        self.parameter_values: dict[str, Any] = parsed
        """As given: `parameters` has to answer with JSON, as Triton's does."""

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """The response's parameters as a JSON object."""
        return json.dumps(self.parameter_values)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The request's input of that name, or None."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The response's output of that name, or None."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """`TYPE_FP32` -> `numpy.float32`. Raises `KeyError`."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """Triton's number of a datatype -> the numpy type; None for no such number."""
    name = _NUMBERED[data_type] if 0 < data_type < len(_NUMBERED) else ""
    return np.bool_ if name == "BOOL" else NUMPY_DTYPES[name].type if name else None


def numpy_to_triton_type(data_type: Any) -> int | None:
    """A numpy type -> Triton's number of the datatype; None if Triton has none."""
    dtype = np.dtype(data_type)
    name = "BYTES" if dtype.kind == "S" else DATATYPES.get(dtype)
    return _NUMBERED.index(name) if name else None


def serialize_byte_tensor(input_tensor: Array) -> bytes | tuple[()] | None:
    """The elements of a BYTES tensor, each behind its length; None for an array of anything else."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    elements = [e if isinstance(e, bytes) else str(e) for e in input_tensor.ravel().tolist()]
    array: Array = np.empty(len(elements), object)
    array[:] = elements
    return encode_bytes("input_tensor", array)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The elements of an encoded BYTES tensor, in one dimension."""
    elements: list[bytes] = []
    at = 0
    while at < len(encoded_tensor):
        start = at + 4
        at = start + struct.unpack_from("<I", encoded_tensor, at)[0]
        if at > len(encoded_tensor):
            raise ValueError(f"element {len(elements)} is cut off")
        elements.append(bytes(encoded_tensor[start:at]))
    array: Array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _refused(what: str) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise _not_offered(what)

    return refuse


MetricFamily: Final = _refused("a custom metric (MetricFamily)")
Metric: Final = _refused("a custom metric (Metric)")
load_model: Final = _refused("loading a model from a model (load_model)")
unload_model: Final = _refused("unloading a model from a model (unload_model)")
is_model_ready: Final = _refused("asking for another model (is_model_ready)")
