"""How large does a model become when its functions are written out?

An ONNX file may define functions that call functions. Ten calls of a function of ten calls, eight deep, are 2 KB of
file and a hundred million operators: ONNX Runtime (1.32, whatever its `function_expansion_node_limit` says) works on
such a file for minutes. The size is counted here before anything is written out.
"""

from graphlib import CycleError, TopologicalSorter
from typing import Final

from farthing.engines.failure import shown
from farthing.engines.onnx_wire import Bytes, MalformedError, fields

EXPANDED_NODES_MAX: Final = 1_000_000
"""Operators after all functions are written out. Large language models exported with functions have some 100,000."""

_FUNCTIONS, _NODES, _ATTRIBUTES = 25, 7, 5
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_OP_TYPE, _OP_DOMAIN = 4, 7
_SUBGRAPHS: Final = (6, 11)
_GRAPH_NODES: Final = 1

Name = tuple[bytes, bytes]
"""Domain and name of a function or operator."""


def check_functions(data: Bytes) -> None:
    """Raises `MalformedError` for functions that call themselves or grow beyond `EXPANDED_NODES_MAX` operators."""
    calls: dict[Name, list[Name]] = {}
    for field, start, end in fields(data, 0, len(data)):
        if field == _FUNCTIONS:
            name, called = _function(data[start:end])
            calls.setdefault(name, []).extend(called)  # overloads count together: too much rather than too little
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        raise MalformedError(f"its function `{_shown(error.args[1][0])}` calls itself") from None
    size: dict[Name, int] = {}
    for name in order:
        size[name] = sum(size[called] for called in calls[name]) if name in calls else 1
        if size[name] > EXPANDED_NODES_MAX:
            raise MalformedError(f"its function `{_shown(name)}` grows to more than {EXPANDED_NODES_MAX} operators")


def _shown(name: Name) -> str:
    return shown(name[1].decode(errors="replace"))


def _function(data: bytes) -> tuple[Name, list[Name]]:
    name = domain = b""
    called: list[Name] = []
    waiting: list[tuple[int, int]] = []
    for field, start, end in fields(data, 0, len(data)):
        if field == _FUNCTION_NAME:
            name = data[start:end]
        elif field == _FUNCTION_DOMAIN:
            domain = data[start:end]
        elif field == _NODES:
            waiting.append((start, end))
    while waiting:
        called.append(_node(data, *waiting.pop(), waiting))
    return (domain, name), called


def _node(data: bytes, start: int, end: int, waiting: list[tuple[int, int]]) -> Name:
    """A node's operator; the nodes of its subgraphs (branches, loop bodies) join those waiting."""
    op_type = domain = b""
    for field, at, stop in fields(data, start, end):
        if field == _OP_TYPE:
            op_type = data[at:stop]
        elif field == _OP_DOMAIN:
            domain = data[at:stop]
        elif field == _ATTRIBUTES:
            for kind, graph_at, graph_stop in fields(data, at, stop):
                if kind in _SUBGRAPHS:
                    inner = fields(data, graph_at, graph_stop)
                    waiting += [(a, b) for member, a, b in inner if member == _GRAPH_NODES]
    return domain, op_type
