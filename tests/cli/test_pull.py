"""`farthing pull` as a person meets it: what it prints where, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farthing.repository.samples import SAMPLES

START = [sys.executable, "-c", "from farthing.cli.main import main; main()", "pull"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def farthing_pull(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*START, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_list_has_a_line_for_each_sample(cache: Path) -> None:
    done = farthing_pull("--list")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].split() == ["sample", "what", "it", "does", "download", "licence", "cached"]
    assert [line.split()[0] for line in lines[1:]] == [f"sample:{sample.name}" for sample in SAMPLES]
    assert all(line.split()[-1] == "no" for line in lines[1:])
    assert not cache.exists()  # looking makes nothing


def test_the_list_as_json_says_the_same(cache: Path) -> None:
    listed = json.loads(farthing_pull("--list", "--json").stdout)
    assert [entry["sample"] for entry in listed] == [sample.name for sample in SAMPLES]
    ocr = next(entry for entry in listed if entry["sample"] == "ppocr-v4")
    assert ocr["models"][:4] == ["ppocr-v4", "ppocr-det", "ppocr-cls", "ppocr-rec"]
    assert ocr["packages"] == ["rapidocr-onnxruntime==1.4.4"]
    assert (ocr["licence"], ocr["is_cached"]) == ("Apache-2.0", False)


def test_without_a_name_it_says_what_to_write() -> None:
    done = farthing_pull()
    assert done.returncode == 2
    assert "farthing pull sample:effnet-lite0" in done.stderr


def test_an_unknown_name_stops_it_before_anything_is_fetched(cache: Path) -> None:
    done = farthing_pull("sample:basic-pitch", "sample:resnet")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no sample is called `resnet`" in done.stderr
    assert not cache.exists()


@pytest.mark.samples
def test_what_can_be_had_is_had_and_what_cannot_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = farthing_pull("sample:basic-pitch", "sample:wdbc-gbdt")
    assert done.returncode == 1
    assert done.stdout == f"{cache}/models/wdbc-gbdt\n"  # trained here: nothing to fetch
    assert "error: basic-pitch==0.4.0 cannot be fetched" in done.stderr


@pytest.mark.samples
def test_a_sample_is_fetched_and_its_terms_are_said(cache: Path) -> None:
    done = farthing_pull("sample:basic-pitch", "--json")
    assert done.returncode == 0
    (pulled,) = json.loads(done.stdout)
    assert pulled["paths"] == [f"{cache}/models/basic-pitch"]
    assert pulled["is_cached"]
    assert (cache / "models/basic-pitch/1/model.onnx").stat().st_size == 230_444
    assert done.stderr.splitlines()[0] == "basic-pitch: fetching basic-pitch 0.4.0, 0.8 MB"


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_leaves_no_mess(
    cache: Path, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\nmkfifo pipe\necho begun > {tmp_path}/begun\nexec cat pipe\n")
    npm.chmod(0o755)
    os.mkfifo(tmp_path / "begun")
    process = subprocess.Popen(
        [*START, "sample:nanodet-g"],
        env={**os.environ, "PATH": f"{npm.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (tmp_path / "begun").read_text() == "begun\n"
    process.send_signal(how)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert said == ""
    assert [path.name for path in (cache / "models").rglob("*")] == [".staging"]  # and that is empty
