"""From a model version on disk to one that can be served: engine, shapes, batching, measured speed.

Blocks (files are read, graphs compiled, the model tried), so it runs on a loader thread; `runtime.catalog` says when.
What the operator configured stands; the file fills the gaps; what neither says is measured.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from farthing.batching.batcher import Limits
from farthing.batching.row_times import RowTimes
from farthing.config.model import (
    InstanceKind,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelTransactionPolicy,
    complete_config,
    config_json,
    tensor_specs,
    with_sequence_defaults,
)
from farthing.engines.contract import Engine, Executable, ModelSource, Subrequests
from farthing.engines.registry import engine_for, engine_named
from farthing.engines.streaming import StreamingExecutable
from farthing.optimizer.plan import Plan
from farthing.repository import FoundModel, FoundVersion, read_labels
from farthing.runtime.load_sequences import SequencePlan, hidden_names, sequence_plan, state_outputs
from farthing.runtime.planned import planned
from farthing.runtime.probe import has_independent_rows, measure
from farthing.runtime.warmup import warm_up
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import LoadFailed
from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec

AUTO_ROWS_MAX: Final = 1024
"""Rows one request may bring when nobody configured `max_batch_size`. How many rows are run together is measured;
this only bounds what a single client can make the server hold at once."""

INSTANCES_MAX: Final = 256
"""Instances of one model. Each is a thread, and for Python models a process; nobody has so many cores to give one."""


PYTHON: Final = "python"
"""The engine whose models take any input that is configured, whatever they declare."""


class LoadedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A model version ready to be served."""

    spec: ModelSpec
    config: ModelConfig
    """Complete, as the `/config` endpoint shows it."""
    executable: Executable
    instances: int
    limits: Limits
    times: RowTimes
    reshapes_in: Mapping[str, tuple[int, ...]]
    """Inputs whose row shape differs between client and model."""
    reshapes_out: Mapping[str, tuple[int, ...]]
    sequences: SequencePlan | None = None
    """How its sequences are run; None for a model whose requests have nothing to do with each other."""
    is_decoupled: bool = False
    """Whether it answers a request as often as it likes."""
    plan: Plan | None = None
    """What it runs by."""
    load_s: float


