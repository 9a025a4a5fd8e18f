"""A model's configuration, in Triton's field names: the tree, reading it, checking it, showing it.

`fields` and `scheduling` hold the blocks, `config` puts them together and reads them from plain values, `check`
says what Triton would refuse at load time, `complete` fills in what the loaded model knows and `shown` writes the
answer of the `/config` endpoint. Files (`config.pbtxt`, `model.toml`) belong to `repository`.
"""

from farthing.config.model.check import check_model_config
from farthing.config.model.complete import complete_config, tensor_specs, with_sequence_defaults
from farthing.config.model.config import ModelConfig, parse_model_config
from farthing.config.model.fields import (
    CONFIG_TYPES,
    WIRE_DATATYPES,
    AllVersions,
    DataType,
    InstanceGroup,
    InstanceKind,
    LatestVersions,
    ModelInput,
    ModelOutput,
    ModelParameter,
    ModelResponseCache,
    ModelTransactionPolicy,
    ModelWarmup,
    SpecificVersions,
    VersionPolicy,
)
from farthing.config.model.scheduling import (
    DynamicBatching,
    EnsembleScheduling,
    EnsembleStep,
    QueuePolicy,
    SequenceBatching,
    TimeoutAction,
)
from farthing.config.model.shown import config_json

__all__ = [
    "CONFIG_TYPES",
    "WIRE_DATATYPES",
    "AllVersions",
    "DataType",
    "DynamicBatching",
    "EnsembleScheduling",
    "EnsembleStep",
    "InstanceGroup",
    "InstanceKind",
    "LatestVersions",
    "ModelConfig",
    "ModelInput",
    "ModelOutput",
    "ModelParameter",
    "ModelResponseCache",
    "ModelTransactionPolicy",
    "ModelWarmup",
    "QueuePolicy",
    "SequenceBatching",
    "SpecificVersions",
    "TimeoutAction",
    "VersionPolicy",
    "check_model_config",
    "complete_config",
    "config_json",
    "parse_model_config",
    "tensor_specs",
    "with_sequence_defaults",
]
