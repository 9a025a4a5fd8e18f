"""OpenVINO IR files of which some layers stay in float32 while the rest is computed in bf16.

The plug-in computes everything in the precision it is given, but for layers whose runtime information says that they
are `precise` (OpenVINO's attribute `DisablePrecisionConversion`). An IR is XML beside its weights, so that a layer is
marked by writing it there. Which layers are worth it is `optimizer.sensitivity`'s to say.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree  # of files that OpenVINO has just written

from farthing.engines.failure import reason_of
from farthing.types.errors import LoadFailed

WEIGHTED: Final = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
"""Layers that bf16 makes faster."""

UNTOUCHED: Final = frozenset({"Const", "Parameter", "Result"})
MARK: Final = {"name": "precise", "version": "0"}


def write_ir(model: Path, out: Path) -> None:
    """Any file that OpenVINO reads as IR: `out` (`.xml`) and its weights beside it. Raises `LoadFailed`."""
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    torn = out.with_name("torn.xml")  # until it is whole: a search may be killed at any moment
    try:
        openvino.serialize(core.read_model(str(model)), str(torn))
        torn.with_suffix(".bin").replace(out.with_suffix(".bin"))
        torn.replace(out)
    except Exception as error:  # of undocumented types
        raise LoadFailed(f"{model}: cannot be written as OpenVINO IR: {reason_of(error)}") from error


def layers_of(ir: Path) -> list[tuple[str, ...]]:
    """Ids of each layer with weights and of all up to the next, in the order they run."""
    layers: list[list[str]] = []
    before: list[str] = []
    for layer in _layers(_parsed(ir)):
        kind, number = layer.get("type", ""), layer.get("id", "")
        if kind in UNTOUCHED:
            continue
        if kind in WEIGHTED:
            layers.append([*before, number])
            before = []
        elif layers:
            layers[-1].append(number)
        else:
            before.append(number)
    return [tuple(layer) for layer in layers]


def keep_float(ir: Path, out: Path, ids: Collection[str]) -> None:
    """The same model with these layers in float32 whatever the rest is in; its weights are those of `ir`. Raises
    `LoadFailed`."""
    tree, kept = _parsed(ir), frozenset(ids)
    for layer in _layers(tree):
        if layer.get("id") not in kept:
            continue
        told = layer.find("rt_info")
        if told is None:
            told = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, told)
        ElementTree.SubElement(told, "attribute", MARK)
    ours, theirs = out.with_suffix(".bin"), ir.with_suffix(".bin")
    torn = out.with_name(f"torn-{out.name}")
    try:
        ours.unlink(missing_ok=True)
        try:
            os.link(theirs, ours)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(theirs, ours)
        tree.write(torn)
        torn.replace(out)
    except OSError as error:
        raise LoadFailed(f"{out}: cannot be written: {error}", hint="make room for copies of the model") from error


def _parsed(ir: Path) -> Any:
    try:
        return ElementTree.parse(ir)  # noqa: S314
    except (OSError, ElementTree.ParseError) as error:
        raise LoadFailed(f"{ir}: is no whole IR: {error}", hint="make room for copies of the model") from error


def _layers(tree: Any) -> list[ElementTree.Element]:
    found: list[ElementTree.Element] = tree.getroot().findall("./layers/layer")
    return found
