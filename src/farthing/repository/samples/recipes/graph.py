"""Writing an ONNX graph a node at a time.

`Graph` names values, collects constants and nodes, checks the result and saves it. What the network looks like is
each recipe's own business.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
"""First with LayerNormalization as one operator, and read by every runtime of the last three years."""
IR_VERSION: Final = 8
"""The file format that came with opset 17."""

ELEMENT_TYPES: Final = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}

Shape = Sequence[str | int]
"""Dimensions; a name is any size."""


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._values = 0

    def constant(self, value: ArrayLike, name: str = "") -> str:
        """A constant tensor; one that is already there by that name is used again."""
        name = name or self._fresh("constant")
        if name not in self._constants:
            # asarray with order, not ascontiguousarray, which would turn a scalar into a vector
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output, whose name comes back. An empty input is one left out."""
        return self.add_many(operator, inputs, [name or self._fresh(operator)], **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """A node with several outputs, named by the caller."""
        self._nodes.append(helper.make_node(operator, list(inputs), list(outputs), **attributes))
        return list(outputs)

    def save(
        self, path: Path, inputs: Mapping[str, tuple[str, Shape]], outputs: Mapping[str, tuple[str, Shape]]
    ) -> None:
        """Checks the graph and writes it, making the folder."""
        graph = helper.make_graph(
            self._nodes, self._name, _values(inputs), _values(outputs), list(self._constants.values())
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="farthing"
        )
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)

    def _fresh(self, kind: str) -> str:
        self._values += 1
        return f"{kind}_{self._values}"


def int64(*values: int) -> NDArray[np.int64]:
    """A vector of sizes, axes or indices."""
    return np.array(values, np.int64)


def _values(described: Mapping[str, tuple[str, Shape]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, ELEMENT_TYPES[datatype], list(shape))
        for name, (datatype, shape) in described.items()
    ]
