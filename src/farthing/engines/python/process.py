"""One process of a Python model, from its start to its end: started, loaded, given batches, ended.

Every way it can end gets a sentence. Starting the next one is for `supervisor`, judging its answers for `engine`.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from farthing.engines.contract import Batch, Sender, Subrequests
from farthing.engines.python import messages, subrequest_messages
from farthing.engines.python.channel import MESSAGE_BYTES_MAX, Arena, Connection, Place, read_tensor, write_tensors
from farthing.engines.python.log import Pump
from farthing.engines.python.stream_process import HearResponse, RunningStreams, Streams
from farthing.engines.python.subrequest_port import SubrequestPort
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed, TooLarge, Unavailable
from farthing.types.tensors import Tensor

EXIT_WAIT_S: Final = 2.0
"""How long a process that hung up, or was told to go, may take to be gone before it is killed."""

LOG_WAIT_S: Final = 0.5
"""How long a dead process's last words may take to arrive."""

_POLL_MS: Final = 200

Answer = messages.Outputs | messages.Replies | messages.Raised
"""What a worker says to a batch."""


class Life:
    """One process, from its start to its end."""

    def __init__(
        self,
        start: messages.Start,
        environment: Mapping[str, str],
        clock: Callable[[], float],
        sender: Sender,
        subrequests: Subrequests | None,
    ) -> None:
        self._model = start.name
        self._ended = threading.Event()
        self._ending = ""
        self._is_killed_by_us = False
        self._inputs_are_new = False
        self.is_over = False
        """It has ended, or is about to: it takes no more batches."""
        with contextlib.ExitStack() as undo:  # descriptors may run out anywhere in here
            self._inputs = Arena.create()
            undo.callback(self._inputs.close)
            self._outputs = Arena.create()
            undo.callback(self._outputs.close)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            asked, asking = subrequest_messages.pair()
            undo.callback(asked.close)
            with theirs, asking:
                log_fd, log_end = os.pipe()
                undo.callback(os.close, log_fd)
                try:
                    fds = (theirs.fileno(), asking.fileno(), self._inputs.fd, self._outputs.fd)
                    self._process = _spawn(fds, log_end, environment)
                finally:
                    os.close(log_end)
            undo.pop_all()
        self._connection = Connection(ours)
        self._log = Pump(log_fd, model=start.name, clock=clock)
        self.pid = self._process.pid
        self._port = SubrequestPort(
            asked, model=start.name, sender=sender, subrequests=subrequests, on_nonsense=self.kill
        )
        self._streams: Streams | None = None

    def load(self, start: messages.Start, timeout_s: float, clock: Callable[[], float]) -> messages.Ready:
        """Waits until the model is loaded. Raises `LoadFailed`. Called by the supervisor only."""
        deadline_s = clock() + timeout_s
        with contextlib.suppress(OSError):
            self._connection.send(messages.encode(start))
        answers = select.poll()  # not select.select, which knows no descriptor above 1023
        answers.register(self._connection.socket, select.POLLIN)
        while not answers.poll(_POLL_MS):
            # A child of the model's may hold the socket open after its death, so look at the process too.
            if self._process.poll() is not None:
                break
            if clock() > deadline_s:
                self.kill()
                raise LoadFailed(
                    f"{start.path}: not loaded within {timeout_s:g} s",
                    hint="set the parameter `load_timeout_seconds` if it needs longer",
                )
        answer = None
        # What is no answer counts as none: the process is at fault either way.
        with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):
            answer = self._receive(_POLL_MS / 1000)
        if isinstance(answer, messages.Ready):
            return answer
        if isinstance(answer, messages.Broken):
            raise LoadFailed(answer.error, hint=answer.trace)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_WAIT_S)  # it hung up: let it end by itself, to learn how
        self.kill()
        self.wait()
        raise LoadFailed(f"{start.path}: the process {self.ending()} while loading the model", hint=self.last_words())

    def wait(self) -> None:
        """Blocks until the process is gone, with all it started. Called by the supervisor only."""
        status = self._process.wait()
        if self._ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have left behind
        ours = self._is_killed_by_us and status == -signal.SIGKILL
        self._ending = "was killed by the server" if ours else how_it_ended(status)
        self.is_over = True
        self._ended.set()
        self._connection.hang_up()  # wakes a thread that waits for an answer
        self._port.hang_up()

    def run(self, batch: Batch, timeout_s: float | None) -> Answer:
        """Has a batch run. Raises `EngineFailed` when the process dies of it."""
        try:
            places = write_tensors(self._inputs, batch.inputs.items())
        except ValueError as problem:
            raise InvalidInput(f"model `{self._model}`: {problem}") from problem
        order = self._order(batch, places)
        self._port.begin_batch(batch.parents, self._inputs.memory())
        try:
            return self._ran(order, timeout_s)
        finally:
            self._port.end_batch()

    def _ran(self, order: bytes, timeout_s: float | None) -> Answer:
        try:
            self._connection.send(order, self._inputs.fd if self._inputs_are_new else -1)
        except OSError as problem:
            died = self._death("before this batch")
            raise Unavailable(died.message, hint=died.hint, retry_after_s=0.0) from problem
        self._inputs_are_new = False
        try:
            answer = self._receive(timeout_s)
        except TimeoutError:
            self.kill()
            raise EngineFailed(
                f"model `{self._model}` did not answer within {timeout_s:g} s; its process was killed and starts anew",
                hint="the parameter `execution_timeout_seconds` sets how long a batch may take",
            ) from None
        except (OSError, ValueError, msgspec.DecodeError) as problem:
            self.kill()
            raise self._death(f"after it answered nonsense ({problem})") from problem
        if not isinstance(answer, messages.Outputs | messages.Replies | messages.Raised):
            raise self._death("while it ran this batch")
        if answer.keeps_inputs:
            self._renew_inputs()
        return answer

    def open_streams(self) -> None:
        """Goes on in streams: the model answers as often as it likes. Called by the supervisor, once it is loaded."""
        self._streams = Streams(
            self._model, self._connection, self._inputs, port=self._port, death=self._death, kill=self.kill
        )

    def begin(self, batch: Batch, hears: Sequence[HearResponse], timeout_s: float | None) -> RunningStreams:
        """Has a batch begun; the streams must be open. Raises as `Streams.begin` does."""
        assert self._streams is not None
        return self._streams.begin(batch, hears, timeout_s)

    def _order(self, batch: Batch, places: tuple[Place, ...]) -> bytes:
        try:
            order = messages.encode(messages.Run(places, batch.outputs, batch.members, self._inputs_are_new))
        except (OverflowError, ValueError) as problem:
            raise InvalidInput(
                f"model `{self._model}`: a request's id or parameter cannot be handed to it: {problem}",
                hint="numbers have at most 64 bits, and text is Unicode",
            ) from problem
        if len(order) > MESSAGE_BYTES_MAX:
            raise TooLarge(
                f"model `{self._model}`: ids and parameters of a batch take {len(order)} bytes; "
                f"allowed: {MESSAGE_BYTES_MAX}"
            )
        return order

    def _renew_inputs(self) -> None:
        """Leaves the inputs' memory to the model, which still looks at it, and takes other."""
        try:
            arena = Arena.create()
        except OSError:  # out of descriptors: without memory it cannot go on
            self.kill()
            return
        self._inputs.close()
        self._inputs = arena
        self._inputs_are_new = True
        self._port.inputs_renewed()

    def take(self, places: Sequence[Place]) -> dict[str, Tensor]:
        """Copies tensors out of the worker's arena, which the next batch overwrites. Raises `ValueError`."""
        if any(place.offset + place.size > self._outputs.size for place in places):
            self._outputs.refresh()
        memory = self._outputs.memory()
        tensors: dict[str, Tensor] = {}
        for place in places:
            tensor = read_tensor(memory, place)
            tensors[place.name] = tensor if place.datatype == "BYTES" else tensor.copy()
        return tensors

    def _receive(self, timeout_s: float | None) -> Any:
        data = self._connection.receive(timeout_s)
        return None if data is None else messages.decode_answer(data)

    def _death(self, when: str) -> EngineFailed:
        self.is_over = True
        if not self._ended.wait(EXIT_WAIT_S):  # it hung up, and lives
            self.kill()
            self._ended.wait(EXIT_WAIT_S)
        return EngineFailed(
            f"model `{self._model}`: its process {self.ending()} {when}",
            hint=self.last_words(),
        )

    def ending(self) -> str:
        """How it ended, to follow "the process"."""
        return self._ending or "is going"

    def last_words(self) -> str:
        """The end of what the process printed, as a hint."""
        lines = self._log.last_lines(LOG_WAIT_S)
        return "its last lines: " + " | ".join(lines) if lines else "it printed nothing"

    def stop(self) -> None:
        """Asks the process to unload the model and go. `end` sees to it."""
        data = messages.encode(messages.Stop())
        if self._streams is not None:
            self._streams.post(data)
            return
        with contextlib.suppress(OSError):
            self._connection.send(data)

    def end(self, wait_s: float) -> None:
        """Waits for the end, then asks with SIGTERM, then takes it."""
        if not self._ended.wait(wait_s):
            self._signal(signal.SIGTERM)
            if not self._ended.wait(EXIT_WAIT_S):
                self.kill()
                self._ended.wait(EXIT_WAIT_S)

    def kill(self) -> None:
        """Ends it now. `wait` tells when it is gone."""
        self.is_over = True
        self._is_killed_by_us = self._process.returncode is None  # else it was quicker
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def free(self) -> None:
        """Gives memory and descriptors back. The process is gone and no batch runs."""
        if self._streams is not None:
            self._streams.close()
        self._connection.close()
        self._port.close()
        self._inputs.close()
        self._outputs.close()


def _spawn(fds: Sequence[int], log_fd: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own program
        # -P: a file in the server's working folder must not pass for a library.
        [sys.executable, "-P", "-m", "farthing.engines.python.worker", *map(str, fds), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        pass_fds=fds,
        env=environment,
        start_new_session=True,  # Ctrl-C in the server's terminal is for the server
    )


def how_it_ended(status: int) -> str:
    """An exit status in words, to follow "the process"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    also = "; the kernel does this when memory runs out" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status} ({name}{also})"
