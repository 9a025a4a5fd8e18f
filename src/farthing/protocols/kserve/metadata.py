"""What the server says about itself and its models: metadata, health, the index, statistics.

Which models there are, and whether they are ready, is the runtime's to know.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from farthing.telemetry.statistics import StatisticsSnapshot
from farthing.types.models import ModelSpec, ModelStatus
from farthing.types.tensors import TensorSpec

_encode = msgspec.json.Encoder().encode


def encode_json(obj: object) -> bytes:
    """JSON of plain objects and structs. 64-bit integers stay numbers, zeros are written."""
    return _encode(obj)


def server_metadata(name: str, version: str, extensions: Iterable[str]) -> dict[str, Any]:
    """The body of `GET /v2`. Name only extensions that work: clients change what they do by this list."""
    return {"name": name, "version": version, "extensions": list(extensions)}


def model_metadata(spec: ModelSpec, versions: Iterable[int | str]) -> dict[str, Any]:
    """The body of `GET /v2/models/{name}`: `versions` are those that are ready, as strings."""
    return {
        "name": spec.name,
        "versions": [str(version) for version in versions],
        "platform": spec.platform,
        "inputs": [_tensor(tensor) for tensor in spec.inputs],
        "outputs": [_tensor(tensor) for tensor in spec.outputs],
    }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def live_json() -> dict[str, Any]:
    """The body of `GET /v2/health/live`, for status 200 only."""
    return {"live": True}


def ready_json() -> dict[str, Any]:
    """The body of `GET /v2/health/ready`, for status 200 only."""
    return {"ready": True}


def model_ready_json(name: str) -> dict[str, Any]:
    """The body of `GET /v2/models/{name}/ready`, for status 200 only."""
    return {"name": name, "ready": True}


def index_json(models: Iterable[ModelStatus]) -> list[dict[str, str]]:
    """The answer of the repository index; a model that was never loaded has only a name.

    A model's namespace, if it has one, is our addition.
    """
    return [_index_line(model) for model in models]


def _index_line(model: ModelStatus) -> dict[str, str]:
    line = {"name": model.name}
    if model.namespace:
        line["namespace"] = model.namespace
    if model.version:
        line["version"] = model.version
    if model.state:
        line["state"] = model.state
    if model.reason:
        line["reason"] = model.reason
    return line


def statistics_json(snapshots: Sequence[StatisticsSnapshot]) -> dict[str, Any]:
    """The body of `GET /v2/models/stats`. Every duration is there with `count` and `ns`, zeros too.

    A model's namespace, if it has one, is our addition.
    """
    return {"model_stats": [_statistics_line(snapshot) for snapshot in snapshots]}


def _statistics_line(snapshot: StatisticsSnapshot) -> dict[str, Any]:
    line: dict[str, Any] = msgspec.to_builtins(snapshot)
    if not snapshot.namespace:
        del line["namespace"]
    return line
