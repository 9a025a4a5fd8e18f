"""The main program of a Python model's own process: loads the model, then answers batches until told to stop.

It is started by `process` with four inherited file descriptors: a socket for messages, one for subrequests, and two
arenas for tensors.
This is the only place where a user's file is imported. Whatever it does to the process, the server lives on; and
should the server die, this ends by itself.
"""

import ctypes
import faulthandler
import importlib.util
import io
import logging
import os
import signal
import socket
import sys
import traceback
import weakref
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from farthing.engines.python import messages, native, triton, triton_model, triton_subrequests
from farthing.engines.python.channel import Arena, Connection, read_tensor, write_tensors
from farthing.engines.python.interface import MemberResult, ModelMistake, UserModel, short_text
from farthing.engines.python.log import MarkingHandler
from farthing.engines.python.stream_native import NativeStreams
from farthing.engines.python.stream_triton import TritonStreams
from farthing.engines.python.stream_worker import Port, StreamModel
from farthing.engines.python.subrequest_client import SubrequestClient
from farthing.types.errors import FarthingError, ModelNotFound
from farthing.types.tensors import Tensor

MODULE_NAME: Final = "farthing_user_model"
"""What the user's file is imported as: a name that no library has."""

TRACE_LINES: Final = 12
"""How much of a traceback a failed load tells."""

_PR_SET_PDEATHSIG: Final = 1


class Worker:
    """One process's loop."""

    def __init__(self, connection: Connection, client: SubrequestClient, inputs: Arena, outputs: Arena) -> None:
        self._connection = connection
        self._client = client
        self._inputs = inputs
        self._outputs = outputs
        self._keeps_inputs = False
        self._start: messages.Start
        self.is_stopping = False

    def serve(self) -> None:
        """Loads, answers, unloads."""
        start = self._next_order()
        if not isinstance(start, messages.Start):
            return
        self._start = start
        self._client.can_ask = start.can_ask
        try:
            model = load(start, self._client)
        except Exception as problem:
            error = f"{_place(problem, start, or_file=True)}: {_text(problem)}"
            self._send(messages.Broken(error, _trace(problem, start)))
            return
        self._send(model.ready)
        if model.ready.is_decoupled:
            self._stream(model)
            return
        while isinstance(order := self._next_order(), messages.Run):
            self._answer(model, order)
        self.is_stopping = True
        model.close()

    def _stream(self, model: UserModel) -> None:
        """Answers requests as often as the model likes, until told to stop."""

        def stop() -> None:
            self.is_stopping = True

        streams: StreamModel
        if isinstance(model, triton_model.TritonModel):
            streams = TritonStreams(model, self._raised, self._client.turn_threads)
        else:
            assert isinstance(model, native.NativeModel)
            streams = NativeStreams(model, self._raised, self._client.turn_threads)
        port = Port(self._connection, self._inputs, stop)
        port.start()
        streams.serve(port)
        streams.close()

    def _next_order(self) -> Any:
        """The next order, or None when the server is gone."""
        if self._keeps_inputs:
            data, fd = self._connection.receive_with_fd()
            if fd >= 0:
                self._inputs.close()
                self._inputs = Arena(fd)
                self._keeps_inputs = False
                self._client.inputs_renewed()
        else:
            data = self._connection.receive()
        return None if data is None else messages.decode_order(data)

    def _answer(self, model: UserModel, run: messages.Run) -> None:
        self._inputs.refresh()
        memory = self._inputs.memory()
        is_kept = weakref.ref(memory)
        self._client.begin_batch(memory)
        answer: messages.Outputs | messages.Replies | messages.Raised
        try:
            answer = self._run(model, run, memory)
            data = messages.encode(answer)
        except Exception as problem:
            traceback.print_exc()
            answer = self._raised(problem)
            data = messages.encode(answer)
        self._client.end_batch()
        del memory
        if is_kept() is not None:
            # Somebody still looks at the inputs: that memory is theirs, the next batch goes elsewhere.
            self._keeps_inputs = True
            data = messages.encode(msgspec.structs.replace(answer, keeps_inputs=True))
        self._connection.send(data)

    def _run(self, model: UserModel, run: messages.Run, memory: Tensor) -> messages.Outputs | messages.Replies:
        results = model.run({place.name: read_tensor(memory, place) for place in run.inputs}, run)
        if isinstance(results, dict):
            return messages.Outputs(write_tensors(self._outputs, results.items()))
        # All members' outputs go into the arena one after the other, and are told apart again by their number.
        members: list[MemberResult] = list(results)  # type: ignore[arg-type]
        places = iter(write_tensors(self._outputs, [pair for m in members for pair in m.outputs.items()]))
        return messages.Replies(
            tuple(
                messages.MemberReply(
                    tuple(next(places) for _ in m.outputs),
                    dict(m.parameters),
                    m.error_kind,
                    m.error,
                    m.is_rescheduled,
                )
                for m in members
            )
        )

    def _raised(self, problem: Exception) -> messages.Raised:
        """The answer to a batch that the user's code failed on. Its own words only, if it chose them."""
        if isinstance(problem, FarthingError | triton.TritonModelException | ModelMistake):
            kind = type(problem).__name__ if type(problem).__name__ in messages.ERRORS else "EngineFailed"
            if isinstance(problem, ModelNotFound):  # this model is there; it cannot do without the other one
                kind = "Unavailable"
            return messages.Raised(kind, short_text(getattr(problem, "message", problem)))
        place = _place(problem, self._start, or_file=False)
        return messages.Raised("EngineFailed", f"{_text(problem)}{f' ({place})' if place else ''}")

    def _send(self, answer: Any) -> None:
        self._connection.send(messages.encode(answer))


