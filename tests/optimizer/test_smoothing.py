from pathlib import Path

import numpy as np
import pytest

from farthing.optimizer import Target, optimize
from farthing.optimizer.graphs import prepare
from farthing.optimizer.quantise import layers_of, quantise
from farthing.optimizer.samples import Samples
from farthing.optimizer.smoothing import smooth
from farthing.optimizer.watch import Event
from farthing.types.errors import LoadFailed
from farthing.types.tensors import Tensor

onnx = pytest.importorskip("onnx")


def run(file: Path, x: Tensor) -> Tensor:
    import onnxruntime

    answer: Tensor = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0]
    return answer


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Of 64 channels, three far wider than the others."""
    x = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    x[:, [5, 17, 40]] *= 60
    return x


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products whose nodes have no names, the second one turned."""
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    first, second = chance.normal(0, 0.1, (64, 64)), chance.normal(0, 0.1, (8, 64))
    first[[5, 17, 40]] /= 20
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "second"], ["y"], transB=1),
        ],
        "outliers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in (("first", first), ("second", second))],
    )
    file: Path = tmp_path_factory.mktemp("outliers") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    prepare(file, file.with_name("prepared.onnx"))
    return file.with_name("prepared.onnx")


def test_a_smoothed_model_says_in_float_what_it_said_before(model: Path, rows: Tensor, tmp_path: Path) -> None:
    smooth(model, [{"x": row[None]} for row in rows[:32]], tmp_path / "smooth.onnx")

    assert [node.op_type for node in onnx.load(tmp_path / "smooth.onnx").graph.node].count("Mul") >= 1
    np.testing.assert_allclose(run(tmp_path / "smooth.onnx", rows), run(model, rows), rtol=1e-4, atol=1e-4)


def test_int8_loses_far_less_of_a_model_with_outliers_once_it_is_smoothed(
    model: Path, rows: Tensor, tmp_path: Path
) -> None:
    samples, held_out = Samples(inputs={"x": rows[:128]}), rows[128:]
    lost = {}
    for artefact in ("int8_minmax", "int8_smooth"):
        (tmp_path / artefact).mkdir()
        quantise(model, artefact, samples, tmp_path / artefact / "model.onnx", has_batch_axis=True)
        true = run(model, held_out)
        lost[artefact] = float(((run(tmp_path / artefact / "model.onnx", held_out) - true) ** 2).mean() / true.var())

    assert 0 < lost["int8_smooth"] < lost["int8_minmax"] / 4


def test_layers_of_a_model_that_names_none_can_be_left_in_float(model: Path, rows: Tensor, tmp_path: Path) -> None:
    layers = layers_of(model)
    assert all(name for layer in layers for name in layer)

    samples = Samples(inputs={"x": rows[:32]})
    quantise(model, "int8_smooth", samples, tmp_path / "model.onnx", has_batch_axis=True, keep=layers[0])

    taken = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "QuantizeLinear"]
    assert len(taken) == 1  # before the second product alone


def test_a_model_without_products_says_that_there_is_nothing_to_smooth(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")

    with pytest.raises(LoadFailed, match="no matrix product"):
        smooth(tmp_path / "m.onnx", [{"x": np.zeros((1, 4), np.float32)}], tmp_path / "out.onnx")


def test_a_file_that_loses_far_too_much_with_one_engine_is_not_judged_with_another(
    model: Path, rows: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    file, doing = tmp_path / "model.onnx", [""]
    file.write_bytes(model.read_bytes())

    def watch(event: Event) -> None:
        doing[0] = event.doing

    plan = optimize(
        file,
        Target(drop_max=1e-6, metric="cosine"),
        {"x": np.concatenate([rows, rows + 1])},
        budget_s=60,
        is_fresh=True,
        on_event=watch,
        is_stopped=lambda: doing[0].startswith("timing"),
    )
    out = {tried.name: tried.out for tried in plan.tried}
    assert out["onnxruntime int8 (minmax)"].startswith("loses")
    assert "onnxruntime int8 (minmax) loses" in out["openvino int8 (minmax)"]