def load_version(found: FoundModel, version: FoundVersion, subrequests: Subrequests | None = None) -> LoadedVersion:
    """Loads, checks and tries one version, which may ask other models through `subrequests`.

    Raises `LoadFailed` naming the model or file and the reason.
    """
    started = time.monotonic()
    config = with_sequence_defaults(found.config)
    way = planned(found.name, version.path, config)
    plan = way.plan
    engine = _engine(config, version) if plan is None else engine_named(plan.engine)
    instances = instance_count(found.name, config) if plan is None else plan.instances
    has_batch_said = bool(config.max_batch_size)
    inputs, outputs = tensor_specs(config, has_batch_dimension=has_batch_said, labels=read_labels(found))
    executable = engine.load(
        ModelSource(
            name=found.name,
            version=version.number,
            path=way.path,
            folder=found.folder,
            instances=instances,
            threads=0 if plan is None else plan.threads,
            inputs=inputs,
            outputs=(*outputs, *state_outputs(config)) if outputs else (),
            batch_rows_max=config.max_batch_size,
            parameters={key: value.string_value for key, value in config.parameters.items()}
            if plan is None
            else plan.parameters,
            config=config_json(config),
            subrequests=subrequests,
        )
    )
    try:
        is_decoupled = _is_decoupled(engine, found.name, config, executable)
        if is_decoupled:
            config = replace(config, model_transaction_policy=ModelTransactionPolicy(decoupled=True))
        rows_max = _batch_rows_max(config, executable)
        sequences = sequence_plan(
            found.name, found.folder, config, executable, rows_max, is_file_known=engine.name != PYTHON
        )
        hidden, states = hidden_names(config.sequence_batching)
        states -= {output.name for output in config.output}
        spec = ModelSpec(
            name=found.name,
            namespace=found.namespace,
            version=version.number,
            platform=config.platform or executable.platform,
            inputs=_specs(
                found.name,
                "input",
                inputs,
                tuple(tensor for tensor in executable.inputs if tensor.name not in hidden),
                rows_max,
                _reshapes(config.input, rows_max),
            ),
            outputs=_specs(
                found.name,
                "output",
                outputs,
                tuple(tensor for tensor in executable.outputs if tensor.name not in states),
                rows_max,
                _reshapes(config.output, rows_max),
            ),
            batch_rows_max=rows_max,
        )
        warm_up(
            config,
            found.folder,
            spec if sequences is None else replace(spec, inputs=(*spec.inputs, *sequences.control_specs())),
            executable,
            instances=range(instances),
            reshapes=_reshapes(config.input, rows_max),
            beside=None if sequences is None else sequences.padding,
        )
        axes = plan.axes if plan is not None and config.max_batch_size is None and sequences is None else None
        if _reshapes(config.input, rows_max) or _reshapes(config.output, rows_max):
            axes = None  # which are of the shapes that the model sees
        if axes is not None and not rows_max:
            _check_axes(found.name, axes, executable)
        times = RowTimes() if plan is None else RowTimes(plan.rows)
        if executable.is_pure:
            measure(executable, rows_max, times)
        dynamic = config.dynamic_batching
        is_delay_said = dynamic is not None and (
            dynamic.max_queue_delay_microseconds > 0 or bool(dynamic.preferred_batch_size)
        )
        return LoadedVersion(
            spec=spec,
            config=complete_config(
                config, spec, backend=engine.name, instances=instances, default_model_filename=version.path.name
            ),
            executable=executable,
            instances=instances,
            limits=Limits(
                rows_max=_rows_together_max(rows_max, plan, axes),
                axes=None if rows_max else axes,
                preferred_rows=tuple(sorted(dynamic.preferred_batch_size)) if dynamic else (),
                delay_ns_max=dynamic.max_queue_delay_microseconds * 1000 if dynamic and is_delay_said else None,
            ),
            times=times,
            reshapes_in=_reshapes(config.input, rows_max),
            reshapes_out=_reshapes(config.output, rows_max),
            sequences=sequences,
            is_decoupled=is_decoupled,
            plan=plan,
            load_s=time.monotonic() - started,
        )
    except BaseException:
        executable.close()
        raise


def _is_decoupled(engine: Engine, name: str, config: ModelConfig, executable: Executable) -> bool:
    """Whether it answers as often as it likes. Raises `LoadFailed` where that is asked for and cannot be had."""
    is_decoupled = isinstance(executable, StreamingExecutable) and executable.is_decoupled
    if config.model_transaction_policy.decoupled and not is_decoupled:
        raise LoadFailed(
            f"model `{name}` asks for model_transaction_policy.decoupled, and engine {engine.name} answers each "
            "request once",
            hint="remove it; only models written in Python can answer more often",
        )
    return is_decoupled


def instance_count(name: str, config: ModelConfig) -> int:
    """How many batches may run at once. All instances are on the CPU: this build has no other device."""
    for group in config.instance_group:
        if group.kind is InstanceKind.GPU or group.gpus:
            raise LoadFailed(
                f"model `{name}` asks for instances on a GPU, and this build of farthing runs on the CPU only",
                hint="set the instance_group's kind to KIND_CPU, or leave it out",
            )
    instances = sum(group.count or 1 for group in config.instance_group) or 1
    if instances > INSTANCES_MAX:
        raise LoadFailed(f"model `{name}` asks for {instances} instances; allowed: up to {INSTANCES_MAX}")
    return instances


def _engine(config: ModelConfig, version: FoundVersion) -> Engine:
    said = config.backend or config.platform
    return engine_named(said) if said else engine_for(version.path)


