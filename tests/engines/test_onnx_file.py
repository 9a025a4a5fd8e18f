"""What an ONNX file pulls in is found wherever it hides, and a file that is not whole says so."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.models import small_convnet, tensor_info, tiny_mlp

from farthing.engines.onnx_file import MESSAGES, check_onnx_file, external_locations
from farthing.engines.onnx_functions import check_functions
from farthing.engines.onnx_wire import MalformedError
from farthing.types.errors import LoadFailed

X, Y = tensor_info("x", "FP32", ["n", 2]), tensor_info("y", "FP32", ["n", 2])


def external(location: str, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(location: str) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(external(location), numpy_helper.from_array(np.array([0, 1])), [4])


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Custom", ["x"], ["y"], **attributes)


def with_weights(location: str) -> bytes:
    add = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([add], "g", [X], [Y], [external(location)])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def hiding_places(location: str) -> dict[str, onnx.ModelProto]:
    """A model for every kind of place where external data can be named."""

    def graph(**keywords: Any) -> onnx.GraphProto:
        return helper.make_graph(keywords.pop("nodes", []), "g", [X], [Y], **keywords)

    inner = graph(initializer=[external(location)])
    deep = inner
    for _ in range(20):
        deep = graph(nodes=[node(body=deep)])
    function = helper.make_function("f", "F", ["x"], ["y"], [node(value=external(location))], [])
    defaults = onnx.FunctionProto(attribute_proto=[helper.make_attribute("value", external(location))])
    training = onnx.TrainingInfoProto(initialization=inner)
    return {
        "initialiser": helper.make_model(inner),
        "sparse initialiser": helper.make_model(graph(sparse_initializer=[sparse(location)])),
        "attribute": helper.make_model(graph(nodes=[node(value=external(location))])),
        "attribute list": helper.make_model(graph(nodes=[node(values=[external(location)])])),
        "sparse attribute": helper.make_model(graph(nodes=[node(value=sparse(location))])),
        "subgraph": helper.make_model(graph(nodes=[node(body=inner)])),
        "subgraph list": helper.make_model(graph(nodes=[node(branches=[inner])])),
        "twenty subgraphs deep": helper.make_model(deep),
        "function": helper.make_model(graph(), functions=[function]),
        "function default": helper.make_model(graph(), functions=[defaults]),
        "training": onnx.ModelProto(graph=graph(), training_info=[training]),
    }


@pytest.mark.parametrize("place", hiding_places(""))
def test_external_data_is_found_in_every_place(place: str) -> None:
    assert list(external_locations(hiding_places("../secret")[place].SerializeToString())) == ["../secret"]


def test_the_table_of_messages_is_what_the_onnx_package_describes() -> None:
    def children(descriptor: Any) -> dict[int, Any]:
        return {f.number: f.message_type for f in descriptor.fields if f.message_type is not None}

    def leads_to_tensors(descriptor: Any, seen: frozenset[str] = frozenset()) -> bool:
        if descriptor.name in ("TensorProto", "SparseTensorProto"):
            return True
        rest = [c for c in children(descriptor).values() if c.name not in seen]
        return any(leads_to_tensors(child, seen | {descriptor.name}) for child in rest)

    expected: dict[str, dict[int, str]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.name in expected or descriptor.name == "TensorProto":
            continue
        found = {n: child for n, child in children(descriptor).items() if leads_to_tensors(child)}
        expected[descriptor.name] = {n: child.name for n, child in found.items()}
        waiting += found.values()
    entries = {f.number for f in onnx.TensorProto.DESCRIPTOR.fields if f.name == "external_data"}
    expected["TensorProto"] = dict.fromkeys(entries, "StringStringEntryProto")
    expected["StringStringEntryProto"] = {}
    assert expected == MESSAGES


def test_weights_beside_the_model_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.onnx"
    (path.parent / "data").mkdir(parents=True)
    path.write_bytes(with_weights("data/w.bin"))
    (path.parent / "data" / "w.bin").write_bytes(bytes(8))
    check_onnx_file(path, tmp_path)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/hostname", "without `..`"),
        ("../../outside.bin", "without `..`"),
        ("../1/w.bin", "without `..`"),
        ("w.bin/../w.bin", "without `..`"),
        ("..\\outside.bin", "without `..`"),
        ("", "without `..`"),
        ("w\0.bin", "without `..`"),
        ("missing.bin", "No such file"),
        ("w.bin/below", "Not a directory"),
        ("link.bin", "leads out of the model's folder"),
        ("linked/outside.bin", "leads out of the model's folder"),
        ("loop", "cannot be read"),
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("x" * 5000, "cannot be read"),
        ("*/_ORT_MEM_ADDR_/*", "is an address"),
    ],
)
def test_a_file_outside_the_models_folder_is_never_opened(tmp_path: Path, location: str, reason: str) -> None:
    folder = tmp_path / "model"
    version = folder / "1"
    (version / "folder").mkdir(parents=True)
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(8))
    (version / "w.bin").write_bytes(bytes(8))
    (version / "link.bin").symlink_to(outside)
    (version / "linked").symlink_to(tmp_path)
    (version / "loop").symlink_to(version / "loop")
    os.mkfifo(version / "fifo")
    path = version / "model.onnx"
    path.write_bytes(with_weights(location))
    with pytest.raises(LoadFailed) as caught:
        check_onnx_file(path, folder)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_a_file_cut_off_names_itself(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_mlp()[:keep])
    with pytest.raises(LoadFailed, match=re.escape(str(path))):
        check_onnx_file(path, tmp_path)


def test_a_tag_that_other_readers_cut_to_32_bits_is_refused() -> None:
    graph = onnx.ModelProto(graph=helper.make_graph([], "g", [X], [Y], [external("../secret")])).SerializeToString()
    assert graph[0] == 0x3A  # field 7, length-delimited
    disguised = b"\xba\x80\x80\x80\x10" + graph[1:]  # the same tag with bit 32 set
    with pytest.raises(MalformedError):
        list(external_locations(disguised))


def test_a_later_number_does_not_hide_the_key_of_an_entry() -> None:
    entry = b"\x0a\x08location\x12\x09../secret" + b"\x08\x01"  # key, value, and field 1 again as a number
    tensor = b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    assert list(external_locations(b"\x3a" + bytes([len(graph)]) + graph)) == ["../secret"]


def test_endless_nesting_is_refused() -> None:
    message = b"location"
    for _ in range(200):  # subgraph in attribute in node in graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size = len(message)
            message = tag + bytes([size & 0x7F | 0x80, size >> 7]) + message
    size = len(message)
    with pytest.raises(MalformedError, match="nested deeper"):
        list(external_locations(b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7]) + message))


def calling(**calls: list[str]) -> bytes:
    """A model with functions of these names, which call those in their lists one after the other."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function(
            "f", name, ["x"], ["y"], [helper.make_node(c, ["x"], ["y"], domain="f") for c in called], opsets
        )
        for name, called in calls.items()
    ]
    return bytes(onnx.ModelProto(functions=functions).SerializeToString())


