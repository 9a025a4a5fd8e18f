"""A model's graph, cleaned: constants folded, what nobody needs cut, dimensions fixed where nothing else fits.

Folding and shape inference are ONNX Runtime's own. A free dimension is fixed in two cases: where the model refuses
every other size (it was tried), or where the user says that requests will look like the data. Rows of a batch stay
free. What all this gains is measured like anything else: the cleaned file is a recipe.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from farthing.engines.failure import reason_of
from farthing.optimizer.quiet import quiet
from farthing.optimizer.rewrites import rewrite
from farthing.types.errors import InvalidInput, LoadFailed
from farthing.types.tensors import Tensor

log: Final = logging.getLogger(__name__)

PASSED_ON_BYTES_MAX: Final = 1 << 30
"""Of a file that is worth taking apart here; Protobuf ends at twice that."""


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of an ONNX file without running it."""

    operators: frozenset[str]
    nodes: int
    outputs: tuple[str, ...]
    free: tuple[tuple[str, ...], ...]
    """Free dimensions of the inputs, the first aside, as `INPUT.AXIS`; those of one name together."""


def is_available() -> bool:
    """Whether the `onnx` package is installed."""
    return importlib.util.find_spec("onnx") is not None


def graph_of(model: Path) -> Graph:
    """Reads the file. Raises `LoadFailed`."""
    graph = _read(model).graph
    weights = {initialiser.name for initialiser in graph.initializer}
    groups: dict[str, list[str]] = {}
    for given in graph.input:
        if given.name in weights:
            continue
        for axis, dimension in enumerate(given.type.tensor_type.shape.dim):
            if axis and not dimension.HasField("dim_value"):
                place = f"{given.name}.{axis}"
                groups.setdefault(dimension.dim_param or place, []).append(place)
    return Graph(
        operators=frozenset(node.op_type for node in graph.node),
        nodes=len(graph.node),
        outputs=tuple(output.name for output in graph.output),
        free=tuple(tuple(places) for places in groups.values()),
    )


