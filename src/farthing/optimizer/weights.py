"""Weights in 8 or 4 bits, activations in float: `MatMulNBits` nodes in place of MatMul and Gemm.

The node is ONNX Runtime's (com.microsoft), and OpenVINO reads it in 4 bits. Weights are scaled in blocks of 32 along
the inner dimension, symmetric, the scale chosen by the largest value, which then sits on the one code that has no
opposite. Nobody says here whether that is good enough: `optimizer.agreement` does.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.engines.failure import reason_of
from farthing.types.errors import LoadFailed
from farthing.types.tensors import Tensor

BLOCK: Final = 32
"""Weights that share a scale; two bytes of scale on 16 or 32 of codes."""

INNER_MIN: Final = 32
"""Rows of a matrix below which it is left as it is."""

AS_INT8: Final = 4
"""ONNX Runtime's `accuracy_level`: activations may be rounded to int8 in blocks, which is what makes it fast."""


def in_few_bits(clean: Path, out: Path, bits: int) -> None:
    """Writes the file. Raises `LoadFailed` where there is nothing to change."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load(str(clean))
    graph = proto.graph
    weights = {weight.name: weight for weight in graph.initializer}
    changed, nodes, added = set(), [], []
    for node in graph.node:
        matrix = _matrix_of(node, weights)
        if matrix is None:
            nodes.append(node)
            continue
        name = node.input[1]
        if name not in changed:
            changed.add(name)
            codes, scales = packed(matrix, bits)
            added += [
                numpy_helper.from_array(codes, f"{name}.codes"),
                numpy_helper.from_array(scales.reshape(-1), f"{name}.scales"),
            ]
        bias = node.op_type == "Gemm" and len(node.input) == 3 and node.input[2]
        product = f"{node.output[0]}.product" if bias else node.output[0]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}.codes", f"{name}.scales"],
                [product],
                name=node.name or f"{node.output[0]}.bits",
                domain="com.microsoft",
                K=matrix.shape[0],
                N=matrix.shape[1],
                bits=bits,
                block_size=BLOCK,
                accuracy_level=AS_INT8,
            )
        )
        if bias:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    if not changed:
        raise LoadFailed("no matrix of weights is large enough to be packed")
    still = {name for node in nodes for name in node.input}
    kept = [_copy(weight) for weight in graph.initializer if weight.name in still]
    nodes = [_copy(node) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *added])
    if not any(opset.domain == "com.microsoft" for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    try:
        out.write_bytes(proto.SerializeToString())
    except (OSError, ValueError) as error:
        raise LoadFailed(f"weights in {bits} bits could not be written: {reason_of(error)}") from error


def packed(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [columns, blocks, bytes], and scales [columns, blocks], of a matrix float32 [rows, columns]."""
    rows, columns = matrix.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((columns, blocks * BLOCK), np.float32)
    padded[:, :rows] = matrix.T
    values = padded.reshape(columns, blocks, BLOCK)
    middle = 1 << (bits - 1)
    at = np.abs(values).argmax(-1)[..., None]
    largest = np.take_along_axis(values, at, -1)[..., 0]
    scales = np.where(largest == 0, 1.0, largest / -middle).astype(np.float32)
    codes = np.clip(np.rint(values / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(codes), scales


def _matrix_of(node: Any, weights: dict[str, Any]) -> Tensor | None:
    """The weights [inner, outer] of a product that can be packed; None for anything else."""
    from onnx import numpy_helper

    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return None
    turned = False
    if node.op_type == "Gemm":
        said = {attribute.name: attribute for attribute in node.attribute}
        if any(name in said and said[name].f != 1.0 for name in ("alpha", "beta")):
            return None
        if "transA" in said and said["transA"].i:
            return None
        turned = bool("transB" in said and said["transB"].i)
    matrix: Tensor = numpy_helper.to_array(weights[node.input[1]])
    if matrix.ndim != 2 or matrix.dtype != np.float32:
        return None
    matrix = matrix.T if turned else matrix
    return matrix if matrix.shape[0] >= INNER_MIN else None


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