def _batch_rows_max(config: ModelConfig, executable: Executable) -> int:
    """Rows that may run together: as configured, else found out.

    A configuration that lists tensors and says nothing of `max_batch_size` means 0, as it does to Triton.
    """
    if config.max_batch_size is not None:
        return config.max_batch_size
    if config.input and config.output:
        return 0
    if executable.batch_axis is False:
        return 0
    if not executable.is_pure:
        return (executable.batch_rows_max or AUTO_ROWS_MAX) if executable.batch_axis else 0
    is_independent = has_independent_rows(executable)
    if is_independent is None:
        is_independent = executable.batch_axis is True
    return AUTO_ROWS_MAX if is_independent else 0


def _rows_together_max(rows_max: int, plan: Plan | None, axes: BatchAxes | None) -> int:
    """Rows of a batch: a plan's were the best of those that answer in time, and larger batches would answer later."""
    if plan is None or not (rows_max or axes):
        return rows_max
    return min(rows_max or AUTO_ROWS_MAX, plan.rows)


def _check_axes(name: str, axes: BatchAxes, executable: Executable) -> None:
    for kind, said, specs in (("input", axes.inputs, executable.inputs), ("output", axes.outputs, executable.outputs)):
        shapes = {tensor.name: tensor.shape for tensor in specs}
        wrong = [tensor for tensor, axis in said.items() if not 0 <= axis < len(shapes.get(tensor, ()))]
        missing = [tensor for tensor in shapes if kind == "output" and tensor not in said]
        if wrong or missing or not said:
            raise LoadFailed(
                f"model `{name}`: its plan gives {kind} `{(wrong or missing or ['?'])[0]}` an axis it has not, or none",
                hint="make the plan again with `farthing optimize`, or delete its folder",
            )


def _specs(
    model: str,
    kind: str,
    configured: tuple[TensorSpec, ...],
    loaded: tuple[TensorSpec, ...],
    rows_max: int,
    reshapes: Mapping[str, tuple[int, ...]],
) -> tuple[TensorSpec, ...]:
    """The tensors clients see: the configuration's where it has any, checked against the file's."""
    by_name = {tensor.name: tensor for tensor in loaded}
    if rows_max:
        for tensor in loaded:
            if not tensor.shape or tensor.shape[0] != -1:
                raise LoadFailed(
                    f"model `{model}`: {kind} `{tensor.name}` has shape {list(tensor.shape)} in the model file, so "
                    f"rows cannot be added to it, but max_batch_size is {rows_max}",
                    hint="set max_batch_size to 0, or export the model with a free first dimension",
                )
    if not configured:
        return loaded
    if not by_name:
        return configured  # the engine leaves it to the configuration
    for tensor in configured:
        known = by_name.get(tensor.name)
        if known is None:
            raise LoadFailed(
                f"model `{model}`: the configuration has {kind} `{tensor.name}`, "
                f"the model file has: {', '.join(by_name)}"
            )
        inner = reshapes.get(tensor.name, tensor.shape)
        if known.datatype != tensor.datatype or not _may_fit(inner, known.shape):
            raise LoadFailed(
                f"model `{model}`: {kind} `{tensor.name}` is configured as {tensor.datatype} {list(inner)}, the model "
                f"file says {known.datatype} {list(known.shape)}"
            )
    if kind == "input":
        missing = [t.name for t in loaded if not t.is_optional and t.name not in {c.name for c in configured}]
        if missing:
            raise LoadFailed(f"model `{model}`: the configuration leaves out input {', '.join(missing)}")
    return configured


def _may_fit(configured: tuple[int, ...], known: tuple[int, ...]) -> bool:
    return len(configured) == len(known) and all(
        k == -1 or c in (-1, k) for c, k in zip(configured, known, strict=True)
    )


def _reshapes(tensors: Sequence[ModelInput | ModelOutput], rows_max: int) -> dict[str, tuple[int, ...]]:
    """Whole shapes the model sees for tensors that clients see in another one."""
    front = (-1,) if rows_max else ()
    return {
        tensor.name: (*front, *tensor.reshape.shape)
        for tensor in tensors
        if tensor.reshape is not None and tensor.reshape.shape != tensor.dims
    }