def only_sizes(
    free: Sequence[tuple[str, ...]], row: Mapping[str, Tensor], runs: Callable[[Mapping[str, Tensor]], bool]
) -> list[str]:
    """Those of the free dimensions that admit no size but the data's: every other that was tried is refused.

    `row` is one sample, with its batch dimension; `runs` says whether the model takes such inputs.
    """
    fixed: list[str] = []
    for places in free:
        for change in (lambda size: size + 1, lambda size: size * 2, lambda size: max(1, size // 2), lambda size: 1):
            changed = dict(row)
            for place in places:
                name, _, axis = place.rpartition(".")
                if name in changed:
                    changed[name] = _resized(changed[name], int(axis), change)
            if any(changed[name].shape != row[name].shape for name in row) and runs(changed):
                break
        else:
            fixed += places
    return fixed


def _resized(array: Tensor, axis: int, change: Callable[[int], int]) -> Tensor:
    """Another size along one axis, filled from what is there."""
    resized: Tensor = np.take(array, np.arange(change(array.shape[axis])) % array.shape[axis], axis=axis)
    return resized


def clean(
    model: Path, out: Path, *, sizes: Mapping[str, int], outputs: Sequence[str], has_batch_axis: bool
) -> tuple[str, ...]:
    """Writes the cleaned file; answers what was done to it, in words; nothing if it is as good as it was.

    `sizes` are dimensions to fix, by `INPUT.AXIS`; `outputs` those to keep, all if empty. Raises `LoadFailed`,
    `InvalidInput` for an output that is not there.
    """
    proto = _read(model)
    before = len(proto.graph.node)
    done = []
    known = [output.name for output in proto.graph.output]
    unknown = [name for name in outputs if name not in known]
    if unknown:
        raise InvalidInput(f"{model}: has no output `{unknown[0]}`; outputs: {', '.join(known)}")
    dead = [name for name in known if outputs and name not in outputs]
    if dead:
        kept = [output for output in proto.graph.output if output.name in outputs]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
        done.append(f"outputs cut: {', '.join(dead)}")
    _cut_dead(proto.graph)
    for given in proto.graph.input:
        for axis, dimension in enumerate(given.type.tensor_type.shape.dim):
            size = sizes.get(f"{given.name}.{axis}")
            if size is not None and not dimension.HasField("dim_value"):
                dimension.dim_value = size
                done.append(f"`{given.name}` fixed to {size} in dimension {axis}")
    cut = out.with_name("cut.onnx")
    _write(proto, cut)
    prepared = out.with_name("folding.onnx")
    prepare(cut, prepared)
    cut.unlink()
    proto = _read(prepared)
    after = len(proto.graph.node)
    if rewritten := _rewritten(proto):
        done += rewritten
        _cut_dead(proto.graph)
        _write(proto, cut)
        prepare(cut, prepared)
        cut.unlink()
    prepared.replace(out)
    if after < before:
        done.insert(0, f"{before - after} of {before} nodes folded or cut")
    return tuple(done)


CHANNELS_OPSET: Final = 13
"""DequantizeLinear has an axis since; in older files no int8 weights by channel can be written."""


def prepare(model: Path, out: Path) -> None:
    """The model with constants folded and shapes inferred, as the quantiser wants it. Raises `LoadFailed`."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet():
        try:
            quant_pre_process(str(model), str(out), skip_symbolic_shape=True)
            _suit_quantiser(out)
        except Exception as error:
            raise LoadFailed(f"{model}: its graph cannot be cleaned: {reason_of(error)}") from error


def _suit_quantiser(file: Path) -> None:
    """Names nodes, flattens biases, and brings the file up to an opset with scales by channel, if the converter can.

    The quantiser knows nodes by name. Many files name none, and one left out would leave out all the nameless. It takes
    biases to be [columns], while the folding that was before it leaves some of Gemm's as [1, columns].
    """
    import onnx
    from onnx import version_converter

    model = onnx.load(str(file))
    if any(used.domain in ("", "ai.onnx") and used.version < CHANNELS_OPSET for used in model.opset_import):
        with contextlib.suppress(Exception):  # its own, of several types: the file then stays as it is
            model = version_converter.convert_version(model, CHANNELS_OPSET)
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in model.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]
    onnx.save(model, str(file))


def _read(model: Path) -> Any:
    import onnx

    try:
        if model.stat().st_size > PASSED_ON_BYTES_MAX:
            raise LoadFailed(f"{model}: too large to be taken apart; allowed: {PASSED_ON_BYTES_MAX} bytes")
        return onnx.load(str(model))
    except LoadFailed:
        raise
    except Exception as error:  # Protobuf's, or the file system's
        raise LoadFailed(f"{model}: cannot be taken apart: {reason_of(error)}") from error


def _rewritten(proto: Any) -> tuple[str, ...]:
    """What `rewrites` did; nothing, where one stumbled over a graph that no exporter is known to write."""
    try:
        return rewrite(proto)
    except Exception:
        log.warning("a graph could not be rewritten, and stays as it was", exc_info=True)
        return ()


def _write(proto: Any, file: Path) -> None:
    try:
        file.write_bytes(proto.SerializeToString())
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{file}: cannot be written: {error}", hint="make room for copies of the model") from error


def _cut_dead(graph: Any) -> None:
    """Takes out nodes, and weights, that no output hangs on."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(_names_inside(node))
    if len(kept) < len(graph.node):
        kept.reverse()
        nodes = [_copy(node) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)
    weights = [_copy(weight) for weight in graph.initializer if weight.name in needed]
    if len(weights) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(weights)


def _names_inside(node: Any) -> set[str]:
    """Tensors that the bodies of loops and branches take from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                names.update(inner.input)
                names |= _names_inside(inner)
            names.update(output.name for output in body.output)
    return names


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
