"""ONNX Runtime: real models of every datatype, run, refused, damaged."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.models import (
    ONNX_TYPES,
    fails_when_run,
    fixed_batch,
    identity,
    model,
    optional_scale,
    run,
    save,
    small_convnet,
    sum_of_rows,
    tensor_info,
    tiny_mlp,
    two_inputs_add_sub,
)

import farthing
from farthing.engines.contract import Batch, Executable, Member, ModelSource
from farthing.engines.cores import cores_available
from farthing.engines.onnxruntime import OnnxRuntime, _session_options, batch_axis_of
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec


def load(folder: Path, data: bytes, **source: Any) -> Executable:
    saved = save(folder / "model", data)
    return OnnxRuntime().load(type(saved)(**{f: getattr(saved, f) for f in saved.__struct_fields__} | source))


def objects(*values: bytes) -> Any:
    array = np.empty((1, len(values)), object)
    array[0] = values
    return array


def test_the_mlp_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp())
    assert mlp.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 32)),)
    assert mlp.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 8)),)
    assert mlp.batch_axis is True
    assert mlp.platform == "onnxruntime_onnx"
    assert mlp.health() == ""


@pytest.mark.parametrize("rows", [0, 1, 3, 64])
def test_the_mlp_computes_what_numpy_does(tmp_path: Path, rows: int) -> None:
    data = tiny_mlp()
    w = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    x = np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)
    expected = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    np.testing.assert_allclose(run(load(tmp_path, data), x=x)["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("datatype", [d for d in ONNX_TYPES if d != "BYTES"])
def test_every_numeric_datatype_passes_unchanged(tmp_path: Path, datatype: str) -> None:
    loaded = load(tmp_path, identity(datatype))
    x = np.array([[0, 1], [1, 3]]).astype(NUMPY_DTYPES[datatype])
    y = run(loaded, x=x)["y"]
    assert loaded.inputs[0].datatype == datatype
    assert y.dtype == x.dtype
    assert y.tobytes() == x.tobytes()
    assert run(loaded, x=x[:0])["y"].shape == (0, 2)


def test_read_only_inputs_are_taken(tmp_path: Path) -> None:
    body = bytes(range(8))
    for datatype in ("FP32", "BF16"):
        x = np.frombuffer(body, NUMPY_DTYPES[datatype]).reshape(-1, 2)
        assert run(load(tmp_path, identity(datatype)), x=x)["y"].tobytes() == body


def test_bfloat16_is_computed_and_mixes_with_other_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "z"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
    ]
    data = model(
        nodes,
        [tensor_info("x", "BF16", ["n", 2]), tensor_info("z", "FP32", ["n", 2])],
        [tensor_info("y", "BF16", ["n", 2]), tensor_info("sum", "FP32", ["n", 2])],
    )
    x = np.array([[1.5, -2]], ml_dtypes.bfloat16)
    answer = run(load(tmp_path, data), x=x, z=np.array([[1, 1]], np.float32))
    np.testing.assert_array_equal(answer["sum"], np.array([[2.5, -1]], np.float32))
    np.testing.assert_array_equal(answer["y"], np.array([[2.5, -1]], ml_dtypes.bfloat16))


def test_text_passes_with_zero_bytes_and_letters_of_any_alphabet(tmp_path: Path) -> None:
    words = objects(b"", "grüß 你好".encode())
    assert run(load(tmp_path, identity("BYTES")), x=words)["y"].tolist() == words.tolist()
    assert run(load(tmp_path, identity("BYTES")), x=objects(b"a\0b", b"\0"))["y"].tolist() == [[b"a\0b", b"\0"]]
    assert run(load(tmp_path, identity("BYTES")), x=np.empty((0, 2), object))["y"].shape == (0, 2)


def test_bytes_that_are_not_text_are_refused_naming_the_element(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"`x`, element 1: byte 2 is not UTF-8"):
        run(load(tmp_path, identity("BYTES")), x=objects(b"ok", b"ab\xff"))


def test_text_that_a_model_makes_badly_is_the_models_failure(tmp_path: Path) -> None:
    bad = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [tensor_info("y", "BYTES", [1])], [bad]
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    loaded = load(tmp_path, data)
    with pytest.raises(EngineFailed, match="not UTF-8"):
        loaded.execute(Batch(inputs={}, outputs=("y",), members=(Member(rows=1),)), 0)


def test_bfloat16_beside_text_inputs_is_refused_at_load(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [n], [n.upper()]) for n in ("a", "b")]
    inputs = [tensor_info("a", "BF16", ["n"]), tensor_info("b", "BYTES", ["n"])]
    outputs = [tensor_info("A", "BF16", ["n"]), tensor_info("B", "BYTES", ["n"])]
    with pytest.raises(LoadFailed, match="BYTES and has BF16"):
        load(tmp_path, model(nodes, inputs, outputs))


def test_only_wanted_outputs_come_back_whatever_their_order(tmp_path: Path) -> None:
    loaded = load(tmp_path, two_inputs_add_sub())
    inputs = {"INPUT0": np.full((1, 16), 5, np.int32), "INPUT1": np.full((1, 16), 2, np.int32)}
    for names in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        answer = run(loaded, outputs=names, **inputs)
        assert {n: int(t[0, 0]) for n, t in answer.items()} == {n: {"OUTPUT0": 7, "OUTPUT1": 3}[n] for n in names}


def test_outputs_of_two_calls_share_no_memory(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp())
    x = np.ones((2, 32), np.float32)
    first = run(mlp, x=x)["y"]
    before = first.copy()
    second = run(mlp, x=-x)["y"]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, before)


def test_a_constant_output_cannot_be_spoilt_by_who_receives_it(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    outputs = [tensor_info("y", "FP32", ["n"]), tensor_info("w", "FP32", [2])]
    loaded = load(tmp_path, model([node], [tensor_info("x", "FP32", ["n"])], outputs, {"w": np.ones(2, np.float32)}))
    x = np.zeros(1, np.float32)
    run(loaded, x=x)["w"][:] = 9
    assert run(loaded, x=x)["w"].tolist() == [1, 1]


def test_instances_run_side_by_side_on_one_session(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp(), instances=4)
    rows = [np.full((1, 32), i, np.float32) for i in range(4)]
    expected = [run(mlp, x=row)["y"] for row in rows]
    wrong: list[int] = []

    def client(i: int) -> None:
        wrong.extend(i for _ in range(300) if not np.array_equal(run(mlp, instance=i, x=rows[i])["y"], expected[i]))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What a file says of its shapes


@pytest.mark.parametrize(
    ("leading", "verdict"),
    [
        (["batch", "batch"], True),
        (["batch", "N"], False),
        (["batch", 1], False),
        ([0, "batch"], False),
        (["batch", None], None),
        ([None], None),
        (["batch", "unk__41"], None),
        (["batch", "Gemmy_dim_0"], None),
        (["DynamicDimension.0", "DynamicDimension.3"], None),
        (["batch", "tokens", None], False),
        ([], None),
    ],
)
def test_the_batch_axis_is_what_the_names_say(leading: list[int | str | None], verdict: bool | None) -> None:
    assert batch_axis_of(leading) is verdict


def test_models_without_rows_say_so(tmp_path: Path) -> None:
    assert load(tmp_path, fixed_batch()).batch_axis is False
    assert load(tmp_path, sum_of_rows()).batch_axis is False
    assert load(tmp_path, two_inputs_add_sub()).batch_axis is True


def test_scalars_go_in_and_out(tmp_path: Path) -> None:
    assert load(tmp_path, sum_of_rows()).outputs[0].shape == ()
    total = run(load(tmp_path, sum_of_rows()), x=np.ones((3, 4), np.float32))["total"]
    assert (total.shape, float(total)) == ((), 12.0)
    assert run(load(tmp_path, identity("INT64", [])), x=np.array(5))["y"].shape == ()


def reshaping(columns: int | str) -> bytes:
    """`y` is `x` times a 3x2 matrix in whatever shape `to` says: its rank is in no file."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Reshape", ["h", "to"], ["y"])]
    inputs = [tensor_info("x", "FP32", ["n", columns]), tensor_info("to", "INT64", ["rank"])]
    return model(nodes, inputs, [tensor_info("y", "FP32", None)], {"w": np.ones((3, 2), np.float32)})


