"""NanoDet-g: a TensorFlow.js graph into ONNX, without TensorFlow, and with a batch dimension.

The file keeps pictures channels-last and the batch fixed at one. ONNX convolutions are channels-first, so each is
wrapped in two transposes, most of which a runtime cancels against their neighbours. Shape arithmetic on constants is
done here and now; reshapes are rewritten to keep whatever batch comes in.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.repository.samples.recipes.graph import Graph
from farthing.types.errors import LoadFailed

SIDE: Final = 416
STRIDES: Final = (8, 16, 32)
CLASSES: Final = 80
BOX_BINS: Final = 44
"""Four sides, each a distribution over eleven distances."""

CHANNELS_FIRST: Final = [0, 3, 1, 2]
CHANNELS_LAST: Final = [0, 2, 3, 1]

Node = dict[str, Any]


def build(raw: Path, out: Path) -> None:
    """Writes `nanodet-g`."""
    document = json.loads((raw / "nanodet.json").read_text(encoding="utf-8"))
    manifest = document["weightsManifest"][0]
    constants = _read_weights(manifest["weights"], (raw / manifest["paths"][0]).read_bytes())
    _Converter(constants).convert(document["modelTopology"]["node"], out / "nanodet-g" / "1" / "model.onnx")


def _read_weights(described: list[dict[str, Any]], data: bytes) -> dict[str, NDArray[Any]]:
    constants, offset = {}, 0
    for weight in described:
        stored = weight.get("quantization", {}).get("dtype", weight["dtype"])
        dtype = np.dtype({"float16": "<f2", "float32": "<f4", "int32": "<i4"}[stored])
        shape = tuple(int(size) for size in weight["shape"])
        numbers = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape)
        constants[weight["name"]] = numbers.astype(np.float32 if dtype.kind == "f" else np.int64)
        offset += numbers.nbytes
    return constants


def _in_order(nodes: list[Node], known: set[str]) -> Iterator[Node]:
    """Nodes such that each comes after those it reads from."""
    waiting = nodes
    while waiting:
        late = []
        for node in waiting:
            if all(_source(name) in known for name in node.get("input", [])):
                known.add(node["name"])
                yield node
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise LoadFailed(f"nanodet.json: node `{late[0]['name']}` reads from a node that is not there")
        waiting = late


def _source(name: str) -> str:
    return name.partition(":")[0]


class _Converter:
    def __init__(self, constants: dict[str, NDArray[Any]]) -> None:
        self._constants = constants
        self._graph = Graph("nanodet_g_416")

    def convert(self, nodes: list[Node], path: Path) -> None:
        graph = self._graph
        picture = next(node["name"] for node in nodes if node["op"] == "Placeholder")
        graph.add("Identity", "image", name=picture)
        working = [node for node in nodes if node["op"] not in {"Const", "Placeholder"}]
        for node in _in_order(working, {*self._constants, picture}):
            if all(name in self._constants for name in node["input"]):
                self._constants[node["name"]] = self._fold(node)
            else:
                self._translate(node)
        outputs = {}
        # The file's outputs come as three of class scores and three of box distances, in the order of the strides.
        places = [(kind, stride) for kind in ("classes", "boxes") for stride in STRIDES]
        for index, (kind, stride) in enumerate(places):
            name = f"{kind}_{stride}"
            graph.add("Identity", f"Identity_{index}" if index else "Identity", name=name)
            cells, width = (SIDE // stride) ** 2, CLASSES if kind == "classes" else BOX_BINS
            outputs[name] = ("FP32", ("batch", cells, width))
        graph.save(path, {"image": ("FP32", ("batch", 3, SIDE, SIDE))}, outputs)

    def _fold(self, node: Node) -> NDArray[Any]:
        values = [self._constants[name] for name in node["input"]]
        match node["op"]:
            case "SparseToDense":
                indices, shape, entries, default = values
                dense = np.full(shape, default)
                if indices.size:
                    dense[tuple(indices.T)] = entries
                return dense
            case "Add" | "AddV2":
                return np.asarray(values[0] + values[1])
        raise _unknown(node)

    def _translate(self, node: Node) -> None:
        graph, name, inputs, attributes = self._graph, node["name"], node["input"], node.get("attr", {})
        match node["op"]:
            case "Add" | "AddV2":
                graph.add("Add", *map(self._value, inputs), name=name)
            case "Identity" | "Sigmoid":
                graph.add(node["op"], *map(self._value, inputs), name=name)
            case "LeakyRelu":
                graph.add("LeakyRelu", *inputs, name=name, alpha=float(attributes["alpha"]["f"]))
            case "Transpose":
                graph.add("Transpose", inputs[0], name=name, perm=self._constants[inputs[1]].tolist())
            case "Reshape":
                shape = self._constants[inputs[1]].copy()
                shape[0] = 0  # as many as come in
                graph.add("Reshape", inputs[0], graph.constant(shape), name=name)
            case "ConcatV2":
                *parts, axis = inputs
                graph.add("Concat", *map(self._value, parts), name=name, axis=int(self._constants[axis]))
            case "SplitV":
                others = [f"{name}:{index}" for index in range(1, int(attributes["num_split"]["i"]))]
                axis = int(self._constants[inputs[2]])
                graph.add_many("Split", [inputs[0], self._value(inputs[1])], [name, *others], axis=axis)
            case "Pad" | "PadV2":
                edges = graph.constant(self._constants[inputs[1]].T.reshape(-1))
                graph.add("Pad", inputs[0], edges, *map(self._value, inputs[2:]), name=name)
            case "Conv2D":
                self._convolution(name, inputs, attributes)
            case "MaxPool":
                kernel, strides = _sizes(attributes["ksize"])[1:3], _sizes(attributes["strides"])[1:3]
                x = graph.add("Transpose", inputs[0], perm=CHANNELS_FIRST)
                y = graph.add("MaxPool", x, kernel_shape=kernel, strides=strides)
                graph.add("Transpose", y, name=name, perm=CHANNELS_LAST)
            case "ResizeBilinear":
                x = graph.add("Transpose", inputs[0], perm=CHANNELS_FIRST)
                kept = graph.add("Shape", x, start=0, end=2)
                sizes = graph.add("Concat", kept, self._value(inputs[1]), axis=0)
                y = graph.add("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
                graph.add("Transpose", y, name=name, perm=CHANNELS_LAST)
            case _:
                raise _unknown(node)

    def _convolution(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        graph = self._graph
        if base64.b64decode(attributes["padding"]["s"]) != b"VALID":
            raise LoadFailed(f"nanodet.json: convolution `{name}` pads by itself, which is not converted")
        kernel = graph.constant(self._constants[inputs[1]].transpose(3, 2, 0, 1), f"{inputs[1]}.kernel")
        x = graph.add("Transpose", inputs[0], perm=CHANNELS_FIRST)
        strides, dilations = _sizes(attributes["strides"])[1:3], _sizes(attributes["dilations"])[1:3]
        y = graph.add("Conv", x, kernel, strides=strides, dilations=dilations)
        graph.add("Transpose", y, name=name, perm=CHANNELS_LAST)

    def _value(self, name: str) -> str:
        if name in self._constants:
            return self._graph.constant(self._constants[name], name)
        return name


def _sizes(attribute: dict[str, Any]) -> list[int]:
    return [int(size) for size in attribute["list"]["i"]]


def _unknown(node: Node) -> LoadFailed:
    return LoadFailed(f"nanodet.json: node `{node['name']}` is a {node['op']}, which is not converted")
