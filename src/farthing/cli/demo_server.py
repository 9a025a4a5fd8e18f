"""A `farthing serve` of its own for as long as it is needed: started as a process, asked over the wire, stopped.

Its words go to a file, and are shown only if it does not come up.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from farthing.types.errors import Unavailable

START_S: Final = 120.0
"""Loading every sample takes a few seconds; a cold disk and a busy machine take longer."""
STOP_S: Final = 20.0
POLL_S: Final = 0.02


def serving(samples: Sequence[str]) -> AbstractContextManager[str]:
    """The URL of a server that has those samples loaded; it is drained and gone afterwards."""
    return serving_models([f"sample:{sample}" for sample in samples])


@contextmanager
def serving_models(models: Sequence[str], *, is_apart: bool = False) -> Iterator[str]:
    """The same for anything `farthing serve` takes. `is_apart`: Ctrl-C on the terminal does not reach it.

    Raises `Unavailable` with the server's own last words if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="farthing-demo-") as name:
        ready, log = Path(name) / "ready.json", Path(name) / "serve.log"
        start = "from farthing.cli.main import main; main()"  # this interpreter, whatever PATH says
        command = [sys.executable, "-c", start, "serve", *models]
        command += ["--http", "127.0.0.1:0", "--no-grpc", "--ready-file", str(ready)]
        with log.open("wb") as words:
            server = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                env=os.environ,
                start_new_session=is_apart,
            )
        try:
            yield f"http://{_address(server, ready, log)}"
        finally:
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _address(server: "subprocess.Popen[bytes]", ready: Path, log: Path) -> str:
    give_up_at = time.monotonic() + START_S
    while not ready.exists():
        if server.poll() is not None:
            raise Unavailable(f"the server ended with status {server.returncode}:\n{_last_words(log)}")
        if time.monotonic() > give_up_at:
            raise Unavailable(f"the server was not ready after {START_S:.0f} s:\n{_last_words(log)}")
        time.sleep(POLL_S)
    address: str = json.loads(ready.read_text(encoding="utf-8"))["http"]
    return address


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