def load(start: messages.Start, client: SubrequestClient) -> UserModel:
    """Imports the user's file and makes its model. Raises whatever the user's code raises."""
    path = Path(start.path)
    # The version's folder, then the model's: where Triton's stub looks too.
    sys.path[:0] = dict.fromkeys((str(path.parent), start.folder))
    sys.modules["triton_python_backend_utils"] = triton
    triton_subrequests.connect(client)
    # By hand, since a file may be called anything, `json.py` too.
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    spec.loader.exec_module(module)
    if isinstance(model_class := getattr(module, triton_model.CLASS_NAME, None), type):
        return triton_model.TritonModel(model_class, start)
    return native.NativeModel(native.find_class(module), start, client)


def _text(problem: BaseException) -> str:
    if isinstance(problem, ModelMistake):
        return short_text(problem)
    return f"{type(problem).__name__}: {short_text(problem)}"


def _place(problem: BaseException, start: messages.Start, *, or_file: bool) -> str:
    """The user's file and line that a problem came from: the innermost of the model's own folder."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if Path(f.filename).is_relative_to(start.folder)]
    if frames:
        file = frames[-1].filename
        return f"{file if or_file else Path(file).name}:{frames[-1].lineno}"
    return start.path if or_file else ""


def _trace(problem: BaseException, start: messages.Start) -> str:
    """The end of the traceback, without our own frames before the user's."""
    if isinstance(problem, ModelMistake):
        return ""  # says all by itself
    told = traceback.TracebackException.from_exception(problem)
    frames = list(told.stack)
    own = [i for i, frame in enumerate(frames) if Path(frame.filename).is_relative_to(start.folder)]
    if own:
        told.stack = traceback.StackSummary.from_list(frames[own[0] :])
    return short_text("\n".join("".join(told.format()).splitlines()[-TRACE_LINES:]))


def _die_with_server(parent_pid: int) -> None:
    """Asks the kernel to end this process when the server ends, even in the middle of the user's code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Runs a worker: two sockets, inputs' arena, outputs' arena (file descriptors), and the server's process id."""
    socket_fd, subrequests_fd, inputs_fd, outputs_fd, parent_pid = map(int, arguments)
    for fd in (socket_fd, subrequests_fd, inputs_fd, outputs_fd):
        os.set_inheritable(fd, False)  # not for what the model may start in turn
    _die_with_server(parent_pid)
    faulthandler.enable(all_threads=False)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="replace")
    logging.basicConfig(level=logging.INFO, handlers=[MarkingHandler()], format="%(message)s")
    worker = Worker(
        Connection(socket.socket(fileno=socket_fd)),
        SubrequestClient(socket.socket(fileno=subrequests_fd)),
        Arena(inputs_fd),
        Arena(outputs_fd),
    )

    def stop(_: int, __: FrameType | None) -> None:
        # A service manager signals every process of a service, and the server may still be draining: only once
        # the server has said so is this the moment to go.
        if worker.is_stopping:
            raise SystemExit(1)

    signal.signal(signal.SIGTERM, stop)
    worker.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
