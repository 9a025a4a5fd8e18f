"""OpenVINO: the same models as ONNX Runtime, the same answers; IR files, whole and damaged."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.models import (
    ONNX_TYPES,
    fails_when_run,
    identity,
    model,
    recurrent,
    run,
    save,
    small_convnet,
    sum_of_rows,
    tensor_info,
    tiny_mlp,
    two_inputs_add_sub,
)

import farthing
from farthing.engines.contract import Executable, ModelSource
from farthing.engines.onnxruntime import OnnxRuntime
from farthing.engines.openvino import OpenVino
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec

openvino = pytest.importorskip("openvino")


def changed(source: ModelSource, **fields: Any) -> ModelSource:
    return ModelSource(**{name: getattr(source, name) for name in source.__struct_fields__} | fields)


def load(folder: Path, data: bytes, **fields: Any) -> Executable:
    return OpenVino().load(changed(save(folder / "model", data), **fields))


@pytest.fixture
def ir(tmp_path: Path) -> ModelSource:
    """The MLP as IR: `model.xml` and `model.bin`."""
    source = save(tmp_path / "model", tiny_mlp())
    converted = openvino.Core().read_model(str(source.path))
    source.path.unlink()
    path = source.path.with_suffix(".xml")
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return changed(source, path=path)


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_both_engines_agree_on_the_mlp(tmp_path: Path, ir: ModelSource, rows: int) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)
    expected = run(OnnxRuntime().load(save(tmp_path / "onnx", tiny_mlp())), x=x)["y"]
    for loaded in (load(tmp_path, tiny_mlp()), OpenVino().load(ir)):
        y = run(loaded, x=x)["y"]
        assert y.shape == (rows, 8)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, "size"])
def test_both_engines_agree_on_a_convnet(tmp_path: Path, size: int | str) -> None:
    data = small_convnet(size)
    ours, theirs = load(tmp_path, data), OnnxRuntime().load(save(tmp_path / "onnx", data))
    for edge in (16, 16 if size == 16 else 23):
        image = np.random.default_rng(edge).standard_normal((3, 3, edge, edge)).astype(np.float32)
        expected = run(theirs, image=image)["logits"]
        np.testing.assert_allclose(run(ours, image=image)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_shapes_are_the_files_and_a_free_dimension_may_be_a_batch(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp())
    assert mlp.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 32)),)
    assert mlp.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 8)),)
    assert mlp.batch_axis is None
    assert load(tmp_path, sum_of_rows()).batch_axis is False
    assert load(tmp_path, identity("FP32", [1, 2])).batch_axis is False


def test_outputs_keep_the_files_names_when_compiling_merges_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(recurrent())
    loaded = OpenVino().load(ModelSource(name="m", version=1, path=tmp_path / "model.onnx", folder=tmp_path))
    assert [spec.name for spec in loaded.outputs] == ["y", "next"], "`y` is `own` with its sign turned"


@pytest.mark.parametrize("datatype", [d for d in ONNX_TYPES if d != "BYTES"])
def test_every_numeric_datatype_passes_unchanged(tmp_path: Path, datatype: str) -> None:
    loaded = load(tmp_path, identity(datatype))
    x = np.array([[0, 1], [1, 3]]).astype(NUMPY_DTYPES[datatype])
    x.flags.writeable = False  # as it is when it came in a request's body
    y = run(loaded, x=x)["y"]
    assert loaded.inputs[0].datatype == datatype
    assert y.dtype == x.dtype
    assert y.tobytes() == x.tobytes()
    assert run(loaded, x=x[:0])["y"].shape == (0, 2)


def test_bfloat16_is_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
    ]
    loaded = load(tmp_path, model(nodes, [tensor_info("x", "BF16", ["n"])], [tensor_info("y", "BF16", ["n"])]))
    y = run(loaded, x=np.array([1.5, -2], ml_dtypes.bfloat16))["y"]
    np.testing.assert_array_equal(y, np.array([3, -4], ml_dtypes.bfloat16))


def test_text_is_refused_with_the_engine_that_takes_it(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="input `x` has type string") as caught:
        load(tmp_path, identity("BYTES"))
    assert "onnxruntime" in caught.value.hint


def test_outputs_of_two_calls_share_no_memory(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp())
    x = np.ones((2, 32), np.float32)
    first = run(mlp, x=x)["y"]
    before = first.copy()
    second = run(mlp, x=-x)["y"]
    assert not np.array_equal(second, before)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, before)


def test_inputs_are_not_kept_nor_written(tmp_path: Path) -> None:
    loaded = load(tmp_path, two_inputs_add_sub())
    one, two = np.full((1, 16), 5, np.int32), np.full((1, 16), 2, np.int32)
    for names in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        answer = run(loaded, outputs=names, INPUT0=one, INPUT1=two)
        assert {n: int(t[0, 0]) for n, t in answer.items()} == {n: {"OUTPUT0": 7, "OUTPUT1": 3}[n] for n in names}
    assert (one[0, 0], two[0, 0]) == (5, 2)


def test_instances_run_side_by_side_with_a_request_each(tmp_path: Path) -> None:
    mlp = load(tmp_path, tiny_mlp(), instances=3)
    rows = [np.full((1, 32), i, np.float32) for i in range(3)]
    expected = [run(mlp, x=row)["y"] for row in rows]
    wrong: list[int] = []

    def client(i: int) -> None:
        wrong.extend(i for _ in range(200) if not np.array_equal(run(mlp, instance=i, x=rows[i])["y"], expected[i]))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def precision_of(loaded: Any) -> str:
    return str(loaded._requests[0].get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name())


def test_precision_is_f32_unless_asked_otherwise(tmp_path: Path) -> None:
    assert precision_of(load(tmp_path, tiny_mlp())) == "f32"
    supported = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in supported:
        assert precision_of(load(tmp_path, tiny_mlp(), parameters={"precision": "BF16"})) == "bf16"
    with pytest.raises(LoadFailed, match="allowed: f32, bf16, f16"):
        load(tmp_path, tiny_mlp(), parameters={"precision": "int4"})


def test_threads_are_shared_among_instances(tmp_path: Path) -> None:
    loaded: Any = load(tmp_path, tiny_mlp(), instances=2, parameters={"INFERENCE_NUM_THREADS": "1"})
    for request in loaded._requests:
        compiled = request.get_compiled_model()
        assert (compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")) == (1, 1)
    with pytest.raises(LoadFailed, match="`INFERENCE_NUM_THREADS`"):
        load(tmp_path, tiny_mlp(), parameters={"INFERENCE_NUM_THREADS": "many"})


def test_instances_of_a_large_model_share_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.engines.openvino.APART_BYTES_MAX", 100)
    loaded: Any = load(tmp_path, tiny_mlp(), instances=2, parameters={"INFERENCE_NUM_THREADS": "1"})
    compiled = loaded._requests[0].get_compiled_model()
    streams = min(2, len(os.sched_getaffinity(0)))  # OpenVINO makes no more than there are cores
    assert (compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")) == (streams, streams)
    assert len(loaded._compiled) == 1
    x = np.ones((1, 32), np.float32)
    assert np.array_equal(run(loaded, x=x)["y"], run(loaded, instance=1, x=x)["y"])


def test_instances_come_and_go_with_what_was_compiled_for_them(tmp_path: Path) -> None:
    loaded: Any = load(tmp_path, tiny_mlp(), instances=1)
    x = np.ones((1, 32), np.float32)
    before = run(loaded, x=x)["y"]
    for instances in (3, 2, 1, 2):
        loaded.resize(instances)
        assert len(loaded._compiled) == len(loaded._requests) == instances
        for instance in range(instances):
            assert np.array_equal(run(loaded, instance=instance, x=x)["y"], before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.ones((1, 31), np.float32)}, r"shape=\[\?,32\]"),
        ({"x": np.ones((1, 32), np.float64)}, "precision"),
        ({"x": np.ones(32, np.float32)}, r"shape=\[\?,32\]"),
        ({"q": np.ones((1, 32), np.float32)}, "inputs are `x`; the request has `q`"),
        ({"x": np.ones((1, 32), np.float32), "q": np.ones(1)}, "inputs are `x`"),
    ],
)
def test_inputs_that_do_not_fit_are_the_requests_fault(tmp_path: Path, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        run(load(tmp_path, tiny_mlp()), outputs=["y"], **inputs)
    assert ".cpp" not in caught.value.message


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_free_dimension_that_does_not_fit_never_reads_beyond_the_input(tmp_path: Path, columns: int) -> None:
    loaded = load(tmp_path, fails_when_run())
    for _ in range(2):
        with pytest.raises(InvalidInput, match="model `model`"):
            run(loaded, x=np.ones((3, columns), np.float32))
        assert run(loaded, x=np.ones((3, 3), np.float32))["y"].tolist() == [[3, 3]] * 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="OpenVINO on one thread does not notice (2026.4)")
def test_a_model_that_fails_in_a_run_says_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", [name], [f"at_{name}"]) for name in ("a", "b")]
    nodes.append(helper.make_node("Add", ["at_a", "at_b"], ["y"]))
    inputs = [tensor_info(name, "FP32", ["n"]) for name in ("a", "b")]
    loaded = load(tmp_path, model(nodes, inputs, [tensor_info("y", "INT64", [1, "k"])]))
    with pytest.raises(EngineFailed, match="model `model` failed"):
        run(loaded, a=np.array([1, 1, 0], np.float32), b=np.array([1, 1, 1], np.float32))


def test_a_shape_told_by_values_is_refused_and_one_told_by_shapes_is_not(tmp_path: Path) -> None:
    info, node = tensor_info, helper.make_node
    by_values = model(
        [node("Reshape", ["x", "to"], ["y"])],
        [info("x", "FP32", ["n", 4]), info("to", "INT64", [2])],
        [info("y", "FP32", ["a", "b"])],
    )
    with pytest.raises(LoadFailed, match="`y` takes its shape from the values of input `to`"):
        load(tmp_path, by_values)
    by_shapes = model(
        [node("Shape", ["like"], ["to"]), node("Reshape", ["x", "to"], ["y"])],
        [info("x", "FP32", ["n", 4]), info("like", "FP32", ["a", "b"])],
        [info("y", "FP32", ["a", "b"])],
    )
    answer = run(load(tmp_path, by_shapes), x=np.ones((1, 4), np.float32), like=np.ones((2, 2), np.float32))
    assert answer["y"].shape == (2, 2)


# Files


def test_an_ir_is_recognised_by_its_first_element(ir: ModelSource) -> None:
    other = ir.path.with_name("other.xml")
    other.write_text("<?xml version='1.0'?><svg/>")
    engine = OpenVino()
    assert engine.recognises(ir.path)
    assert not engine.recognises(other)
    assert not engine.recognises(ir.path.with_suffix(".bin"))
    assert not engine.recognises(ir.path.with_name("absent.xml"))


def test_weights_cut_off_or_absent_are_an_error(ir: ModelSource) -> None:
    weights = ir.path.with_suffix(".bin")
    whole = weights.read_bytes()
    for part in (whole[:1000], b""):
        weights.write_bytes(part)
        with pytest.raises(LoadFailed, match=r"model\.xml: OpenVINO cannot load it"):
            OpenVino().load(ir)
    weights.unlink()
    with pytest.raises(LoadFailed, match=r"bin file"):
        OpenVino().load(ir)


def test_weights_outside_the_models_folder_are_never_opened(ir: ModelSource, tmp_path: Path) -> None:
    weights = ir.path.with_suffix(".bin")
    weights.rename(tmp_path / "outside.bin")
    weights.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(LoadFailed, match="leads out of the model's folder"):
        OpenVino().load(ir)
    weights.unlink()
    weights.symlink_to("nowhere.bin")
    with pytest.raises(LoadFailed, match="cannot be read"):
        OpenVino().load(ir)


def test_external_data_of_onnx_files_is_checked_too(tmp_path: Path) -> None:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="../../secret.bin")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ports = [[tensor_info(name, "FP32", ["n", 2])] for name in "xy"]
    made = helper.make_model(helper.make_graph([node], "g", *ports, [weights]))
    with pytest.raises(LoadFailed, match=r"`\.\./\.\./secret\.bin`"):
        load(tmp_path, made.SerializeToString())


def test_weights_may_be_overwritten_while_they_serve(ir: ModelSource) -> None:
    loaded = OpenVino().load(ir)
    x = np.ones((1, 32), np.float32)
    before = run(loaded, x=x)["y"]
    ir.path.with_suffix(".bin").write_bytes(b"")  # a mapped file would now end this process
    np.testing.assert_array_equal(run(loaded, x=x)["y"], before)
    if Path("/proc/self/maps").exists():
        assert str(ir.path.parent) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "text", ["", "<net", "<net/>", "<?xml version='1.0'?><net name='x' version='11'><layers/></net>", "<net>" * 10_000]
)
def test_a_broken_ir_is_named(ir: ModelSource, text: str) -> None:
    ir.path.write_text(text)
    with pytest.raises(LoadFailed, match=r"model\.xml"):
        OpenVino().load(ir)


def test_a_missing_package_says_how_to_get_it(ir: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LoadFailed) as caught:
        OpenVino().load(ir)
    assert caught.value.hint == "pip install 'farthing[openvino]'"


def test_importing_the_engine_does_not_import_openvino() -> None:
    code = """
        import sys, farthing.engines.openvino
        assert "openvino" not in sys.modules
    """
    src = str(Path(farthing.__file__).parents[1])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env={"PYTHONPATH": src})
