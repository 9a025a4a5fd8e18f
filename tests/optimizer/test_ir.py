"""Layers that are marked stay in float32 while the rest is in bf16; a search marks those that bf16 hurts."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.models import model, small_convnet, tensor_info

from farthing.config.model import ModelConfig
from farthing.engines.contract import Batch, Member, ModelSource
from farthing.optimizer import Target, ir, optimize
from farthing.optimizer.machine import cpu_flags
from farthing.optimizer.plan import folder_of, stale
from farthing.optimizer.recipes import BF16
from farthing.runtime.planned import planned
from farthing.types.errors import LoadFailed

pytest.importorskip("openvino", reason="writes and runs its files")

from farthing.engines.openvino import OpenVino

needs_bf16 = pytest.mark.skipif(not cpu_flags() & BF16, reason="this processor computes no bf16")


def answer(file: Path, x: np.ndarray, name: str = "image", precision: str = "bf16") -> np.ndarray:
    parameters = {"precision": precision}
    source = ModelSource(name="m", version=1, path=file, folder=file.parent, parameters=parameters)
    executable = OpenVino().load(source)
    try:
        [output] = [spec.name for spec in executable.outputs]
        given = executable.execute(Batch({name: x}, (output,), (Member(len(x)),)), 0)
        assert isinstance(given, dict)
        return np.array(given[output])
    finally:
        executable.close()


def written(folder: Path, data: bytes) -> Path:
    (folder / "model.onnx").write_bytes(data)
    ir.write_ir(folder / "model.onnx", folder / "whole.xml")
    return folder / "whole.xml"


IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)


def test_every_layer_is_in_one_part_and_those_without_weights_go_with_the_one_before(tmp_path: Path) -> None:
    whole = written(tmp_path, small_convnet())
    layers = ir.layers_of(whole)
    ids = [number for layer in layers for number in layer]
    assert len(set(ids)) == len(ids)
    assert len(layers) == 3, "two convolutions and a matrix"


@needs_bf16
def test_marked_layers_stay_in_float(tmp_path: Path) -> None:
    whole = written(tmp_path, small_convnet())
    layers = ir.layers_of(whole)
    truth = answer(whole, IMAGES, precision="f32")
    moved = {}
    for count in range(len(layers) + 1):
        out = tmp_path / f"{count}.xml"
        ir.keep_float(whole, out, [number for layer in layers[:count] for number in layer])
        moved[count] = float(np.abs(answer(out, IMAGES) - truth).max())
    assert moved[0] > 0, "bf16 rounds"
    assert moved[len(layers)] < moved[0], "most of it by those layers"
    assert moved[1] != moved[0]


def test_a_file_that_openvino_cannot_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(LoadFailed, match="cannot be written as OpenVINO IR"):
        ir.write_ir(tmp_path / "model.onnx", tmp_path / "whole.xml")


def cancelling() -> bytes:
    """`x` FP32 [batch, 8], around 2,000 -> differences of neighbours, which bf16 would lose -> four layers -> `y`."""
    random = np.random.default_rng(1)
    weights = {"w0": (np.eye(8) - np.roll(np.eye(8), 1, 0)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"])]
    for layer in range(1, 5):
        weights[f"w{layer}"] = (random.standard_normal((8, 8)) / 2).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [f"h{layer - 1}", f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Tanh", [f"m{layer}"], [f"h{layer}" if layer < 4 else "y"]),
        ]
    return model(nodes, [tensor_info("x", "FP32", ["batch", 8])], [tensor_info("y", "FP32", ["batch", 8])], weights)


@needs_bf16
def test_a_search_leaves_in_float_what_bf16_hurts_and_the_plan_is_served(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(cancelling())
    x = (2000 + np.random.default_rng(2).standard_normal((600, 8))).astype(np.float32)
    found: list[str] = []
    plan = optimize(
        path,
        Target(metric="top1", drop_max=0.2),
        {"x": x},
        budget_s=60,
        on_event=lambda event: found.append(event.found),
        is_stopped=lambda: any("of 8 parts float) is right" in text for text in found),
    )
    told = [text for text in found if text.startswith("openvino bf16")]
    assert told[0].startswith("openvino bf16 is out: loses")
    assert told[1].startswith("openvino bf16 (1 of 8 parts float) is right")
    assert plan.engine in ("onnxruntime", "openvino")


@needs_bf16
def test_a_plan_may_be_an_ir_with_its_weights(tmp_path: Path) -> None:
    from msgspec.structs import replace
    from tests.optimizer.test_plan import plan_for

    from farthing.optimizer.plan import write_plan

    whole = written(tmp_path, small_convnet())
    path = tmp_path / "model.onnx"
    plan = replace(plan_for(path), engine="openvino", artefact="model.xml", parameters={"precision": "bf16"})
    write_plan(path, plan, whole)
    assert not stale(plan, path, plan.machine)
    way = planned("m", path, ModelConfig())
    assert way.path == folder_of(path) / "model.xml"
    assert np.array_equal(answer(way.path, IMAGES), answer(whole, IMAGES))
    way.path.with_suffix(".bin").unlink()
    assert stale(plan, path, plan.machine) == "its file model.bin is missing"
    assert planned("m", path, ModelConfig()).plan is None, "served as it came"


@pytest.mark.parametrize("text", [b"", b"<net><layers>", None])
def test_a_torn_ir_is_told(tmp_path: Path, text: bytes | None) -> None:
    whole = tmp_path / "whole.xml"
    if text is not None:
        whole.write_bytes(text)
    with pytest.raises(LoadFailed, match="is no whole IR"):
        ir.layers_of(whole)
    with pytest.raises(LoadFailed, match="is no whole IR"):
        ir.keep_float(whole, tmp_path / "out.xml", ["1"])


def test_an_ir_without_room_is_told(tmp_path: Path) -> None:
    whole = written(tmp_path, small_convnet())
    with pytest.raises(LoadFailed, match="cannot be written"):
        ir.keep_float(whole, tmp_path / "nowhere" / "out.xml", ["1"])
