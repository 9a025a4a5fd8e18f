"""What is served: a model's name, version, inputs, outputs, and the states it goes through."""

from enum import StrEnum

import msgspec

from farthing.types.tensors import TensorSpec


class ModelState(StrEnum):
    """States of a model version as the repository index reports them (Triton model repository extension)."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model as its clients see it. `batch_rows_max` 0 means that requests never share a run."""

    name: str
    version: int
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_rows_max: int
    namespace: str = ""
    """The repository it is in, where models of several may have one name; else empty."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the repository index; `version` is empty for a model that was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
    namespace: str = ""
