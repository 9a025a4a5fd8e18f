"""OpenVINO IR (`.xml` with its `.bin`), and ONNX where the configuration says so, run by OpenVINO on the CPU.

Each instance is compiled for itself, with one stream: then OpenVINO computes on the thread that asks. With a stream an
instance in one compiled model it hands each run to threads of its own and back, which on two busy cores cost 0.4 ms of
a run of 2. Weights are held once an instance so; models whose weights would then take too much share one. An ONNX file
is checked by `onnx_file`, as for ONNX Runtime.

Parameters of a model's configuration that are read here: `precision` (`f32`, the default, `bf16` or `f16`) and
`INFERENCE_NUM_THREADS` (of one instance; default: the cores shared among the instances).
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from farthing.engines.contract import Answer, Batch, ModelSource
from farthing.engines.cores import count_parameter, threads_per_instance
from farthing.engines.failure import reason_of, shown
from farthing.engines.onnx_file import check_onnx_file, onnx_file
from farthing.engines.safety import companion_file
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, LoadFailed
from farthing.types.tensors import Tensor, TensorSpec

DATATYPES: Final = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}
"""OpenVINO's type names -> the protocol's. No BYTES: passing string tensors ended the process (2026.4)."""

PRECISIONS: Final = ("f32", "bf16", "f16")
"""What `precision` may say. Left to itself OpenVINO takes bf16 where the processor has it, and answers change (95 %
of EfficientNet-Lite0's top classes kept): a choice to be made, not met."""

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

SHAPES_KNOWN_MAX: Final = 10_000
"""Combinations of input shapes remembered as good; then the memory of them starts anew. Some 200 bytes each."""

APART_BYTES_MAX: Final = 1 << 30
"""Of the weights of all instances together; above it they share one compiled model."""

XML_HEAD_BYTES: Final = 4096
"""How far into a file the `<net` of an IR is looked for; comments may come first."""


class OpenVino:
    """Loads `.xml`, and `.onnx` if asked."""

    name = "openvino"
    aliases = ("openvino_ir", "openvino_onnx")
    default_filenames = ("model.xml",)
    suffixes = (".xml",)

    def recognises(self, path: Path) -> bool:
        """An `.xml` file whose first element is `<net`."""
        if path.suffix.lower() != ".xml":
            return False
        try:
            with path.open("rb") as file:
                return b"<net" in file.read(XML_HEAD_BYTES)
        except OSError:
            return False

    def load(self, source: ModelSource) -> "OpenVinoExecutable":
        """Checks the files, compiles the model. Raises `LoadFailed`."""
        path = onnx_file(source)
        _config(source, path, streams=1)  # what is wrong in it is said before anything is read
        weights = _checked_weights(path, source.folder)
        try:
            import openvino
        except ImportError as error:
            raise LoadFailed(
                f"{path}: needs OpenVINO, which cannot be imported: {error}", hint="pip install 'farthing[openvino]'"
            ) from error
        core = openvino.Core()
        # Mapped weights of a file that is overwritten in place would end the process with SIGBUS.
        core.set_property({"ENABLE_MMAP": False})
        try:
            model = core.read_model(str(path), str(weights)) if weights else core.read_model(str(path))
            _refuse_shapes_told_by_values(model, path)
            apart_max = APART_BYTES_MAX // max(1, _weight_bytes(model))
            is_apart = source.instances <= apart_max
            config = _config(source, path, streams=1 if is_apart else source.instances)
            compiling = partial(core.compile_model, model, "CPU", config)
            return OpenVinoExecutable(compiling, model, source, path, apart_max=apart_max if is_apart else 1)
        except LoadFailed:
            raise
        except Exception as error:  # RuntimeError mostly, but its types are not documented
            raise LoadFailed(
                f"{path}: OpenVINO cannot load it: {reason_of(error)}",
                hint="check that the file and its .bin are whole and belong together",
            ) from error


def _checked_weights(path: Path, folder: Path) -> Path | None:
    """The `.bin` beside an IR; None for ONNX files, whose own external data is checked, and IR without weights."""
    if path.suffix.lower() == ".onnx":
        check_onnx_file(path, folder)
        return None
    if not path.is_file():
        raise LoadFailed(f"{path}: no such file, or not a regular one")
    weights = path.with_suffix(".bin")
    if not weights.is_symlink() and not weights.exists():
        return None  # a graph without constants is whole without; for others OpenVINO says that it is missing
    return companion_file(weights.name, of=path, folder=folder)


def _config(source: ModelSource, path: Path, *, streams: int) -> dict[str, Any]:
    precision = source.parameters.get("precision", PRECISIONS[0]).lower()
    if precision not in PRECISIONS:
        raise LoadFailed(f"{path}: parameter `precision` is `{shown(precision)}`; allowed: {', '.join(PRECISIONS)}")
    threads = count_parameter(source.parameters, "INFERENCE_NUM_THREADS", threads_per_instance(source), path)
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads * streams,
        # Pinning would tie the calling thread, perhaps the event loop's, and every model's pool to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _weight_bytes(model: Any) -> int:
    """Of all constants, wherever they are stored."""
    return sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")


SHAPED_BY_VALUES: Final = ("Reshape", "Broadcast")
"""Operators that fail where the shape they are told (their second input) does not fit what they are given."""


def _refuse_shapes_told_by_values(model: Any, path: Path) -> None:
    """Raises `LoadFailed` for a model in which an input's values, not shapes, tell a tensor's shape.

    Values that do not fit are noticed once at most: the CPU plug-in then works on with the shape of the request
    before, and on one thread it has ended the process (2026.4).
    """
    for node in model.get_ops():
        if node.get_type_name() in SHAPED_BY_VALUES and (told_by := _input_told(node.input_value(1).get_node())):
            raise LoadFailed(
                f"{path}: `{node.get_friendly_name()}` takes its shape from the values of input `{told_by}`; "
                "OpenVINO answers wrongly when they do not fit",
                hint="serve the ONNX model with `backend: onnxruntime`",
            )


def _input_told(node: Any) -> str:
    """The model's input whose values reach `node`; empty when none does: what a tensor's shape tells is no value."""
    seen, ahead = set(), [node]
    while ahead:
        at = ahead.pop()
        kind, name = at.get_type_name(), at.get_friendly_name()
        if kind == "Parameter":
            return str(name)
        if name not in seen and kind != "ShapeOf":
            seen.add(name)
            ahead += [value.get_node() for value in at.input_values()]
    return ""


class _ShapesRefusedError(Exception):
    """The model's operators cannot work on inputs of these shapes."""


class _Shapes:
    """Which shapes of its inputs a model with free dimensions can work on.

    With a free dimension that turns out wrong the CPU plug-in does not fail: a MatMul whose columns are not its
    weights' rows reads memory beyond the input and answers with what it finds there, perhaps another client's data
    (2026.4). OpenVINO's own shape inference does notice, so each new combination of shapes goes through it once.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: set[tuple[tuple[int, ...], ...]] = set()
        self._lock = threading.Lock()

    def check(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        if shapes in self._known:
            return
        with self._lock:
            try:
                self._model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            except RuntimeError as error:
                raise _ShapesRefusedError(str(error)) from error
            if len(self._known) >= SHAPES_KNOWN_MAX:
                self._known.clear()
            self._known.add(shapes)


class OpenVinoExecutable:
    """A compiled model with one infer request for each instance."""

    platform = "openvino"
    batch_rows_max: int | None = None
    is_pure = True
    can_run_on_event_loop = True

    def __init__(
        self, compile_: Callable[[], Any], model: Any, source: ModelSource, path: Path, *, apart_max: int
    ) -> None:
        """So many instances at most are compiled for themselves; further ones share the last of them."""
        from openvino import Shape, Tensor, Type

        self._tensor, self._shape, self._bf16 = Tensor, Shape, Type.bf16
        self._name = source.name
        compiled = compile_()
        if not compiled.outputs:
            raise LoadFailed(f"{path}: the model has no outputs")
        inputs = _specs("input", compiled.inputs, model.inputs, source.inputs, path)
        taken = {spec.name for spec in inputs}
        outputs = _specs("output", compiled.outputs, model.outputs, source.outputs, path, taken)
        self.inputs, self.outputs = inputs, outputs
        # OpenVINO keeps no dimension names: a free first dimension may be a batch, or may not.
        may_be_batch = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        self.batch_axis = None if may_be_batch else False
        is_free = any(-1 in spec.shape for spec in inputs)  # fixed shapes are checked as tensors are set
        self._shapes = _Shapes(model) if is_free else None
        self._input_at = {spec.name: i for i, spec in enumerate(inputs)}
        self._output_at = {spec.name: i for i, spec in enumerate(outputs)}
        self._compile = compile_
        self._apart_max = apart_max
        self._compiled = [compiled]
        self._requests: list[Any] = []
        self.resize(source.instances)

    def execute(self, batch: Batch, instance: int) -> Answer:
        """Runs the batch on the instance's own request. All outputs are computed, the wanted ones copied out."""
        request, inputs = self._requests[instance], batch.inputs
        if inputs.keys() != self._input_at.keys():
            raise self._wrong_inputs(inputs)
        try:
            # Tensors set by hand and an `infer()` without arguments: 14 us for the MLP 32-64-8, where `infer(dict)`
            # takes 24, `infer(dict, share_inputs=True)` 17 and an asynchronous call 72.
            for name, tensor in inputs.items():
                request.set_input_tensor(self._input_at[name], self._lent(tensor))
            if self._shapes is not None:
                self._shapes.check(tuple(inputs[name].shape for name in self._input_at))
            request.infer()
            # The request writes its next answer into the same memory: what leaves here is a copy.
            return {name: self._taken_out(request, name) for name in batch.outputs}
        except Exception as error:
            raise self._failure(error) from error

    def _lent(self, tensor: Tensor) -> Any:
        if tensor.dtype == BFLOAT16:
            return self._tensor(tensor.view(np.uint16), self._shape(tensor.shape), self._bf16)
        # Memory that must not be written, such as a request's own body, is not shared but copied.
        return self._tensor(tensor, shared_memory=tensor.flags.writeable)

    def _taken_out(self, request: Any, name: str) -> Tensor:
        at = self._output_at[name]
        copy: Tensor = request.get_output_tensor(at).data.copy()
        # numpy has no bf16 of its own, so OpenVINO shows the bits as float16.
        return copy.view(BFLOAT16) if self.outputs[at].datatype == "BF16" else copy

    def _wrong_inputs(self, inputs: Mapping[str, Tensor]) -> InvalidInput:
        allowed, found = (", ".join(f"`{name}`" for name in names) for names in (self._input_at, inputs))
        return InvalidInput(f"model `{self._name}`: inputs are {allowed}; the request has {found or 'none'}")

    def _failure(self, error: Exception) -> FarthingError:
        # One exception type for everything; refusing a tensor before the run begins is about what the request brought.
        if isinstance(error, _ShapesRefusedError) or "set the input tensor" in str(error) or "set tensor" in str(error):
            hint = f"GET v2/models/{self._name} shows names, datatypes and shapes"
            return InvalidInput(f"model `{self._name}`: {reason_of(error)}", hint=hint)
        return EngineFailed(f"model `{self._name}` failed: {reason_of(error)}")

    def health(self) -> str:
        """Always well: an infer request has no life of its own."""
        return ""

    def resize(self, instances: int) -> None:
        """A request an instance, compiled for itself or of the model that all share."""
        while len(self._requests) < instances:
            if len(self._compiled) == len(self._requests) < self._apart_max:
                try:
                    self._compiled.append(self._compile())
                except Exception as error:
                    reason = reason_of(error)
                    raise LoadFailed(
                        f"model `{self._name}`: OpenVINO cannot make one more instance: {reason}"
                    ) from error
            self._requests.append(self._compiled[-1].create_infer_request())
        del self._requests[instances:]
        del self._compiled[max(1, instances) :]

    def close(self) -> None:
        """Lets go of the requests, and with the last of them of the compiled model."""
        self._requests.clear()
        self._compiled.clear()


def _specs(
    kind: str,
    ports: Iterable[Any],
    read: Iterable[Any],
    configured: Iterable[TensorSpec],
    path: Path,
    taken: Iterable[str] = (),
) -> tuple[TensorSpec, ...]:
    known = {spec.name: spec for spec in configured}
    return tuple(
        _spec(kind, port, known, frozenset(own.get_names()), path, frozenset(taken))
        for port, own in zip(ports, read, strict=True)
    )


def _spec(
    kind: str,
    port: Any,
    configured: Mapping[str, TensorSpec],
    own: frozenset[str],
    path: Path,
    taken: frozenset[str],
) -> TensorSpec:
    # A port may have several names, or none; an input passed straight through may lend the output its own, and
    # compiling adds those of tensors that were merged with it to the `own` ones of the file.
    names = sorted(port.get_names(), key=lambda name: (name not in configured, name not in own, name in taken, name))
    name = names[0] if names else port.node.friendly_name
    type_name = port.get_element_type().get_type_name()
    if type_name not in DATATYPES:
        raise LoadFailed(
            f"{path}: {kind} `{name}` has type {type_name}; with OpenVINO these are served: {', '.join(DATATYPES)}",
            hint="serve the ONNX model with `backend: onnxruntime`, which takes text" if type_name == "string" else "",
        )
    dimensions = port.get_partial_shape()
    if not dimensions.rank.is_dynamic:
        shape = tuple(-1 if d.is_dynamic else d.get_length() for d in dimensions)
    elif name in configured:
        shape = configured[name].shape
    else:
        raise LoadFailed(
            f"{path}: does not say how many dimensions {kind} `{name}` has",
            hint=f"state the dims of this {kind} in the model's configuration",
        )
    return TensorSpec(name=name, datatype=DATATYPES[type_name], shape=shape)
