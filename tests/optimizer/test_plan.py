"""A plan comes back as it was written, and nothing that goes wrong costs the one that was there."""

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from farthing.optimizer.agreement import Drop, OutputError
from farthing.optimizer.machine import Machine, this_machine
from farthing.optimizer.plan import FORMAT, Plan, Tried, folder_of, read_plan, source_of, stale, write_plan
from farthing.types.errors import InvalidInput, LoadFailed


def plan_for(model: Path, **more: object) -> Plan:
    plan = Plan(
        format=FORMAT,
        made="2026-11-25T12:00:00+00:00",
        source=source_of(model),
        machine=this_machine(),
        drop_max=0.005,
        engine="onnxruntime",
        precision="f32",
        threads=1,
        instances=2,
        rows=8,
        rows_per_s=300.0,
        answer_ms=12.5,
        default_rows_per_s=100.0,
        drop=Drop(metric="top1", mean=0.001, upper=0.004, samples=1000),
        errors=(OutputError(output="y", largest_abs=0.1, mean_abs=0.01, relative=0.2, bad_values=0),),
        tried=(Tried(name="a", rows_per_s=300.0, turns=3), Tried(name="b", out="loses too much")),
    )
    return replace(plan, **more)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return path


def test_a_plan_comes_back_as_it_was_written(model: Path) -> None:
    plan = plan_for(model, price_usd_per_hour=0.5, answer_ms_max=20.0)
    assert read_plan(model) is None
    write_plan(model, plan, None)
    assert read_plan(model) == plan
    assert stale(plan, model, this_machine()) == ""
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.onnx", "model.onnx.farthing-plan"]


def test_money_follows_from_the_rate(model: Path) -> None:
    plan = plan_for(model, price_usd_per_hour=0.36)
    assert plan.usd_per_million() == pytest.approx(0.36 / 3600 / 300 * 1e6)
    assert plan.times_cheaper == 3
    assert plan_for(model).usd_per_million() is None


def test_a_changed_model_another_machine_or_engine_makes_it_stale(model: Path) -> None:
    plan = plan_for(model)
    here = this_machine()
    assert "was " in stale(plan, model, Machine(processor="other", cores=here.cores, versions=here.versions))
    assert "cores" in stale(plan, model, replace(here, cores=here.cores + 1))
    assert "onnxruntime was" in stale(plan, model, replace(here, versions={**here.versions, "onnxruntime": "0.1"}))
    assert "is missing" in stale(replace(plan, artefact="model.onnx"), model, here)
    model.write_bytes(b"b model")
    assert stale(plan, model, here) == "the model has changed since"


def test_a_disk_that_refuses_leaves_the_plan_that_was_there(model: Path, tmp_path: Path) -> None:
    before = plan_for(model)
    write_plan(model, before, None)
    artefact = tmp_path / "made.onnx"
    artefact.write_bytes(b"int8")
    for broken in ("shutil.copyfile", "pathlib.Path.write_text", "pathlib.Path.rename"):
        full = mock.patch(broken, side_effect=OSError(28, "No space left on device"))
        with full, pytest.raises(InvalidInput, match="No space left"):
            write_plan(model, replace(before, rows=1, artefact="model.onnx"), artefact)
        assert read_plan(model) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["made.onnx", "model.onnx", "model.onnx.farthing-plan"]
    write_plan(model, replace(before, rows=1, artefact="model.onnx"), artefact)
    after = read_plan(model)
    assert after is not None
    assert after.rows == 1
    assert (folder_of(model) / "model.onnx").read_bytes() == b"int8"


@given(st.binary(max_size=200))
def test_no_bytes_are_a_plan_by_accident(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        folder_of(model).mkdir()
        (folder_of(model) / "plan.toml").write_bytes(data)
        with pytest.raises(LoadFailed, match="is no plan"):
            read_plan(model)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("format = 1", "format = 2"),
        ("threads = 1", "threads = 0"),
        ('artefact = ""', 'artefact = "../../etc/passwd"'),
        ('engine = "onnxruntime"', "engine = 3"),
    ],
)
def test_a_plan_that_was_meddled_with_is_refused(model: Path, said: str, instead: str) -> None:
    write_plan(model, plan_for(model), None)
    file = folder_of(model) / "plan.toml"
    text = file.read_text()
    assert said in text
    file.write_text(text.replace(said, instead))
    with pytest.raises(LoadFailed, match="is no plan"):
        read_plan(model)


def test_a_plan_for_everybody_is_readable_by_everybody(model: Path) -> None:
    folder = write_plan(model, plan_for(model), None)
    assert os.stat(folder).st_mode & 0o777 == 0o755  # noqa: PTH116
