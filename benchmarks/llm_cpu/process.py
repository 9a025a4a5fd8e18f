"""One engine under test: started, waited for until its first token, asked, and stopped for certain.

Both cores are its own; the load generator is a guest on them and says what it took.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from answer import Answer
from weights import CACHE

import load
import machine
from engines import Engine

STOP_MAX_S: Final = 10
POLL_S: Final = 0.003
PROMPT_FIRST: Final = [1, 2, 3, 4, 5, 6, 7, 8]
"""Tokens of the request that ends the start."""


class EngineFailed(Exception):
    """An engine did not start, died or answered wrongly; the message ends with its log's last lines."""


def prefer(pid: int | str, nice: int) -> None:
    """Sets the priority of a process's session, among which the kernel shares out time before it looks at processes."""
    file = Path(f"/proc/{pid}/autogroup")
    if nice and file.exists():
        file.write_text(str(nice))


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A context manager: inside it the engine is up and has generated a token."""

    def __init__(self, engine: Engine, model: str, nice: int = 0) -> None:
        self.engine, self.model, self._nice = engine, model, nice
        self.start_s = 0.0
        self._served = ""
        self._port = free_port()
        self._log = CACHE / "logs" / f"{engine.name}-{model}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Running":
        path = self.engine.prepare(self.model)
        _read_all(path)
        launch = self.engine.launch(path, self._port)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        if not self.engine.is_http:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self._log.open("wb") as log:
            started = time.monotonic()
            self._process = subprocess.Popen(
                launch.command,
                env={**os.environ, **launch.environment},
                stderr=log,
                start_new_session=True,
                **({"stdout": log} | pipes),
            )
        try:
            prefer(self._process.pid, self._nice)
            first = self._first_token_over_http() if self.engine.is_http else self._line()["ready_s"]
            self.start_s = first - started
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _first_token_over_http(self) -> float:
        end = time.monotonic() + self.engine.start_max_s
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                raise EngineFailed(f"{self.engine.name} exited {self._process.returncode}\n{self._tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._get(self.engine.ready_path)[0] == 200:
                    self._served = json.loads(self._get("/v1/models")[1])["data"][0]["id"]
                    return self.generate([PROMPT_FIRST], 1, 1)[0].first_s
            time.sleep(POLL_S)
        raise EngineFailed(f"{self.engine.name} was not ready within {self.engine.start_max_s} s\n{self._tail()}")

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _line(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailed(f"{self.engine.name} ended\n{self._tail()}")
        return json.loads(line)

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> list[Answer]:
        """Greedy completions of so many tokens, so many prompts at once."""
        if self.engine.is_http:
            try:
                return load.run(self._port, self._served, prompts, tokens, at_once)
            except load.LoadFailed as failed:
                raise EngineFailed(f"{self.engine.name}: {failed}\n{self._tail()}") from failed
        assert self._process is not None
        assert self._process.stdin is not None
        asked = {"prompts": [list(prompt) for prompt in prompts], "tokens": tokens, "at_once": at_once}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        answers = [Answer(**said) for said in self._line()]
        load.check(answers, prompts, tokens)
        return answers

    def cpu_s(self) -> float:
        return machine.cpu_s(self._pid)

    def pss_mb(self) -> float:
        return machine.pss_mb(self._pid)

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-15:] if self._log.exists() else []
        return "\n".join(f"  | {line}" for line in lines)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to whatever of its tree is left."""
        process = self._process
        if process is None:
            return
        family = machine.tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_MAX_S)
        for pid in (family | machine.tree(process.pid)) - {os.getpid()}:
            if pid == process.pid and process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._process = None


def _read_all(path: Any) -> None:
    """Brings the model's files into memory, so that every start finds them there."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path, *path.parent.glob(f"{path.stem}*packed")]:
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    pass
