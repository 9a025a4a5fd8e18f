"""ONNX models, run by ONNX Runtime on the CPU.

One session serves all instances of a model: ONNX Runtime may be called from many threads at once, and weights are
held once. Which other files an ONNX file pulls in is checked by `onnx_file` before ONNX Runtime sees it; BF16 and
text pass through `onnxruntime_values`.

Parameters of a model's configuration that are read here, by Triton's names: `intra_op_thread_count` (threads inside
one operator; default: the cores shared among the instances) and `inter_op_thread_count` (operators run side by side;
default 1, which is one after the other); and `layout` of our own, `blocked` (the default) or `plain`.
"""

import mmap
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.engines.contract import Answer, Batch, ModelSource
from farthing.engines.cores import count_parameter, threads_per_instance
from farthing.engines.failure import reason_of, shown
from farthing.engines.onnx_file import check_onnx_file, onnx_file
from farthing.engines.onnxruntime_values import DATATYPES, Run, running_bfloat16, running_text
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, LoadFailed
from farthing.types.tensors import TensorSpec

SPIN_US: Final = 50
"""How long an idle thread of the pool looks for work before it sleeps, microseconds.
ONNX Runtime's own default burns a core for some 20 ms after every call. Twelve 3x3 convolutions, 2 threads on 2 cores,
least of ten interleaved rounds, and the CPU time of a call when 50 come a second:
    default    1.32 ms, 14 ms CPU         50 us    1.34 ms, 3.1 ms CPU
    no spin    1.80 ms, 2.7 ms CPU      1000 us    1.32 ms, 4.6 ms CPU"""

LAYOUTS: Final = ("blocked", "plain")
"""What `layout` may say: channels in blocks as wide as a register, which most convolutions run faster on, or as they
are, which saves turning them around; `farthing optimize` measures which."""

LOG_FATAL: Final = 4
"""ONNX Runtime's severity from which it may write to stderr. Its errors reach us as exceptions; as log lines they would
let any client that sends bad shapes fill the log."""

INVENTED_NAME: Final = re.compile(r"unk__\d+|.*_dim_\d+|.*_dynamic_axes_\d+|(p2o\.)?DynamicDimension\.\d+")
"""Names that exporters (tf2onnx, torch, Paddle2ONNX) make up, a new one for each dimension they do not know."""


class OnnxRuntime:
    """Loads `.onnx` files."""

    name = "onnxruntime"
    aliases = ("onnxruntime_onnx", "onnx")
    default_filenames = ("model.onnx",)
    suffixes = (".onnx",)

    def recognises(self, path: Path) -> bool:
        """By its ending: ONNX has no first bytes of its own, and a broken one should be told what is wrong with it."""
        return path.suffix.lower() == ".onnx"

    def load(self, source: ModelSource) -> "OnnxExecutable":
        """Checks the file and the files it names, then opens it. Raises `LoadFailed`."""
        path = onnx_file(source)
        external = check_onnx_file(path, source.folder)
        session = _open_session(source, path, external)
        try:
            return OnnxExecutable(session, source, path)
        except UnicodeDecodeError as error:
            raise LoadFailed(f"{path}: the name of an input, output or dimension is not UTF-8: {error}") from error


def _open_session(source: ModelSource, path: Path, external: Mapping[str, Path]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise LoadFailed(f"{path}: ONNX Runtime cannot be imported: {error}", hint="pip install onnxruntime") from error
    options = _session_options(onnxruntime, source, path)
    try:
        # ONNX Runtime would map these files for as long as it lives, and overwriting one in place would then end the
        # process with SIGBUS. It copies what it is lent for the time of loading.
        lent = [_lent(file) for file in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), lent, [len(data) for data in lent])
        # A fallback would print to stdout and load again; options stored inside a model file are not obeyed.
        return onnxruntime.InferenceSession(
            str(path),
            options,
            ["CPUExecutionProvider"],
            enable_fallback=0,
            read_config_from_model=0,
            disabled_optimizers=_disabled(source, path),
        )
    except FarthingError:
        raise
    except Exception as error:  # each of its statuses is a class of its own, straight below Exception
        raise LoadFailed(
            f"{path}: ONNX Runtime cannot load it: {reason_of(error)}",
            hint="check that the file is whole and that this ONNX Runtime has its operators and opset",
        ) from error


