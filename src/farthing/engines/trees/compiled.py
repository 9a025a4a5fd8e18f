"""Trees as machine code: each a function of nested comparisons, compiled by LLVM when the model is loaded.

A tree runs over a block of rows before the next tree does, so its code is hot; each row's sums are still taken tree by
tree, as everywhere else here. Nothing is read from disk or written to it. What a forest is belongs to `forest`.
"""

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from farthing.engines.trees.forest import BadModel, Forest
from farthing.types.tensors import Tensor

NODES_MAX: Final = 100_000
"""Decisions of a forest that is compiled; LLVM takes some 0.1 ms for each."""

BLOCK_ROWS: Final = 256
"""Rows a tree runs over before the next one does: their columns and sums stay in the first cache."""


class CompiledForest:
    """A forest's sums as a function. May be called on many threads at once."""

    def __init__(self, forest: Forest) -> None:
        """Compiles. Raises `BadModel` for what is not compiled, `ImportError` without llvmlite."""
        import llvmlite.binding as llvm

        if forest.members:
            raise BadModel("decisions on sets of categories are not compiled")
        if len(forest.column) > NODES_MAX:
            raise BadModel(f"{len(forest.column)} decisions; up to {NODES_MAX} are compiled")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1
        )
        module = llvm.parse_assembly("\n".join(_module(forest)))
        module.verify()
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)  # the code lives as long as this
        self._engine.finalize_object()
        address = self._engine.get_function_address("forest")
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(address)
        self._targets, self._dtype = forest.targets, forest.dtype

    def sums(self, columns: Tensor) -> Tensor:
        """[rows, targets] of columns [rows, features and derived ones], without Python's lock."""
        columns = np.ascontiguousarray(columns, self._dtype)
        sums = np.zeros((len(columns), self._targets), self._dtype)
        self._call(columns.ctypes.data, len(columns), sums.ctypes.data)
        return sums


def _module(forest: Forest) -> Iterator[str]:
    kind = "float" if forest.dtype == np.float32 else "double"
    width = forest.features + len(forest.derived)
    for number, root in enumerate(forest.roots):
        yield from _tree(forest, number, int(root), kind, width)
    yield "define void @forest(ptr %x, i64 %rows, ptr %sums) {"
    yield "entry:"
    yield "  br label %block"
    yield "block:"
    yield "  %at = phi i64 [ 0, %entry ], [ %next, %run ]"
    yield "  %left = sub i64 %rows, %at"
    yield "  %any = icmp sgt i64 %left, 0"
    yield "  br i1 %any, label %run, label %end"
    yield "run:"
    yield f"  %full = icmp sgt i64 %left, {BLOCK_ROWS}"
    yield f"  %count = select i1 %full, i64 {BLOCK_ROWS}, i64 %left"
    yield f"  %xat = mul i64 %at, {width}"
    yield f"  %xp = getelementptr {kind}, ptr %x, i64 %xat"
    yield f"  %sat = mul i64 %at, {forest.targets}"
    yield f"  %sp = getelementptr {kind}, ptr %sums, i64 %sat"
    for number in range(len(forest.roots)):
        yield f"  call void @tree{number}(ptr %xp, i64 %count, ptr %sp)"
    yield "  %next = add i64 %at, %count"
    yield "  br label %block"
    yield "end:"
    yield "  ret void"
    yield "}"


def _tree(forest: Forest, number: int, root: int, kind: str, width: int) -> Iterator[str]:
    """A loop over rows around the tree's decisions; every leaf goes on to the next row."""
    yield f"define internal void @tree{number}(ptr noalias %x, i64 %rows, ptr noalias %sums) {{"
    yield "entry:"
    yield "  br label %row"
    yield "row:"
    yield "  %i = phi i64 [ 0, %entry ], [ %i1, %next ]"
    yield f"  %xi = mul i64 %i, {width}"
    yield f"  %xp = getelementptr {kind}, ptr %x, i64 %xi"
    yield f"  br label %n{root}"
    found, pending = [], [root]
    # Ordered comparisons are false of a NaN, unordered ones true: that is where missing values go.
    better = "lt" if forest.is_strict else "le"
    while pending:
        node = pending.pop()
        yes, no = int(forest.yes[node]), int(forest.no[node])
        test = ("u" if forest.missing_is_yes[node] else "o") + better
        yield f"n{node}:"
        yield f"  %p{node} = getelementptr {kind}, ptr %xp, i64 {int(forest.column[node])}"
        yield f"  %v{node} = load {kind}, ptr %p{node}"
        yield f"  %c{node} = fcmp {test} {kind} %v{node}, {_constant(forest.threshold[node])}"
        ways = []
        for side, child in (("y", yes), ("n", no)):
            if child >= 0:
                pending.append(child)
                ways.append(f"%n{child}")
            else:
                found.append((f"l{side}{node}", ~child))
                ways.append(f"%l{side}{node}")
        yield f"  br i1 %c{node}, label {ways[0]}, label {ways[1]}"
    for label, _ in found:
        yield f"{label}:"
        yield "  br label %next"
    target = int(forest.leaf_target[found[0][1]])
    yield "next:"
    values = ", ".join(f"[ {_constant(forest.leaf_value[leaf])}, %{label} ]" for label, leaf in found)
    yield f"  %leaf = phi {kind} {values}"
    yield f"  %si = mul i64 %i, {forest.targets}"
    yield f"  %st = add i64 %si, {target}"
    yield f"  %sp = getelementptr {kind}, ptr %sums, i64 %st"
    yield f"  %before = load {kind}, ptr %sp"
    yield f"  %after = fadd {kind} %before, %leaf"
    yield f"  store {kind} %after, ptr %sp"
    yield "  %i1 = add i64 %i, 1"
    yield "  %more = icmp slt i64 %i1, %rows"
    yield "  br i1 %more, label %row, label %end"
    yield "end:"
    yield "  ret void"
    yield "}"


def _constant(value: Any) -> str:
    """A number as LLVM reads it exactly: the bits of its double, for float too."""
    return f"0x{struct.unpack('>Q', struct.pack('>d', float(value)))[0]:016X}"