def test_functions_that_multiply_are_refused_before_they_are_written_out() -> None:
    levels = {f"F{i}": [f"F{i + 1}"] * 10 for i in range(8)}
    with pytest.raises(MalformedError, match="more than 1000000 operators"):
        check_functions(calling(**levels, F8=["Abs"]))
    check_functions(calling(**dict(list(levels.items())[4:]), F8=["Abs"]))  # 10,000


@pytest.mark.parametrize("calls", [{"F": ["F"]}, {"F": ["G"], "G": ["F"]}])
def test_functions_that_call_themselves_are_refused(calls: dict[str, list[str]]) -> None:
    with pytest.raises(MalformedError, match="calls itself"):
        check_functions(calling(**calls))


def test_calls_from_a_branch_count() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    body = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="f")] * 3, "g", [X], [Y])
    function = helper.make_function("f", "F", ["x"], ["y"], [node(then_branch=body)], opsets)
    with pytest.raises(MalformedError, match="calls itself"):
        check_functions(onnx.ModelProto(functions=[function]).SerializeToString())


@given(st.binary(max_size=400))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        check_functions(b"\xca\x01" + bytes([len(data) & 0x7F | 0x80, len(data) >> 7]) + data)
    with contextlib.suppress(MalformedError):
        list(external_locations(data))


@given(st.data())
def test_any_damage_is_walked_or_refused(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from([small_convnet(), with_weights("w.bin")]))
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedError):
        list(external_locations(bytes(damaged)))
