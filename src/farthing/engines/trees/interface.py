"""What clients see of a forest: the input's and the output's name, datatype and shape.

By default FP32 `input__0` [rows, features] and FP32 `output__0` [rows, outputs], the names and datatypes of Triton's
FIL back end, whose clients and config.pbtxt then work unchanged. A configuration may give other names, and FP64 to
LightGBM models: with FP32 a row's values are rounded before they are compared, as LightGBM itself does when it is
given float32; with FP64 in and out, predictions are LightGBM's to the last bit that `exp` allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from farthing.engines.contract import ModelSource
from farthing.engines.trees.forest import Forest
from farthing.engines.trees.links import LinkKind
from farthing.types.errors import LoadFailed
from farthing.types.tensors import TensorSpec

INPUT_NAME: Final = "input__0"
OUTPUT_NAME: Final = "output__0"


class OutputKind(StrEnum):
    """Values of the model parameter `output`."""

    PREDICTION = "prediction"
    """What the training library's `predict` answers."""
    RAW = "raw"
    """The sums before sigmoid, softmax and the like (`raw_score`, `output_margin`)."""
    PROBABILITIES = "probabilities"
    """One for each class, also for a binary model (FIL: `predict_proba`)."""
    CLASS = "class"
    """The number of the likeliest class (FIL: `output_class`)."""


_CLASSIFIERS: Final = (LinkKind.SIGMOID, LinkKind.SOFTMAX, LinkKind.SOFTMAX_ARGMAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Settled once at load."""

    input: TensorSpec
    output: TensorSpec
    kind: OutputKind
    threshold: float
    """Probability above which a binary model's class is 1."""


def interface_of(forest: Forest, source: ModelSource) -> Interface:
    """The interface of a forest as its configuration wants it. Raises `LoadFailed` for what cannot be."""
    kind = _output_kind(source.parameters, source.path)
    if forest.link.refused and kind is not OutputKind.RAW:
        raise LoadFailed(
            f"{source.path}: objective `{forest.link.refused}` is not known here",
            hint="serve the raw sums with the model parameter `output` = `raw`, and apply its link in the client",
        )
    if kind in (OutputKind.PROBABILITIES, OutputKind.CLASS) and forest.link.kind not in _CLASSIFIERS:
        raise LoadFailed(
            f"{source.path}: `output` = `{kind}` needs a classifier; this model's sums become {forest.link.kind.value}",
            hint="leave `output` out, or set it to `prediction` or `raw`",
        )
    width = forest.targets
    if kind is OutputKind.CLASS or (kind is OutputKind.PREDICTION and forest.link.kind is LinkKind.SOFTMAX_ARGMAX):
        width = 1
    elif kind is OutputKind.PROBABILITIES and forest.targets == 1:
        width = 2
    datatypes = ("FP32", "FP64") if forest.dtype == np.float64 else ("FP32",)
    rows_in = TensorSpec(name=INPUT_NAME, datatype="FP32", shape=(-1, forest.features))
    rows_out = TensorSpec(name=OUTPUT_NAME, datatype="FP32", shape=(-1, width))
    return Interface(
        input=_as_configured(source.inputs, rows_in, datatypes, f"{source.path}: configured input"),
        output=_as_configured(source.outputs, rows_out, datatypes, f"{source.path}: configured output"),
        kind=kind,
        threshold=_threshold(source.parameters, source.path),
    )


def _output_kind(parameters: Mapping[str, str], path: Path) -> OutputKind:
    written = parameters.get("output", "")
    if not written:  # FIL's switches, as its config.pbtxt has them
        if parameters.get("predict_proba", "").lower() == "true":
            written = OutputKind.PROBABILITIES
        elif parameters.get("output_class", "").lower() == "true":
            written = OutputKind.CLASS
    try:
        return OutputKind(written or OutputKind.PREDICTION)
    except ValueError:
        raise LoadFailed(
            f"{path}: model parameter `output` is `{written}`", hint=f"allowed: {', '.join(OutputKind)}"
        ) from None


def _threshold(parameters: Mapping[str, str], path: Path) -> float:
    written = parameters.get("threshold", "0.5")
    try:
        return float(written)
    except ValueError:
        raise LoadFailed(f"{path}: model parameter `threshold` is `{written}`", hint="a number such as 0.5") from None


def _as_configured(
    declared: tuple[TensorSpec, ...], own: TensorSpec, datatypes: tuple[str, ...], what: str
) -> TensorSpec:
    if not declared:
        return own
    if len(declared) != 1:
        raise LoadFailed(f"{what}s: {len(declared)}; a forest has one", hint="declare one, or none: the file knows")
    spec = declared[0]
    if spec.datatype not in datatypes:
        raise LoadFailed(
            f"{what} `{spec.name}` has datatype {spec.datatype}; allowed: {', '.join(datatypes)}",
            hint="declare one of these, or nothing: the file knows",
        )
    if len(spec.shape) != 2 or spec.shape[1] not in (-1, own.shape[1]):
        raise LoadFailed(
            f"{what} `{spec.name}` has shape {list(spec.shape)}; the model's is {list(own.shape)}",
            hint="correct `dims`, or leave it out: the file knows",
        )
    return msgspec.structs.replace(spec, shape=own.shape)
