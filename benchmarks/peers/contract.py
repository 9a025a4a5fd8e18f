"""What the benchmark must know of a server, and how a peer's own virtual environment is made.

A peer is data: its name, its pins, and a function that says which command serves a model. Code that runs inside
a peer's interpreter lives in `inside/` and imports nothing from here.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

import wire
from models import Model

PEERS_CACHE: Final = Path(os.environ.get("FARTHING_PEERS", Path.home() / ".cache" / "farthing" / "peers"))
"""One virtual environment a peer; several gigabytes for all of them. `FARTHING_PEERS` moves it."""
PINS: Final = Path(__file__).with_name("pins")
INSIDE: Final = Path(__file__).with_name("inside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that serves one model on one port until it is told to stop."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server that can be measured. The defaults speak KServe v2."""

    name: str
    about: str
    """One line for the table's legend: what it is, and what it leaves out."""
    launch: Callable[[Model, int, Path], Launch]
    """(model, port, an empty folder of its own) -> the command."""
    environment: str = ""
    """Name of the pin file and the virtual environment; empty for the interpreter that runs the benchmark."""
    main_package: str = ""
    """The package whose version stands beside the name."""
    wires: tuple[str, ...] = ("json", "binary")
    models: tuple[str, ...] = ("mlp", "effnet", "minilm")
    ready_path: str = "/v2/health/ready"
    encode: Callable[[Model, str], wire.Request] = wire.encode
    decode: Callable[[Mapping[str, str], bytes], dict[str, NDArray[Any]]] = wire.decode
    is_echo: bool = False
    """Answers without computing: only to find out what the load generator can do."""

    def install(self) -> None:
        """Makes the peer's virtual environment from its pins, unless it is there and the pins are the same."""
        if self.environment:
            install(self.environment)

    def version(self) -> str:
        """The main package's version as installed, empty if there is no package to name."""
        if not self.main_package:
            return ""
        return version(python(self.environment), self.main_package)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def folder(environment: str) -> Path:
    """Where a peer's virtual environment is."""
    return PEERS_CACHE / environment


def python(environment: str) -> str:
    """The interpreter that runs a peer."""
    return str(folder(environment) / "bin" / "python") if environment else sys.executable


def version(interpreter: str, package: str) -> str:
    """The version of a package as another interpreter sees it; empty if it is not an installed package."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    done = subprocess.run([interpreter, "-c", code, package], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def install(environment: str) -> Path:
    """Installs `pins/ENVIRONMENT.txt` in an environment of its own; a second call costs nothing."""
    pins, home = (PINS / f"{environment}.txt"), folder(environment)
    stamp = home / ".installed"
    wanted = pins.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return home
    print(f"installing {environment} from {pins.name} into {home}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Every package is pinned, dependencies too; --no-deps keeps a resolver from second-guessing the pins.
    subprocess.run([*pip, "--no-deps", "--requirement", str(pins)], check=True)
    stamp.write_text(wanted)
    return home
