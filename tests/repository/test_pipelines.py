"""Pipelines on disk: where they are found, and what a `pipeline.py` may do to the server, which is nothing."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from farthing.config.model import ModelConfig
from farthing.repository import Repository, pipeline_files
from farthing.types.errors import LoadFailed

TOML = """
    inputs = ["x"]
    outputs = ["y"]
    step = [{ model = "two", inputs = { x = "x" }, outputs = { y = "y" } }]
"""
PYTHON = """
    from farthing import Pipeline

    print("words that go elsewhere")
    chain = Pipeline(requests_max=7)
    chain.output("y", chain.step("two", x=chain.input("x"))["y"])
"""


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(dedent(text))
    return folder / name


def problem(folder: Path) -> str:
    (problem,) = Repository([folder]).scan().problems.values()
    return problem.reason


@pytest.mark.parametrize(("file", "text"), [("pipeline.toml", TOML), ("pipeline.py", PYTHON)])
def test_a_pipeline_is_found_in_a_repository_as_a_folder_and_as_a_file(tmp_path: Path, file: str, text: str) -> None:
    path = put(tmp_path / "chain", file, text)
    for place in (tmp_path, tmp_path / "chain", path):
        (found,) = Repository([place]).scan().models.values()
        assert found.name == "chain"
        assert found.pipeline is not None
        assert [step.model for step in found.pipeline.step] == ["two"]
        assert found.config.ensemble_scheduling is not None


def test_it_may_name_itself_where_no_folder_of_a_repository_does(tmp_path: Path) -> None:
    path = put(tmp_path / "repository" / "folder", "pipeline.toml", 'name = "chain"' + TOML)
    assert list(Repository([path]).scan().models) == ["chain"]
    assert list(Repository([path.parent]).scan().models) == ["chain"]
    assert "it calls itself `chain`" in problem(tmp_path / "repository")


def test_what_contradicts_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "chain", "pipeline.toml", TOML).parent
    with pytest.raises(LoadFailed, match="takes no other configuration"):
        Repository([tmp_path]).find("chain", config=ModelConfig())
    put(folder, "config.pbtxt", "max_batch_size: 3")
    assert "has both pipeline.toml and config.pbtxt" in problem(tmp_path)
    (folder / "config.pbtxt").unlink()
    put(folder, "pipeline.py", PYTHON)
    assert "has both pipeline.toml and pipeline.py" in problem(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n1 / 0", "pipeline.py: line 2: ZeroDivisionError: division by zero"),
        ("x = (", "pipeline.py: line 1: SyntaxError: .* was never closed"),
        ("import sys; sys.exit(3)", "pipeline.py: line 1: SystemExit: 3"),
        ("import os; os._exit(3)", "ended with status 3 and no graph"),
        ("import os; os.abort()", "ended with status -6 and no graph"),
        ("import os\nwhile True: os.write(1, b'words ' * 999)", "pipeline.py: line 2: OSError: .*File too large"),
        ("", "0 pipelines in the file; expected one"),
        ("from farthing import Pipeline\na, b = Pipeline(), Pipeline()", "2 pipelines in the file"),
        ("from farthing import Pipeline\na = Pipeline()", "pipeline.py: it has 0 steps"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=[99]).start()", "0 pipelines in the file"),
        ("import os\nos.dup2(2, 3)\nos.closerange(3, 99)", "no graph|0 pipelines"),
    ],
)
def test_a_pipeline_py_that_fails_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path / "chain", "pipeline.py", text)
    assert re.search(words, problem(tmp_path))


def test_one_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_files, "RUN_S", 0.5)
    put(tmp_path / "chain", "pipeline.py", "while True: pass")
    assert "did not end within 0.5 s" in problem(tmp_path)


def test_it_is_run_again_only_when_a_file_beside_it_changes(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    note = f"open({str(runs)!r}, 'a').write('x')\nimport names\n"
    path = put(tmp_path / "repository" / "chain", "pipeline.py", note + dedent(PYTHON).replace('"two"', "names.TWO"))
    put(path.parent, "names.py", "TWO = 'two'")
    repository = Repository([tmp_path / "repository"])
    for _ in range(3):
        (found,) = repository.scan().models.values()
    assert runs.read_text() == "x"
    put(path.parent, "names.py", "TWO = 'three'")
    (found,) = repository.scan().models.values()
    assert found.pipeline is not None
    assert found.pipeline.step[0].model == "three"
    assert found.pipeline.requests_max == 7
    assert runs.read_text() == "xx"
    assert not (path.parent / "__pycache__").exists()
