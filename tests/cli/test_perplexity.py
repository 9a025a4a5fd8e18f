"""`farthing perplexity` as a person meets it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.llm.checkpoints.tiny import tiny_folder, tiny_gguf

START = [sys.executable, "-c", "from farthing.cli.main import main; main()", "perplexity"]


def perplexity(*arguments: str, text: str = "hello world, hello") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*START, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


def test_it_tells_perplexity_and_agreement_with_the_reference(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    done = perplexity(str(folder), "--text", "-", "--weights", "f32", "--reference", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tokens"] == 8
    assert told["f32"]["perplexity"] > 1
    assert abs(told["f32"]["perplexity"] / told["reference"]["perplexity"] - 1) < 1e-4
    assert told["agreement"] == 1


def test_a_folder_with_versions_means_the_highest(tmp_path: Path) -> None:
    for version in ("2", "10"):
        (tmp_path / "model" / version).mkdir(parents=True)
        (tmp_path / "model" / version / "model.gguf").write_bytes(tiny_gguf() if version == "10" else b"no model")
    done = perplexity(str(tmp_path / "model"), "--text", "-", "--weights", "f32", "--tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("f32: perplexity ")
    assert "over 3 tokens" in done.stdout


def test_mistakes_are_two_lines(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    short = perplexity(str(folder), "--text", "-", text="h")
    assert short.returncode == 1
    assert short.stderr.startswith("error: a text of 1 tokens has nothing to foresee")
    missing = perplexity(str(tmp_path / "none.gguf"), "--text", "-")
    assert missing.returncode == 1
    assert missing.stderr == f"error: {tmp_path}/none.gguf: no such file or folder\n"
    wide = perplexity(str(folder), "--text", "-", "--window", "9999", text="hello " * 99)
    assert wide.returncode == 1
    assert "a window of" in wide.stderr
