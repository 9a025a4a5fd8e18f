"""The whole model configuration, and how it is read from plain values.

`parse_model_config` takes what JSON, a text-format file or TOML gave and answers a `ModelConfig`, or says which
field is wrong. It checks names and types only; whether the values make sense together is `check`'s question.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from farthing.config.model.fields import (
    BatchInput,
    BatchOutput,
    Block,
    InstanceGroup,
    Int32,
    ModelInput,
    ModelMetrics,
    ModelOperations,
    ModelOutput,
    ModelParameter,
    ModelRepositoryAgents,
    ModelResponseCache,
    ModelTransactionPolicy,
    ModelWarmup,
    VersionPolicy,
)
from farthing.config.model.scheduling import DynamicBatching, EnsembleScheduling, Optimization, SequenceBatching
from farthing.config.model.spelling import canonical
from farthing.types.errors import LoadFailed


class ModelConfig(Block, frozen=True, kw_only=True):
    """Everything an operator may say about a model; nothing has to be said."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    runtime: str = ""
    version_policy: VersionPolicy = VersionPolicy()
    max_batch_size: Int32 | None = None
    """None: not said, the model file decides. 0: requests never share a run."""
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    batch_input: tuple[BatchInput, ...] = ()
    batch_output: tuple[BatchOutput, ...] = ()
    optimization: Optimization = Optimization()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble_scheduling: EnsembleScheduling | None = None
    instance_group: tuple[InstanceGroup, ...] = ()
    default_model_filename: str = ""
    cc_model_filenames: Mapping[str, str] = {}
    metric_tags: Mapping[str, str] = {}
    parameters: Mapping[str, ModelParameter] = {}
    model_warmup: tuple[ModelWarmup, ...] = ()
    model_operations: ModelOperations | None = None
    model_transaction_policy: ModelTransactionPolicy = ModelTransactionPolicy()
    model_repository_agents: ModelRepositoryAgents | None = None
    response_cache: ModelResponseCache = ModelResponseCache()
    model_metrics: ModelMetrics | None = None


def parse_model_config(values: Mapping[str, Any], *, source: str = "model configuration") -> ModelConfig:
    """The configuration in `values`, as JSON, TOML or the text format gave it.

    Whole numbers may be strings and fields null (proto JSON); `spelling` lists what else may be written.
    Raises `LoadFailed` that names `source` and the path of the field, such as `$.dynamic_batching.x`.
    """
    try:
        return msgspec.convert(canonical(values, ModelConfig, "$"), ModelConfig, strict=False, str_keys=True)
    except (msgspec.ValidationError, LoadFailed) as error:
        raise LoadFailed(f"{source}: {error}", hint="docs/reference/model-config.md lists the fields") from None
