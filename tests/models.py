"""Small models for tests, written with `onnx.helper`: the same bytes on every run.

Each function gives the bytes of one ONNX file; `save` puts them where a repository would.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from farthing.engines.contract import Batch, Executable, Member, ModelSource
from farthing.types.tensors import Tensor

Shape = Sequence[int | str | None] | None

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""The protocol's datatype -> ONNX's."""


def tensor_info(name: str, datatype: str, shape: Shape) -> Any:
    """A graph's input or output; None as shape leaves even the number of dimensions open."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def graph(nodes: list[NodeProto], inputs: list[Any], outputs: list[Any], weights: dict[str, Tensor]) -> GraphProto:
    """A graph with these weights as initialisers."""
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(nodes, "graph", inputs, outputs, initialisers)


def model(
    nodes: list[NodeProto], inputs: list[Any], outputs: list[Any], weights: dict[str, Tensor] | None = None
) -> bytes:
    """An ONNX file of one graph, opset 17."""
    made = helper.make_model(
        graph(nodes, inputs, outputs, weights or {}), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(made.SerializeToString())


def tiny_mlp() -> bytes:
    """The benchmark's MLP: `x` FP32 [batch, 32] -> 64 (ReLU) -> `y` FP32 [batch, 8]."""
    random = np.random.default_rng(7)
    weights = {
        name: (random.standard_normal(shape) / 4).astype(np.float32)
        for name, shape in {"w1": (32, 64), "b1": (64,), "w2": (64, 8), "b2": (8,)}.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["y"]),
    ]
    return model(nodes, [tensor_info("x", "FP32", ["batch", 32])], [tensor_info("y", "FP32", ["batch", 8])], weights)


def small_convnet(size: int | str = 16) -> bytes:
    """`image` FP32 [batch, 3, size, size] -> two convolutions, pooling -> `logits` FP32 [batch, 10]."""
    random = np.random.default_rng(11)
    weights = {
        name: (random.standard_normal(shape) / 5).astype(np.float32)
        for name, shape in {"k1": (8, 3, 3, 3), "k2": (16, 8, 3, 3), "w": (16, 10), "b": (10,)}.items()
    }
    nodes = [
        helper.make_node("Conv", ["image", "k1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    inputs = [tensor_info("image", "FP32", ["batch", 3, size, size])]
    return model(nodes, inputs, [tensor_info("logits", "FP32", ["batch", 10])], weights)


def identity(datatype: str = "FP32", shape: Shape = ("batch", 2)) -> bytes:
    """`x` -> `y`, unchanged."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [tensor_info("x", datatype, shape)], [tensor_info("y", datatype, shape)])


def two_inputs_add_sub(datatype: str = "INT32", columns: int = 16) -> bytes:
    """Triton's example model: `OUTPUT0` is `INPUT0` + `INPUT1`, `OUTPUT1` their difference; [batch, columns]."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    inputs, outputs = (
        [tensor_info(f"{kind}{i}", datatype, ["batch", columns]) for i in range(2)] for kind in ("INPUT", "OUTPUT")
    )
    return model(nodes, inputs, outputs)


def sum_of_rows(batch_name: str | None = "batch") -> bytes:
    """`x` FP32 [batch, 4] -> `total` FP32 [], over all rows: an output that cannot be split."""
    node = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    return model([node], [tensor_info("x", "FP32", [batch_name, 4])], [tensor_info("total", "FP32", [])])


def fixed_batch(rows: int = 2) -> bytes:
    """`x` FP32 [rows, 4] -> `y`, doubled; nothing but exactly that many rows."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return model([node], [tensor_info("x", "FP32", [rows, 4])], [tensor_info("y", "FP32", [rows, 4])])


def optional_scale() -> bytes:
    """`y` = `x` * `scale`; x [batch, 2], and `scale` FP32 [2] may be left out: its default is (2, 3)."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    inputs = [tensor_info("x", "FP32", ["batch", 2]), tensor_info("scale", "FP32", [2])]
    weights = {"scale": np.array([2, 3], np.float32)}
    return model([node], inputs, [tensor_info("y", "FP32", ["batch", 2])], weights)


def running_sum(rows: str | int = "batch", id_datatype: str = "INT64") -> bytes:
    """`y` = `after` = `before` + `x`; `start` comes in and is added times zero, `id` comes in and is not looked at."""
    nodes = [
        helper.make_node("Add", ["before", "x"], ["sum"]),
        helper.make_node("Mul", ["start", "zero"], ["nothing"]),
        helper.make_node("Add", ["sum", "nothing"], ["after"]),
        helper.make_node("Identity", ["after"], ["y"]),
    ]
    inputs = [tensor_info(name, "FP32", [rows, 1]) for name in ("x", "before", "start")]
    inputs.append(tensor_info("id", id_datatype, [rows, 1]))
    outputs = [tensor_info(name, "FP32", [rows, 1]) for name in ("y", "after")]
    return model(nodes, inputs, outputs, {"zero": np.zeros(1, np.float32)})


def fails_when_run() -> bytes:
    """Loads, and fails on every run of other than 3 columns: `x` [batch, columns] times a 3x2 matrix."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs, outputs = [tensor_info("x", "FP32", ["batch", "columns"])], [tensor_info("y", "FP32", ["batch", 2])]
    return model([node], inputs, outputs, {"w": np.ones((3, 2), np.float32)})


def save(folder: Path, data: bytes, filename: str = "model.onnx") -> ModelSource:
    """Writes `folder/1/filename` and describes it as a repository does."""
    path = folder / "1" / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ModelSource(name=folder.name, version=1, path=path, folder=folder)


def run(
    executable: Executable, *, outputs: Sequence[str] = (), instance: int = 0, **inputs: Tensor
) -> dict[str, Tensor]:
    """Executes one lone request and gives its outputs, all of them unless named."""
    names = tuple(outputs) or tuple(spec.name for spec in executable.outputs)
    first = next(iter(inputs.values()))
    member = Member(rows=first.shape[0] if first.ndim else 1)
    answer = executable.execute(Batch(inputs=inputs, outputs=names, members=(member,)), instance)
    assert isinstance(answer, dict)
    return answer


def recurrent(*, mixes_rows: bool = False) -> bytes:
    """`sound` FP32 [?, 4] and `state` FP32 [2, ?, 3], rows along axes 0 and 1, `gain` FP32 [] for all of them -> `y`
    FP32 [?, 3] and `next` FP32 [2, ?, 3]: the usual layout of recurrent networks. `mixes_rows`: `y` is of all rows."""
    random = np.random.default_rng(5)
    weights = {"w": (random.standard_normal((4, 3)) / 2).astype(np.float32), "first": np.array(0, np.int64)}
    nodes = [
        helper.make_node("MatMul", ["sound", "w"], ["heard"]),
        helper.make_node("Add", ["heard", "state"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["turned"]),
        helper.make_node("Mul", ["turned", "gain"], ["next"]),
        helper.make_node("Gather", ["next", "first"], ["own"], axis=0),
        *([helper.make_node("ReduceMean", ["own"], ["mean"], axes=[0])] if mixes_rows else []),
        helper.make_node("Sub", ["own", "mean"], ["y"]) if mixes_rows else helper.make_node("Neg", ["own"], ["y"]),
    ]
    inputs = [
        tensor_info("sound", "FP32", [None, 4]),
        tensor_info("state", "FP32", [2, None, 3]),
        tensor_info("gain", "FP32", []),
    ]
    outputs = [tensor_info("y", "FP32", [None, 3]), tensor_info("next", "FP32", [None, None, None])]
    return model(nodes, inputs, outputs, weights)
