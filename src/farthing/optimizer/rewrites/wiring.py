"""A graph as rewrites see it: who makes and who reads each tensor, and what is always the same. Changed in place."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from farthing.types.tensors import Tensor


class Wiring:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.proto = model.graph
        self.opset = next((used.version for used in model.opset_import if used.domain in ("", "ai.onnx")), 0)
        self.made_by = {name: node for node in self.proto.node for name in node.output if name}
        self.read_by: dict[str, list[Any]] = {}
        for node in self.proto.node:
            for name in node.input:
                self.read_by.setdefault(name, []).append(node)
        self.given = {tensor.name for tensor in self.proto.input}
        self.outputs = {tensor.name for tensor in self.proto.output}
        self._weights = {tensor.name: tensor for tensor in self.proto.initializer if tensor.name not in self.given}
        self._numpy = numpy_helper.to_array

    def constant(self, name: str) -> Tensor | None:
        """The value of a tensor that is always the same."""
        if name in self._weights:
            return self._value(self._weights[name])
        node = self.made_by.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            return self._value(node.attribute[0].t)
        return None

    def _value(self, tensor: Any) -> Tensor:
        value: Tensor = self._numpy(tensor)
        return value

    def scalar(self, name: str) -> float | None:
        """The value of a constant of float32 that has one."""
        value = self.constant(name)
        is_one = value is not None and value.size == 1 and value.dtype == np.float32
        return float(value.reshape(-1)[0]) if value is not None and is_one else None

    def sizes(self, name: str) -> list[int]:
        """Dimensions as far as shape inference has told them, 0 where it has not; empty: nothing is known."""
        for tensor in (*self.proto.value_info, *self.proto.input, *self.proto.output):
            if tensor.name == name:
                return [dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim]
        return []

    def maker(self, name: str, kind: str) -> Any:
        """The node of this kind that makes the tensor; None if there is none."""
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == kind and node.domain in ("", "ai.onnx") else None

    def put(self, node: Any, replacing: Iterable[Any], weights: Mapping[str, Tensor]) -> None:
        """Puts nodes where `node` is, whose output the last of them makes instead."""
        from onnx import numpy_helper

        at = next(i for i, other in enumerate(self.proto.node) if other is node)
        self.proto.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
        before, after = list(self.proto.node)[:at], list(self.proto.node)[at + 1 :]
        nodes = [copied(one) for one in (*before, *replacing, *after)]
        del self.proto.node[:]
        self.proto.node.extend(nodes)

    def new(self, name: str) -> str:
        """A name that nothing has."""
        taken = self.made_by.keys() | self.given | self._weights.keys() | {node.name for node in self.proto.node}
        number = 0
        while f"{name}.{number}" in taken or any(known.startswith(f"{name}.{number}.") for known in taken):
            number += 1
        return f"{name}.{number}"


def copied(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def axes_of(graph: Wiring, squeeze: Any) -> list[int]:
    """What a Squeeze takes away; empty: it does not say, or counts from the end."""
    if len(squeeze.input) > 1:
        value = graph.constant(squeeze.input[1])
        axes = [] if value is None else value.reshape(-1).tolist()
    else:
        axes = next((list(a.ints) for a in squeeze.attribute if a.name == "axes"), [])
    return axes if all(axis >= 0 for axis in axes) else []


def without_identities(graph: Any) -> None:
    """Has readers of copies read the original; copies stay where they are outputs."""
    original = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    kept = {output.name for output in graph.output}
    for node in graph.node:
        for at in range(len(node.input)):
            while node.input[at] in original:
                node.input[at] = original[node.input[at]]
    left = [copied(node) for node in graph.node if node.output[0] not in original or node.output[0] in kept]
    del graph.node[:]
    graph.node.extend(left)
