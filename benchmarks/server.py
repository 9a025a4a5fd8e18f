"""One server process: started on its core, waited for, asked whether it answers rightly, stopped for certain."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import time
from typing import Final

import machine
from models import CACHE, Model
from peers.contract import Peer, free_port
from wire import Request

READY_MAX_S: Final = 90
"""Ray Serve needs 10 to 20 s on one core; whatever takes longer than this is broken."""
STOP_MAX_S: Final = 8
POLL_S: Final = 0.01
ANSWER_MAX_S: Final = 20


class ServerFailed(Exception):
    """A server did not start, did not answer, or answered wrongly; the message ends with its log's last lines."""


class Server:
    """A context manager: inside it the server is up and has answered rightly at least once."""

    def __init__(self, peer: Peer, model: Model, *, core: int | str) -> None:
        self.peer, self.model, self.core = peer, model, core
        self.port = free_port()
        self.log = CACHE / "logs" / f"{peer.name}-{model.name}.log"
        self.start_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> "Server":
        folder = CACHE / "run" / f"{self.peer.name}-{self.model.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        launch = self.peer.launch(self.model, self.port, folder)
        # What slows or steers numeric libraries is the machine's business, but it must be the same for all.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **launch.environment}
        with self.log.open("wb") as log:
            started = time.monotonic()
            self._process = subprocess.Popen(
                ["taskset", "-c", str(self.core), *launch.command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_right(started)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_right(self, started: float) -> None:
        """Start-up ends with the first right answer: being ready is a claim, an answer is a fact."""
        wire, last = self.peer.wires[0], "it never listened"
        while time.monotonic() - started < READY_MAX_S:
            if self._process is not None and self._process.poll() is not None:
                raise ServerFailed(f"{self.peer.name} exited {self._process.returncode}\n{self.tail()}")
            try:
                status, _, body = self.fetch("GET", self.peer.ready_path)
                if status == 200:
                    self.check(wire)
                    self.start_s = time.monotonic() - started
                    return
                last = f"{self.peer.ready_path} answered {status} {body[:200]!r}"
            except OSError as error:
                last = f"{self.peer.ready_path}: {error}"
            except http.client.HTTPException as error:
                last = f"{self.peer.ready_path}: {error!r}"
            time.sleep(POLL_S)
        raise ServerFailed(f"{self.peer.name} was not ready within {READY_MAX_S} s: {last}\n{self.tail()}")

    def fetch(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_MAX_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.title(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def check(self, wire: str) -> Request:
        """Asks once and compares with onnxruntime in process; returns the request that was answered rightly."""
        request = self.peer.encode(self.model, wire)
        try:
            status, headers, body = self.fetch("POST", request.path, request.body, request.headers)
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"{self.peer.name}:{wire} did not answer: {error!r}\n{self.tail()}") from error
        if status != 200:
            raise ServerFailed(f"{self.peer.name}:{wire} answered {status}: {body[:500]!r}\n{self.tail()}")
        try:
            got = self.peer.decode(headers, body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerFailed(f"{self.peer.name}:{wire} answered {body[:300]!r}: {error!r}") from error
        if not self.peer.is_echo and not self.model.is_right(got):
            raise ServerFailed(f"{self.peer.name}:{wire} answers {self.model.name} wrongly: {body[:300]!r}")
        return request

    def cpu_s(self) -> float:
        return machine.cpu_s(self.pid)

    def pss_mb(self) -> float:
        return machine.pss_mb(self.pid)

    def tail(self) -> str:
        """The last lines the server wrote."""
        lines = self.log.read_text(errors="replace").splitlines()[-15:] if self.log.exists() else []
        return "\n".join(f"  | {line}" for line in lines)

    def stop(self) -> None:
        """SIGTERM to the server, then SIGKILL to whatever of its tree is left."""
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
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        self._process = None