def _session_options(onnxruntime: Any, source: ModelSource, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    threads = threads_per_instance(source)
    options.intra_op_num_threads = count_parameter(source.parameters, "intra_op_thread_count", threads, path)
    options.inter_op_num_threads = count_parameter(source.parameters, "inter_op_thread_count", 1, path)
    if options.inter_op_num_threads > 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = LOG_FATAL
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.inter_op.spin_duration_us", str(SPIN_US))
    # Never ONNX Runtime's own flat format, whose reader trusts the file.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _disabled(source: ModelSource, path: Path) -> list[str]:
    """Of ONNX Runtime's passes over the graph, those not to be made."""
    layout = source.parameters.get("layout", LAYOUTS[0])
    if layout not in LAYOUTS:
        raise LoadFailed(f"{path}: parameter `layout` is `{shown(layout)}`; allowed: {', '.join(LAYOUTS)}")
    return ["NchwcTransformer"] if layout == "plain" else []


def _lent(file: Path) -> bytes | mmap.mmap:
    with file.open("rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            return b""  # cannot be mapped
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


class OnnxExecutable:
    """A session, and what it takes and gives."""

    platform = "onnxruntime_onnx"
    batch_rows_max: int | None = None
    is_pure = True
    can_run_on_event_loop = True

    def __init__(self, session: Any, source: ModelSource, path: Path) -> None:
        self._name = source.name
        self._path = path
        required, results = session.get_inputs(), _served(session.get_outputs(), source, path)
        outputs = tuple(_spec("output", arg, source, path) for arg in results)
        self.inputs = tuple(_spec("input", arg, source, path) for arg in required)
        self._run = _runner(session, self.inputs, outputs, path)
        self.outputs = tuple(self._with_rank(spec) for spec in outputs)
        leading = [
            _leading(arg.shape, spec.shape)
            for arg, spec in zip((*required, *results), (*self.inputs, *self.outputs), strict=True)
        ]
        # Initialisers that are inputs too: knobs with a default, or (older exporters) every weight. They have no
        # rows, so where rows can be batched they stay weights unless the configuration names them.
        asked = {spec.name for spec in source.inputs}
        extra = [
            arg
            for arg in session.get_overridable_initializers()
            if arg.name in asked or batch_axis_of(leading) is False
        ]
        self.inputs += tuple(_spec("input", arg, source, path, is_optional=True) for arg in extra)
        self.batch_axis = batch_axis_of(leading + [_leading(arg.shape, arg.shape) for arg in extra])
        self._required = frozenset(arg.name for arg in required)
        # With nothing optional a count is the whole check, for ONNX Runtime refuses names it does not know. It must
        # be made: kernels read an input that is missing through a null pointer.
        self._required_count = -1 if extra else len(required)

    def execute(self, batch: Batch, instance: int) -> Answer:
        """Runs the batch; instances may call at the same time.

        Outputs nobody wants are not handed out, but ONNX Runtime runs the whole graph all the same (its run option
        `only_execute_path_to_fetches` changed nothing in 1.32).
        """
        inputs, names = batch.inputs, batch.outputs
        if len(inputs) != self._required_count and not self._required <= inputs.keys():
            missing = ", ".join(f"`{name}`" for name in sorted(self._required - inputs.keys()))
            raise InvalidInput(f"model `{self._name}`: inputs missing: {missing}")
        try:
            return dict(zip(names, self._run(names, inputs, None), strict=True))
        except FarthingError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> FarthingError:
        reason = reason_of(error)
        # This status, given before any operator ran, is about what the request brought.
        if type(error).__name__ == "InvalidArgument" and "while running" not in reason:
            hint = f"GET v2/models/{self._name} shows names, datatypes and shapes"
            return InvalidInput(f"model `{self._name}`: {reason}", hint=hint)
        return EngineFailed(f"model `{self._name}` failed: {reason}")

    def _with_rank(self, spec: TensorSpec) -> TensorSpec:
        """Settles `()`, by which ONNX Runtime means a scalar and "as many dimensions as you like": one run tells."""
        if spec.shape:
            return spec
        zeros = {
            i.name: np.full([max(1, d) for d in i.shape], b"" if i.datatype == "BYTES" else 0, i.dtype)
            for i in self.inputs
        }
        try:
            (value,) = self._run((spec.name,), zeros, None)
        except Exception as error:
            raise LoadFailed(
                f"{self._path}: does not say how many dimensions output `{spec.name}` has, and the model fails on "
                f"the zeros it was run on to see: {reason_of(error)}",
                hint="state the dims of this output in the model's configuration",
            ) from error
        return TensorSpec(name=spec.name, datatype=spec.datatype, shape=(-1,) * value.ndim)

    def health(self) -> str:
        """Always well: a session has no life of its own."""
        return ""

    def resize(self, instances: int) -> None:
        """Nothing: any number of threads may call the session, and its pool stays as large as it was made."""

    def close(self) -> None:
        """Lets go of the session; its memory and threads go with it."""
        del self._run


def _runner(session: Any, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], path: Path) -> Run:
    # The wrapper around this private method checks the inputs again, and upon some failures prints to stdout.
    # MLP 32-64-8, one row, one thread, least of 15: `session.run` 3.9 us, this 3.3, an IO binding made anew 4.5,
    # one kept for each instance 3.2, OrtValues 4.2, outputs bound by address 6.1.
    run: Run = getattr(session, "_sess", session).run
    taken, given = {spec.datatype for spec in inputs}, {spec.datatype for spec in outputs}
    if "BF16" in taken | given:
        if "BYTES" in taken:
            raise LoadFailed(
                f"{path}: takes BYTES and has BF16 tensors too; ONNX Runtime's Python interface cannot pass both",
                hint="cast the BF16 inputs and outputs to FP32 inside the model",
            )
        run = running_bfloat16(session)
    return running_text(run) if "BYTES" in taken | given else run


def _served(results: Iterable[Any], source: ModelSource, path: Path) -> list[Any]:
    """The outputs to serve: those configured, or all. Fails for one that is no tensor, saying how to get rid of it."""
    wanted = {spec.name for spec in source.outputs}
    served = [arg for arg in results if not wanted or arg.name in wanted]
    if not served:
        names = ", ".join(f"`{arg.name}`" for arg in results)
        raise LoadFailed(f"{path}: no output to serve; the file has: {names or 'none'}")
    for arg in served:
        if arg.type.startswith(("seq(", "map(")):
            raise LoadFailed(
                f"{path}: output `{arg.name}` is a {arg.type}; only tensors can be served",
                hint="export the scikit-learn model without ZipMap: "
                "convert_sklearn(model, options={id(model): {'zipmap': False}}); "
                "or list only the other outputs in the model's configuration"
                if "map(" in arg.type
                else "stack the sequence inside the model, or list only the other outputs in its configuration",
            )
    return served


def _spec(kind: str, arg: Any, source: ModelSource, path: Path, *, is_optional: bool = False) -> TensorSpec:
    datatype = DATATYPES.get(arg.type)
    if datatype is None:
        raise LoadFailed(
            f"{path}: {kind} `{arg.name}` is a {arg.type}; the protocol carries {', '.join(DATATYPES.values())}",
            hint="add a Cast to one of these when exporting the model",
        )
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in arg.shape)
    if not shape:  # perhaps a scalar, perhaps unknown: an operator who says so knows
        configured = source.inputs if kind == "input" else source.outputs
        shape = next((spec.shape for spec in configured if spec.name == arg.name), ())
    return TensorSpec(name=arg.name, datatype=datatype, shape=shape, is_optional=is_optional)


def _leading(dimensions: list[int | str | None], shape: tuple[int, ...]) -> int | str | None:
    """What the file calls dimension 0: its size, its name, or None for unnamed. A scalar counts as fixed."""
    if dimensions:
        return dimensions[0]
    return None if shape else 0


def batch_axis_of(leading: Iterable[int | str | None]) -> bool | None:
    """`Executable.batch_axis`, from what the file calls dimension 0 of each required input and each output."""
    names: set[str] = set()
    is_open = True
    for dimension in leading:
        if isinstance(dimension, int):
            return False
        if dimension is None or INVENTED_NAME.fullmatch(dimension):
            is_open = False
        else:
            names.add(dimension)
    if len(names) > 1:
        return False
    return True if is_open and names else None