def test_an_output_of_unknown_rank_is_looked_at_in_a_run(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "to"], ["y"], allowzero=1)
    inputs = [tensor_info("x", "FP32", [0, "n"]), tensor_info("to", "INT64", [3])]
    loaded = load(tmp_path, model([node], inputs, [tensor_info("y", "FP32", None)]))
    assert loaded.outputs[0].shape == (-1, -1, -1)


def test_an_output_whose_rank_cannot_be_seen_must_be_configured(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="how many dimensions output `y` has"):
        load(tmp_path, reshaping("columns"))
    known = (TensorSpec(name="y", datatype="FP32", shape=(-1, 7)),)
    assert load(tmp_path, reshaping("columns"), outputs=known).outputs == known


def test_a_default_is_an_optional_input_where_it_is_asked_for(tmp_path: Path) -> None:
    x = np.ones((1, 2), np.float32)
    plain = load(tmp_path, optional_scale())
    assert ([i.name for i in plain.inputs], plain.batch_axis) == (["x"], True)
    asked = tuple(TensorSpec(name=n, datatype="FP32", shape=s) for n, s in (("x", (-1, 2)), ("scale", (2,))))
    scaled = load(tmp_path, optional_scale(), inputs=asked)
    assert [(i.name, i.is_optional) for i in scaled.inputs] == [("x", False), ("scale", True)]
    assert scaled.batch_axis is False
    assert run(scaled, x=x)["y"].tolist() == [[2, 3]]
    assert run(scaled, x=x, scale=np.array([5, 7], np.float32))["y"].tolist() == [[5, 7]]
    with pytest.raises(InvalidInput, match="missing: `x`"):
        run(scaled, scale=np.array([5, 7], np.float32))


