"""What clients of a forest see, by default and as a configuration (also one written for Triton's FIL) wants it."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.engines.trees.forests import DATA, expected, load, predict

from farthing.engines.contract import Batch, Member, ModelSource
from farthing.engines.registry import engine_for, engine_named
from farthing.engines.trees import Trees
from farthing.types.errors import InvalidInput, LoadFailed
from farthing.types.tensors import TensorSpec

FORMATS = {
    "lightgbm_binary.txt": "lightgbm_text",
    "lightgbm_binary_dump.json": "lightgbm_json",
    "xgboost_binary.json": "xgboost_json",
    "xgboost_binary.ubj": "xgboost_ubj",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_known_by_its_first_bytes_and_names_its_platform(name: str) -> None:
    assert Trees().recognises(DATA / name)
    assert load(DATA / name).platform == FORMATS[name]
    assert isinstance(engine_for(DATA / name), Trees)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.txt", b"treeless"),
        ("labels.txt", b"cat\ndog\n"),
        ("package.json", b'{"name": "tree", "version": "1"}'),
        ("list.json", b"[1, 2]"),
        ("empty.json", b""),
        ("data.ubj", b"{i\x05other"),
    ],
)
def test_other_files_are_not_taken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert not Trees().recognises(tmp_path / name)
    with pytest.raises(LoadFailed, match="neither a LightGBM"):
        load(tmp_path / name)


def test_a_name_of_another_engine_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((DATA / "lightgbm_binary.txt").read_bytes())
    assert not Trees().recognises(tmp_path / "model.onnx")


def test_json_written_by_other_hands_is_known_too(tmp_path: Path) -> None:
    for name in ("lightgbm_binary_dump", "xgboost_binary"):
        document = json.loads((DATA / f"{name}.json").read_text())
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document, indent=4, sort_keys=True))
        rows = expected(name)["rows"]
        assert Trees().recognises(path)
        assert np.array_equal(predict(load(path), rows), predict(load(DATA / f"{name}.json"), rows))


def test_statistics_that_are_not_finite_do_not_matter(tmp_path: Path) -> None:
    text = (DATA / "xgboost_binary.json").read_text()
    at = text.index('"loss_changes":[') + len('"loss_changes":[')
    (tmp_path / "model.json").write_text(text[:at] + "NaN,-Infinity," + text[at:])
    rows = expected("xgboost_binary")["rows"]
    assert np.array_equal(
        predict(load(tmp_path / "model.json"), rows), predict(load(DATA / "xgboost_binary.json"), rows)
    )


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_bytes((DATA / "lightgbm_binary.txt").read_bytes().replace(b"\n", b"\r\n"))
    rows = expected("lightgbm_binary")["rows"]
    assert np.array_equal(
        predict(load(tmp_path / "model.txt"), rows), predict(load(DATA / "lightgbm_binary.txt"), rows)
    )


def test_names_and_datatypes_are_those_of_fil_unless_configured() -> None:
    model = load(DATA / "lightgbm_multiclass.txt")
    assert model.inputs == (TensorSpec(name="input__0", datatype="FP32", shape=(-1, 5)),)
    assert model.outputs == (TensorSpec(name="output__0", datatype="FP32", shape=(-1, 3)),)
    assert engine_named("fil").name == "trees"


def configured(name: str, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()) -> ModelSource:
    return ModelSource(name="m", version=1, path=DATA / name, folder=DATA, inputs=inputs, outputs=outputs)


def test_a_configuration_may_give_names_and_double_precision() -> None:
    source = configured(
        "lightgbm_binary.txt",
        (TensorSpec(name="cells", datatype="FP64", shape=(-1, 5)),),
        (TensorSpec(name="risk", datatype="FP64", shape=(-1, 1)),),
    )
    model, theirs = Trees().load(source), expected("lightgbm_binary")
    assert (model.inputs, model.outputs) == (source.inputs, source.outputs)
    assert np.allclose(predict(model, theirs["rows"]), theirs["prediction"], rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        ("xgboost_binary.json", TensorSpec(name="x", datatype="FP64", shape=(-1, 5)), "FP64; allowed: FP32"),
        ("lightgbm_binary.txt", TensorSpec(name="x", datatype="INT64", shape=(-1, 5)), "allowed: FP32, FP64"),
        ("lightgbm_binary.txt", TensorSpec(name="x", datatype="FP32", shape=(-1, 6)), r"the model's is \[-1, 5\]"),
        ("lightgbm_binary.txt", TensorSpec(name="x", datatype="FP32", shape=(-1,)), r"the model's is \[-1, 5\]"),
    ],
)
def test_a_configuration_that_does_not_fit_the_file_is_refused(name: str, spec: TensorSpec, reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        Trees().load(configured(name, (spec,)))
    with pytest.raises(LoadFailed, match="a forest has one"):
        Trees().load(configured(name, (spec, spec)))


def test_binary_outputs_come_as_one_number_two_probabilities_or_a_class() -> None:
    rows = expected("xgboost_binary")["rows"]
    path = DATA / "xgboost_binary.ubj"
    p = predict(load(path), rows)
    assert np.array_equal(predict(load(path, output="probabilities"), rows), np.concatenate((1 - p, p), axis=1))
    assert np.array_equal(predict(load(path, output="class"), rows), p > np.float32(0.5))
    assert np.array_equal(predict(load(path, output="class", threshold="0.3"), rows), p > np.float32(0.3))


def test_multiclass_outputs_come_as_probabilities_or_a_class() -> None:
    theirs = expected("lightgbm_multiclass")
    path = DATA / "lightgbm_multiclass.txt"
    p = predict(load(path), theirs["rows"])
    assert np.array_equal(predict(load(path, output="probabilities"), theirs["rows"]), p)
    assert np.array_equal(
        predict(load(path, output="class"), theirs["rows"])[:, 0], theirs["prediction"].argmax(axis=1)
    )


def test_the_switches_of_a_fil_configuration_mean_what_they_mean_there() -> None:
    rows = expected("xgboost_binary")["rows"]
    path = DATA / "xgboost_binary.json"
    proba = load(path, model_type="xgboost_json", output_class="true", predict_proba="true")
    assert np.array_equal(predict(proba, rows), predict(load(path, output="probabilities"), rows))
    classes = load(path, output_class="true", predict_proba="false", threshold="0.7")
    assert np.array_equal(predict(classes, rows), predict(load(path, output="class", threshold="0.7"), rows))


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("lightgbm_poisson.txt", {"output": "class"}, "needs a classifier"),
        ("lightgbm_poisson.txt", {"output": "odds"}, "`odds`"),
        ("lightgbm_binary.txt", {"output": "class", "threshold": "half"}, "`half`"),
    ],
)
def test_outputs_that_cannot_be_are_refused(name: str, parameters: dict[str, str], reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        load(DATA / name, **parameters)


def test_rows_of_another_width_are_the_clients_mistake() -> None:
    model = load(DATA / "lightgbm_binary.txt")
    for rows in (np.zeros((1, 4), np.float32), np.zeros((3, 6), np.float32), np.zeros(5, np.float32)):
        with pytest.raises(InvalidInput, match=r"\[-1, 5\] is expected"):
            model.execute(Batch({"input__0": rows}, ("output__0",), (Member(len(rows)),)), 0)


def test_instances_answer_from_buffers_of_their_own() -> None:
    source = ModelSource(name="m", version=1, path=DATA / "lightgbm_binary.txt", folder=DATA, instances=2)
    model, rows = Trees().load(source), expected("lightgbm_binary")["rows"].astype(np.float32)
    batch = Batch({"input__0": rows[6:7]}, ("output__0",), (Member(1),))
    assert np.array_equal(model.execute(batch, 0)["output__0"], model.execute(batch, 1)["output__0"])
    assert model.health() == ""
    model.close()
