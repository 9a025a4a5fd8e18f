"""`farthing optimize` and `farthing explain` as a person meets them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.models import save, tiny_mlp

START = [sys.executable, "-c", "from farthing.cli.main import main; main()"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where searches keep their journals, apart from a person's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FARTHING_CACHE", str(folder))
    return folder


def farthing(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*START, *map(str, arguments)], capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).uniform(-1, 1, (64, 32)).astype(np.float32))
    return save(tmp_path / "mlp", tiny_mlp()).path


def test_a_model_is_optimised_and_explained(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    done = farthing("optimize", model, "--data", data, "--time", 2, "--price", 0.36, "--target", "p99=1s")
    assert done.returncode == 0, done.stderr
    assert "times cheaper than the default, 0 % accuracy drop (the same answers): $" in done.stdout
    assert "rows/s, answers within" in done.stdout
    assert "running the model as it is" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    told = farthing("explain", tmp_path / "mlp")  # the model's folder will do
    assert told.returncode == 0, told.stderr
    assert "chosen" in told.stdout
    assert "nothing else is at once faster, sooner and truer" in told.stdout
    assert "what each step gained" in told.stdout
    assert "★" in told.stdout
    facts = json.loads(farthing("explain", model, "--json", "--html", tmp_path / "plan.html").stdout)
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing else
    assert all(one["name"] in page for one in facts["plan"]["tried"])
    assert facts["steps"][0]["what"] == "as it came"
    assert facts["steps"][-1]["rows_per_s"] == facts["plan"]["rows_per_s"]
    assert facts["stale"] == ""
    assert facts["plan"]["answer_ms_max"] == 1000
    assert facts["usd_per_million"] > 0
    assert facts["plan"]["source"]["file"] == "model.onnx"


def test_a_dry_run_writes_nothing_and_answers_in_json(model: Path, tmp_path: Path) -> None:
    done = farthing("optimize", model, "--data", tmp_path / "data.npz", "--time", 1, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["times_cheaper"] >= 1
    assert list(model.parent.iterdir()) == [model]


def test_ctrl_c_ends_with_the_best_so_far(model: Path, tmp_path: Path) -> None:
    command = [*START, "optimize", str(model), "--data", str(tmp_path / "data.npz"), "--time", "80"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "timing" in line:
                break
        started = time.monotonic()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert time.monotonic() - started < 40
    assert "stopped early: the best so far; the same command goes on from here" in err
    assert "times cheaper" in out
    again = farthing("optimize", model, "--data", tmp_path / "data.npz", "--time", 1)
    assert again.returncode == 0, again.stderr
    assert "going on with the search that was stopped after" in again.stderr


def test_a_plan_is_measured_again_as_it_was_asked_for(model: Path, tmp_path: Path) -> None:
    first = farthing(
        "optimize",
        model,
        "--data",
        tmp_path / "data.npz",
        "--time",
        1,
        "--target",
        "9s",
        "--price",
        1,
        "--metric",
        "cosine",
    )
    assert first.returncode == 0, first.stderr
    file = tmp_path / "mlp" / "1" / "model.onnx.farthing-plan" / "plan.toml"
    processor = next(line for line in file.read_text().splitlines() if line.startswith("processor"))
    file.write_text(file.read_text().replace(processor, 'processor = "another"'))
    told = farthing("explain", model)
    assert "stale, and not used here: the processor was another" in told.stdout
    assert f"measure it again: farthing optimize {model} --remeasure" in told.stdout
    again = farthing("optimize", model, "--remeasure", "--time", 1, "--json")
    assert again.returncode == 0, again.stderr
    plan = json.loads(again.stdout)["plan"]
    assert plan["answer_ms_max"] == 9000
    assert plan["price_usd_per_hour"] == 1
    assert plan["asked"]["metric"] == "cosine"
    assert json.loads(farthing("explain", model, "--json").stdout)["stale"] == ""
    (tmp_path / "data.npz").unlink()
    assert "are not there any more" in farthing("optimize", model, "--remeasure").stderr


def test_two_models_are_planned_together(model: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", tiny_mlp()).path
    data = tmp_path / "data.npz"
    done = farthing("optimize", model, other, "--jointly", "--data", data, "--data", data, "--time", 6)
    assert done.returncode == 0, done.stderr
    assert "accuracy drop, all 2 together" in done.stdout.splitlines()[0]
    assert done.stdout.count("planned together with") == 2
    told = farthing("explain", other, "--html", tmp_path / "plan.html").stdout
    assert "sharing the machine" in told
    assert "Sharing the machine" in (tmp_path / "plan.html").read_text()
    alone = farthing("optimize", model, other, "--data", data, "--data", data)
    assert "--jointly plans them for one machine" in alone.stderr
    assert "say it for each model" in farthing("optimize", model, other, "--jointly", "--data", data).stderr


def test_mistakes_are_two_lines(model: Path, tmp_path: Path) -> None:
    none = farthing("explain", model)
    assert none.returncode == 1
    assert none.stderr.splitlines() == [
        f"error: {model} has no plan",
        f"hint: make one: farthing optimize {model} --data inputs.npz",
    ]
    np.savez(tmp_path / "wrong.npz", y=np.ones((4, 32), np.float32))
    wrong = farthing("optimize", model, "--data", tmp_path / "wrong.npz")
    assert wrong.returncode == 1
    assert "no array for input `x`; found: `y`" in wrong.stderr
    assert "numpy.savez" in wrong.stderr
    assert "write p99=20ms" in farthing("optimize", model, "--data", tmp_path / "wrong.npz", "--target", "soon").stderr
    assert "write 0.5%" in farthing("optimize", model, "--data", tmp_path / "wrong.npz", "--max-drop", "much").stderr
    assert "no such file" in farthing("explain", tmp_path / "nothing").stderr