# What is wrong with a request


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.ones((1, 31), np.float32)}, "Got: 31 Expected: 32"),
        ({"x": np.ones((1, 32), np.float64)}, "Unexpected input data type"),
        ({"x": np.ones(32, np.float32)}, "Invalid rank"),
        ({"q": np.ones((1, 32), np.float32)}, "Invalid input name: q"),
        ({"x": np.ones((1, 32), np.float32), "q": np.ones(1)}, "Invalid input name: q"),
    ],
)
def test_inputs_that_do_not_fit_are_the_requests_fault(tmp_path: Path, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        run(load(tmp_path, tiny_mlp()), outputs=["y"], **inputs)


def test_a_missing_input_never_reaches_the_kernels(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="missing: `INPUT1`"):
        run(load(tmp_path, two_inputs_add_sub()), INPUT0=np.ones((1, 16), np.int32))


def test_a_failing_operator_is_the_models_fault_and_stays_out_of_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineFailed) as caught:
        run(load(tmp_path, fails_when_run()), x=np.ones((1, 4), np.float32))
    assert caught.value.message.startswith("model `model` failed: ")
    assert "MatMul dimension mismatch" in caught.value.message
    assert "onnxruntime_src" not in caught.value.message
    assert capfd.readouterr() == ("", "")


# What is wrong with a model


@pytest.mark.parametrize("data", [b"", b"garbage", tiny_mlp()[:3000], tiny_mlp()[:7], b"\x08\x08"])
def test_a_broken_file_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(LoadFailed, match=r"model/1/model\.onnx: "):
        load(tmp_path, data)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    source = save(tmp_path, tiny_mlp())
    source.path.unlink()
    with pytest.raises(LoadFailed, match=r"model\.onnx: cannot be read: No such file"):
        OnnxRuntime().load(source)


def test_a_model_without_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="output"):
        load(tmp_path, model([], [tensor_info("x", "FP32", ["n"])], []))


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    data = model(
        [helper.make_node("Mystery", ["x"], ["y"])], [tensor_info("x", "FP32", [1])], [tensor_info("y", "FP32", [1])]
    )
    with pytest.raises(LoadFailed, match="Mystery"):
        load(tmp_path, data)


def zipmap() -> bytes:
    """A classifier's tail as skl2onnx writes it: probabilities as a sequence of maps."""
    node = helper.make_node("ZipMap", ["x"], ["output_probability"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    outputs = [
        tensor_info("label", "FP32", ["n", 2]),
        helper.make_value_info("output_probability", helper.make_sequence_type_proto(maps)),
    ]
    same = helper.make_node("Identity", ["x"], ["label"])
    graph = helper.make_graph([node, same], "g", [tensor_info("x", "FP32", ["n", 2])], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_a_zipmap_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as caught:
        load(tmp_path, zipmap())
    assert "`output_probability` is a seq(map(int64,tensor(float)))" in caught.value.message
    assert "'zipmap': False" in caught.value.hint


def test_a_zipmap_left_out_of_the_configuration_does_no_harm(tmp_path: Path) -> None:
    label = (TensorSpec(name="label", datatype="FP32", shape=(-1, 2)),)
    loaded = load(tmp_path, zipmap(), outputs=label)
    assert loaded.outputs == label
    assert run(loaded, x=np.ones((1, 2), np.float32)).keys() == {"label"}


# Weights in other files


def with_external(folder: Path, location: str, values: Any, declared: int | None = None) -> Any:
    node = helper.make_node("Gather", ["w", "i"], ["y"])
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[declared or len(values)], data_location=1)
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [node], "g", [tensor_info("i", "INT64", ["n"])], [tensor_info("y", "FP32", ["n"])], [weights]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = save(folder, made.SerializeToString())
    (source.path.parent / location).parent.mkdir(exist_ok=True)
    (source.path.parent / location).write_bytes(np.asarray(values, np.float32).tobytes())
    return source


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "data/w.bin"])
def test_external_weights_are_read_and_the_file_may_change_afterwards(tmp_path: Path, location: str) -> None:
    source = with_external(tmp_path, location, np.arange(300_000))
    loaded = OnnxRuntime().load(source)
    (source.path.parent / location).write_bytes(b"")  # a mapped file would now end this process
    assert run(loaded, i=np.array([0, 299_999]))["y"].tolist() == [0, 299_999]
    if Path("/proc/self/maps").exists():
        assert str(source.path.parent) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("values", [[], [1.0]])
