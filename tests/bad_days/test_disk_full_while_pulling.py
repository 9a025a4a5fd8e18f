"""`farthing pull` on a disk that is full: an error that says so, status 1, and nothing half-made left behind."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from farthing.repository.samples import catalogue

FILE_BYTES_MAX = 2000
"""No file may grow beyond this, as on a disk that is full; every sample's model is larger."""
LOCAL = [sample.name for sample in catalogue() if not sample.download_bytes and not sample.is_input]


@pytest.mark.skipif(not LOCAL, reason="every sample is fetched from elsewhere")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", "from farthing.cli.main import main; main()", "pull", f"sample:{LOCAL[0]}"],
        # No bytecode: Python would leave half a file wherever it is short of room.
        env={
            "FARTHING_CACHE": str(cache),
            "HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert f"no room for sample `{LOCAL[0]}`" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"] == []
