"""The answer of the `/config` endpoint: a configuration as Triton writes it.

Original field names, whole numbers as numbers, enumerations by name, every plain field present even when it is
zero, and blocks that were not given left out.
"""

from typing import Any

import msgspec

from farthing.config.model.config import ModelConfig
from farthing.config.model.fields import LatestVersions, VersionPolicy


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON-ready values. `parse_model_config` reads it back to an equal one.

    perf_analyzer wants `max_batch_size`, `model_transaction_policy`, `response_cache`, `platform` and the
    inputs' flags; they are always there.
    """
    policy = config.version_policy
    if policy == VersionPolicy():
        config = msgspec.structs.replace(config, version_policy=VersionPolicy(latest=LatestVersions()))
    if config.max_batch_size is None:
        config = msgspec.structs.replace(config, max_batch_size=0)
    shown: dict[str, Any] = _without_absent(msgspec.to_builtins(config, str_keys=True))
    return shown


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_absent(item) for item in value]
    return value