def test_external_weights_cut_off_are_an_error(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(LoadFailed, match=r"model\.onnx"):
        OnnxRuntime().load(with_external(tmp_path, "w.bin", values, declared=1000))


def test_the_folder_layout_of_triton_for_large_models_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "1" / "model.onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_mlp())
    source = save(tmp_path / "other", tiny_mlp())
    source = type(source)(name="m", version=1, path=folder, folder=tmp_path)
    assert OnnxRuntime().load(source).inputs[0].name == "x"
    (folder / "model.onnx").rename(tmp_path.parent / "outside.onnx")
    (folder / "model.onnx").symlink_to(tmp_path.parent / "outside.onnx")
    with pytest.raises(LoadFailed, match="leads out"):
        OnnxRuntime().load(source)


def test_a_pipe_in_a_models_place_does_not_hang_the_load(tmp_path: Path) -> None:
    source = save(tmp_path, b"")
    source.path.unlink()
    os.mkfifo(source.path)
    with pytest.raises(LoadFailed, match="not a regular file"):
        OnnxRuntime().load(source)


# Knobs, threads and cost


@pytest.mark.parametrize("text", ["-1", "two", "1e3", "99999", "١"])
def test_a_thread_count_must_be_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(LoadFailed, match="`intra_op_thread_count`"):
        load(tmp_path, tiny_mlp(), parameters={"intra_op_thread_count": text})


def test_cores_are_shared_among_instances_unless_said_otherwise(tmp_path: Path) -> None:
    def threads(**said: Any) -> int:
        source = ModelSource(name="m", version=1, path=tmp_path, folder=tmp_path, **said)
        return int(_session_options(onnxruntime, source, tmp_path).intra_op_num_threads)

    cores = cores_available()
    assert threads() == cores
    assert threads(instances=cores) == 1
    assert threads(instances=10 * cores) == 1
    assert threads(threads=3, instances=2) == 3
    assert threads(threads=3, parameters={"intra_op_thread_count": "4"}) == 4
    assert threads(threads=3, parameters={"intra_op_thread_count": "0"}) == 3


def test_an_idle_model_burns_no_cpu(tmp_path: Path) -> None:
    """ONNX Runtime's default spins for some 20 ms after a run; here that shows as CPU time without work."""
    net = load(tmp_path, small_convnet(64), threads=2)
    image = np.ones((8, 3, 64, 64), np.float32)
    run(net, image=image)

    def spent_after_a_run() -> float:
        run(net, image=image)
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < 0.03:
            threading.Event().wait(0.005)
        return time.process_time() - cpu

    assert min(spent_after_a_run() for _ in range(5)) < 0.008


def test_execute_adds_little_to_the_session(tmp_path: Path) -> None:
    """About 0.5 us to 3.3 on a quiet machine; on a busy one both grow, so their ratio is held."""
    mlp: Any = load(tmp_path, tiny_mlp(), threads=1)
    x = np.ones((1, 32), np.float32)
    batch = Batch(inputs={"x": x}, outputs=("y",), members=(Member(rows=1),))

    def took_ns(call: Any, *args: Any) -> int:
        start = time.perf_counter_ns()
        for _ in range(300):
            call(*args)
        return time.perf_counter_ns() - start

    rounds = [(took_ns(mlp.execute, batch, 0), took_ns(mlp._run, ("y",), {"x": x}, None)) for _ in range(30)]
    whole, session = (min(column) for column in zip(*rounds, strict=True))
    assert whole < 1.5 * session


def test_importing_the_engine_does_not_import_onnxruntime() -> None:
    code = """
        import sys, farthing.engines.onnxruntime as engine
        assert "onnxruntime" not in sys.modules and "onnx" not in sys.modules
        assert engine.OnnxRuntime().recognises(engine.Path("a/MODEL.ONNX"))
    """
    src = str(Path(farthing.__file__).parents[1])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env={"PYTHONPATH": src})
