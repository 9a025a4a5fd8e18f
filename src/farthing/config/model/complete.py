"""What a configuration does not say, filled in from the loaded model.

The operator's word stands; the model file fills the gaps. Reading the file belongs to `engines`, putting the two
together at load time to `runtime`.
"""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from farthing.config.model.config import ModelConfig
from farthing.config.model.fields import (
    CONFIG_TYPES,
    WIRE_DATATYPES,
    DataType,
    InstanceGroup,
    InstanceKind,
    ModelInput,
    ModelOutput,
    TensorReshape,
)
from farthing.config.model.scheduling import DynamicBatching, SequenceDirect
from farthing.types.errors import LoadFailed
from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec

SEQUENCE_IDLE_US: Final = 1_000_000
"""How long nothing may come of a sequence before it has ended; Triton's default, one second."""

CANDIDATE_SEQUENCES: Final = 1024
"""Sequences that each instance has at one time with `oldest`, where nobody says how many. A sequence at rest costs its
state and some hundred bytes; the bound keeps clients who never end theirs from filling the memory."""


def tensor_specs(
    config: ModelConfig, *, has_batch_dimension: bool, labels: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as configured, in the shapes clients send; empty where the configuration is silent.

    `dims` leave the batch dimension out, so it is put in front where the model has one. `labels` are the class
    names by output.
    """
    front = (-1,) if has_batch_dimension else ()
    inputs = tuple(
        TensorSpec(
            name=tensor.name,
            datatype=_wire(config, tensor),
            shape=(*front, *tensor.dims),
            is_optional=tensor.optional,
            allows_ragged=tensor.allow_ragged_batch,
        )
        for tensor in config.input
    )
    outputs = tuple(
        TensorSpec(
            name=tensor.name,
            datatype=_wire(config, tensor),
            shape=(*front, *tensor.dims),
            labels=(labels or {}).get(tensor.name, ()),
        )
        for tensor in config.output
    )
    return inputs, outputs


def complete_config(
    config: ModelConfig, spec: ModelSpec, *, backend: str, instances: int = 1, default_model_filename: str = ""
) -> ModelConfig:
    """The configuration after loading, as `/config` shows it: no gap that the loaded model can fill is left.

    `spec` is the model as its clients see it; `instances` how many there are where no group was configured.
    """
    batches = spec.batch_rows_max > 0
    has_scheduler = config.dynamic_batching or config.sequence_batching or config.ensemble_scheduling
    groups = config.instance_group or (InstanceGroup(kind=InstanceKind.CPU, count=instances),)
    if config.ensemble_scheduling:
        groups = ()
    return replace(
        config,
        name=spec.name,
        platform=config.platform or spec.platform,
        backend=config.backend or backend,
        max_batch_size=spec.batch_rows_max if config.max_batch_size is None else config.max_batch_size,
        input=config.input or tuple(_input(tensor, batches) for tensor in spec.inputs),
        output=config.output or tuple(_output(tensor, batches) for tensor in spec.outputs),
        dynamic_batching=DynamicBatching() if batches and not has_scheduler else config.dynamic_batching,
        instance_group=tuple(
            replace(group, name=group.name or f"{spec.name}_{place}", count=group.count or 1)
            for place, group in enumerate(groups)
        ),
        default_model_filename=config.default_model_filename or default_model_filename,
    )


def with_sequence_defaults(config: ModelConfig) -> ModelConfig:
    """The configuration with every number of `sequence_batching` settled; others are left as they are."""
    sequence = config.sequence_batching
    if sequence is None:
        return config
    oldest = sequence.oldest
    if oldest is not None and not oldest.max_candidate_sequences:
        oldest = replace(oldest, max_candidate_sequences=CANDIDATE_SEQUENCES)
    return replace(
        config,
        sequence_batching=replace(
            sequence,
            direct=SequenceDirect() if oldest is None and sequence.direct is None else sequence.direct,
            oldest=oldest,
            max_sequence_idle_microseconds=sequence.max_sequence_idle_microseconds or SEQUENCE_IDLE_US,
        ),
    )


def _wire(config: ModelConfig, tensor: ModelInput | ModelOutput) -> str:
    if tensor.data_type is DataType.INVALID:
        raise LoadFailed(
            f"model `{config.name}`: `{tensor.name}` has no data type",
            hint=f"set its `data_type` to one of {', '.join(WIRE_DATATYPES)}",
        )
    return WIRE_DATATYPES[tensor.data_type]


def _dims(tensor: TensorSpec, batches: bool) -> tuple[tuple[int, ...], TensorReshape | None]:
    dims = tensor.shape[1:] if batches else tensor.shape
    # An empty `dims` alone would read as forgotten; with an empty reshape beside it, it is meant.
    return dims, None if dims else TensorReshape()


def _input(tensor: TensorSpec, batches: bool) -> ModelInput:
    dims, reshape = _dims(tensor, batches)
    return ModelInput(
        name=tensor.name,
        data_type=CONFIG_TYPES[tensor.datatype],
        dims=dims,
        reshape=reshape,
        allow_ragged_batch=tensor.allows_ragged,
        optional=tensor.is_optional,
    )


def _output(tensor: TensorSpec, batches: bool) -> ModelOutput:
    dims, reshape = _dims(tensor, batches)
    return ModelOutput(name=tensor.name, data_type=CONFIG_TYPES[tensor.datatype], dims=dims, reshape=reshape)
